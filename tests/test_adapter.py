import faulthandler
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers import adapter
from handlers.adapter import Adapter, _share_cores
from segserve import sample
from segserve.artifact import Artifact
from segserve.spec import ServingSpec


@dataclass
class Context:
    """What TorchServe hands over when a worker starts."""

    system_properties: dict[str, Any]
    model_name: str = "streets"
    manifest: dict[str, Any] = field(default_factory=lambda: {"model": {"modelVersion": "1.0"}})

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        raise NotImplementedError

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        raise NotImplementedError

    def set_response_content_type(self, idx: int, value: str) -> None:
        raise NotImplementedError

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        raise NotImplementedError


class SegmentationAdapter(Adapter):
    task = "segmentation"


@pytest.fixture
def context(engine_artifact: Artifact, tmp_path: Path) -> Context:
    (tmp_path / "artifact").symlink_to(engine_artifact.path)
    return Context({"model_dir": str(tmp_path), "gpu_id": None})


def engine_of(context: Context) -> str:
    started = SegmentationAdapter()
    started.initialize(context)
    return started.service.predictor.engine.name


def test_a_worker_takes_the_exported_engine_unless_the_environment_forces_another(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_of(context) == "openvino"
    monkeypatch.setenv("SEGSERVE_ENGINE", "torch")
    assert engine_of(context) == "torch"
    monkeypatch.setenv("SEGSERVE_ENGINE", "tensorrt")
    words = "expected SEGSERVE_ENGINE to be one of auto, torch, openvino, openvino-int8, but got 'tensorrt'"
    with pytest.raises(ValueError, match=words):
        engine_of(context)


def test_a_worker_with_an_exported_engine_does_without_torchvision(context: Context) -> None:
    program = f"""
import sys
from types import SimpleNamespace
from handlers.segmentation_handler import SegmentationHandler
properties, model = {context.system_properties!r}, {context.manifest!r}
context = SimpleNamespace(system_properties=properties, manifest=model, model_name="streets")
handler = SegmentationHandler()
handler.initialize(context)
sys.exit(f"{{handler.service.predictor.engine.name}} {{'torchvision' in sys.modules}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "openvino False"


@pytest.mark.parametrize(
    ("serving", "threads", "cores", "expected"),
    [
        (ServingSpec(), 8, 8, 8),
        (ServingSpec(), 64, 2, 2),
        (ServingSpec(), 3, 8, 3),
        (ServingSpec(workers=2), 8, 8, 4),
        (ServingSpec(workers=2), 64, 4, 2),
        (ServingSpec(workers=3), 2, 2, 1),
        (ServingSpec(workers=2, threads=3), 8, 8, 3),
        (ServingSpec(threads=1), 8, 8, 1),
    ],
)
def test_cores_are_shared_out_among_the_workers(
    serving: ServingSpec, threads: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torch's threads, which OMP_NUM_THREADS may say, and the container's cores the fewer."""
    asked: list[int] = []
    monkeypatch.setattr(adapter, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    _share_cores(serving)
    assert asked == [expected]


def test_a_worker_without_its_gpu_answers_and_then_ends(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/system/test_bad_day.py has the end itself."""
    ended: list[int] = []
    monkeypatch.setattr(adapter, "END_SECONDS", 0.0)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("SEGSERVE_ENGINE", "torch")
    worker = SegmentationAdapter()
    worker.initialize(context)
    monkeypatch.setattr(Context, "get_all_request_header", lambda *_: {})
    for name in ("status", "content_type", "header"):
        monkeypatch.setattr(Context, f"set_response_{name}", lambda *_: None)
    worker.handle([{"body": b"no image"}], context)
    assert ended == []
    worker.service.is_lost = True
    [body] = worker.handle([{"body": b"no image"}], context)
    assert b"this worker has lost its GPU" in body
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [1]


def test_what_the_supervisor_says_reaches_the_service(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_ENGINE", "torch")
    worker = SegmentationAdapter()
    worker.initialize(context)
    assert (worker.service.quarantine, worker.service.brownout_seconds) == (None, None)
    (tmp_path / "quarantine").mkdir()
    monkeypatch.setenv("SEGSERVE_QUARANTINE_FOLDER", str(tmp_path / "quarantine"))
    monkeypatch.setenv("SEGSERVE_BROWNOUT_MS", "250")
    worker.initialize(context)
    assert sys.__stderr__ is not None
    faulthandler.enable(sys.__stderr__)
    assert worker.service.quarantine is not None
    assert worker.service.quarantine.folder == tmp_path / "quarantine"
    assert worker.service.brownout_seconds == 0.25


def test_answered_images_are_kept_while_a_deployment_asks(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_ENGINE", "torch")
    monkeypatch.setenv("SEGSERVE_SAMPLE_FOLDER", str(tmp_path / "sample"))
    worker = SegmentationAdapter()
    worker.initialize(context)
    monkeypatch.setattr(Context, "get_all_request_header", lambda *_: {"X-Segserve-TTA": "hflip"})
    for name in ("status", "content_type", "header"):
        monkeypatch.setattr(Context, f"set_response_{name}", lambda *_: None)
    image = (tmp_path / "artifact/example/input.png").read_bytes()
    rows = [{"body": b"no image"}, {"body": bytearray(image)}]
    worker.handle(rows, context)
    sample.ask(tmp_path / "sample", count=2)
    worker.handle(rows, context)
    assert list(sample.kept(tmp_path / "sample")) == [(image, sample.Views(tta="hflip"))]
