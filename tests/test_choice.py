import importlib.util
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from segserve import choice
from segserve.artifact import Artifact
from segserve.choice import build_engine
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.spec import EngineChoice


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "openvino" else real(name, package)

    monkeypatch.setattr(choice, "find_spec", find)


def asking(artifact: Artifact, engine: EngineChoice) -> Artifact:
    serving = artifact.spec.serving.model_copy(update={"engine": engine})
    return replace(artifact, spec=artifact.spec.model_copy(update={"serving": serving}))


def test_on_the_cpu_the_exported_engine_is_taken_and_says_what_torch_says(engine_artifact: Artifact) -> None:
    engine = build_engine(engine_artifact, device="cpu")
    assert isinstance(engine, OpenVINOEngine)
    assert (engine.name, str(engine.device)) == ("openvino", "cpu")
    images_BCHW = torch.randn(2, 3, 50, 40)
    expected_BKHW = TorchEngine(engine_artifact.network, precision="float32")(images_BCHW)
    tolerance = 0.05 if engine.precision == "float32" else 0.25  # bfloat16, as on AMD, keeps eight bits
    torch.testing.assert_close(engine(images_BCHW), expected_BKHW, atol=tolerance, rtol=0.05)


def test_what_the_caller_asks_for_comes_before_the_spec_and_the_spec_before_the_best(engine_artifact: Artifact) -> None:
    assert build_engine(engine_artifact, device="cpu", choice="torch").name == "torch"
    assert build_engine(asking(engine_artifact, "torch"), device="cpu").name == "torch"
    assert build_engine(asking(engine_artifact, "torch"), device="cpu", choice="openvino").name == "openvino"


def test_an_artifact_without_one_is_run_by_torch(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    assert build_engine(artifact, device="cpu").name == "torch"
    assert caplog.messages == []


def test_on_a_gpu_torch_is_taken(engine_artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    """The device `meta` stands for one: what decides is that it is not the CPU."""
    assert choice._best(engine_artifact.spec, torch.device("meta")) == "torch"
    assert caplog.messages == []


def test_without_the_package_torch_runs_it_and_one_line_says_what_to_install(
    engine_artifact: Artifact, without_openvino: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert build_engine(engine_artifact, device="cpu").name == "torch"
    assert caplog.messages == [
        "tiny-segmentation is run by torch, though it has the engine openvino: "
        "the package openvino is not installed: `pip install openvino`"
    ]


def test_without_the_package_it_cannot_be_forced(engine_artifact: Artifact, without_openvino: None) -> None:
    with pytest.raises(ValueError, match=r"expected to run tiny-segmentation by openvino, but the package openvino is"):
        build_engine(engine_artifact, device="cpu", choice="openvino")


def test_an_engine_that_is_not_there_cannot_be_forced(engine_artifact: Artifact, artifact: Artifact) -> None:
    words = r"expected tiny-segmentation to have the engine openvino-int8, but it has torch and openvino: make it with"
    with pytest.raises(ValueError, match=words):
        build_engine(engine_artifact, device="cpu", choice="openvino-int8")
    with pytest.raises(ValueError, match="to have the engine openvino, but it has torch: make it with `segserve exp"):
        build_engine(artifact, device="cpu", choice="openvino")
