import importlib.util
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segserve import choice
from segserve.artifact import Artifact, sha256_of
from segserve.choice import Choice, build_engine
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.spec import Certificate, EngineSpec

CERTIFICATE = Certificate(
    split="val",
    num_images=2,
    score="miou",
    torch_score=0.7,
    engine_score=0.7,
    agreement=1.0,
    max_probability_shift=0.0,
    torch_images_per_second=1.0,
    engine_images_per_second=2.0,
    machine="here",
    date="2026-11-24",
)


@pytest.fixture
def exported(artifact: Artifact, openvino_model: Path, tmp_path: Path) -> Artifact:
    """The artifact with an engine in its folder, though not in its spec on disk."""
    shutil.copytree(openvino_model.parent, tmp_path / "engine")
    files = {file.name: sha256_of(file) for file in (tmp_path / "engine").iterdir()}
    engine = EngineSpec(name="openvino", files=files, certificate=CERTIFICATE)
    return replace(artifact, path=tmp_path, spec=artifact.spec.model_copy(update={"engine": engine}))


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "openvino" else real(name, package)

    monkeypatch.setattr(choice, "find_spec", find)


def asking(artifact: Artifact, engine: Choice) -> Artifact:
    serving = artifact.spec.serving.model_copy(update={"engine": engine})
    return replace(artifact, spec=artifact.spec.model_copy(update={"serving": serving}))


def test_on_the_cpu_the_exported_engine_is_taken_and_says_what_torch_says(exported: Artifact) -> None:
    engine = build_engine(exported, device="cpu")
    assert isinstance(engine, OpenVINOEngine)
    assert (engine.name, str(engine.device)) == ("openvino", "cpu")
    images_BCHW = torch.randn(2, 3, 50, 40)
    expected_BKHW = TorchEngine(exported.network, precision="float32")(images_BCHW)
    torch.testing.assert_close(engine(images_BCHW), expected_BKHW, atol=0.05, rtol=0.05)


def test_what_the_caller_asks_for_comes_before_the_spec_and_the_spec_before_the_best(exported: Artifact) -> None:
    assert build_engine(exported, device="cpu", choice="torch").name == "torch"
    assert build_engine(asking(exported, "torch"), device="cpu").name == "torch"
    assert build_engine(asking(exported, "torch"), device="cpu", choice="openvino").name == "openvino"


def test_an_artifact_without_one_is_run_by_torch(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    assert build_engine(artifact, device="cpu").name == "torch"
    assert caplog.messages == []


def test_on_a_gpu_torch_is_taken(exported: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    """The device `meta` stands for one: what decides is that it is not the CPU."""
    assert choice._best(exported.spec, torch.device("meta")) == "torch"
    assert caplog.messages == []


def test_without_the_package_torch_runs_it_and_one_line_says_what_to_install(
    exported: Artifact, without_openvino: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert build_engine(exported, device="cpu").name == "torch"
    assert caplog.messages == [
        "tiny-segmentation is run by torch, though it has the engine openvino: "
        "the package openvino is not installed: `pip install openvino`"
    ]


def test_without_the_package_it_cannot_be_forced(exported: Artifact, without_openvino: None) -> None:
    with pytest.raises(ValueError, match=r"expected to run tiny-segmentation by openvino, but the package openvino is"):
        build_engine(exported, device="cpu", choice="openvino")


def test_an_engine_that_is_not_there_cannot_be_forced(exported: Artifact, artifact: Artifact) -> None:
    words = r"expected tiny-segmentation to have the engine openvino-int8, but it has torch and openvino: make it with"
    with pytest.raises(ValueError, match=words):
        build_engine(exported, device="cpu", choice="openvino-int8")
    with pytest.raises(ValueError, match="to have the engine openvino, but it has torch: make it with `segserve exp"):
        build_engine(artifact, device="cpu", choice="openvino")
