"""What happens when memory runs out: really, in a process whose address space is limited."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from segserve.artifact import Artifact
from segserve.memory import machine_memory
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import SegmentationPredictor
from segserve.spec import ModelSpec
from tests.conftest import ToyEngine, random_image

ROOT = Path(__file__).resolve().parents[1]

SHORT_OF_MEMORY = """
import io, json, resource, sys
from pathlib import Path
import numpy as np
from PIL import Image
from segserve.api import Request
from segserve.artifact import load_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import SegmentationPredictor
from segserve.service import Service

artifact = load_artifact(Path(sys.argv[1]))
sizing = {"resize": "never", "working_side": 4096}
spec = artifact.spec.model_copy(update={"preprocess": artifact.spec.preprocess.model_copy(update=sizing)})
service = Service(artifact, SegmentationPredictor(spec, TorchEngine(artifact.network)), name="m", version="1")

def statuses(*sides):
    files = [io.BytesIO() for _ in sides]
    for side, file in zip(sides, files):
        Image.fromarray(np.full((side, side, 3), 99, dtype=np.uint8)).save(file, "PNG")
    return [r.status for r in service.handle([Request(headers={}, fields={"body": f.getvalue()}) for f in files])]

before = statuses(64, 300)
status = Path("/proc/self/status").read_text()
used = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
print(json.dumps([before, statuses(64, 3000, 40), statuses(64)]))
"""


class NarrowEngine(ToyEngine):
    """Has memory for two images at once, and for none larger than 64 x 64."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.shape[0] > 2 or images_BCHW.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(images_BCHW)


def test_an_image_for_which_there_is_no_memory_is_507_and_no_others(artifact: Artifact) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(artifact.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[200, 200], [200, 507, 200], [200]]


FRAGMENTED = """
from pathlib import Path
from segserve.memory import trim_heap

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

blocks = [b"x" * 100_000 for _ in range(3000)]
del blocks[:-1]
before = resident_mib()
trim_heap()
print(before - resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_freed_blocks_under_one_in_use_are_given_back() -> None:
    result = subprocess.run([sys.executable, "-c", FRAGMENTED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(result.stdout) > 200


def test_a_forward_pass_that_does_not_fit_goes_in_halves(spec: ModelSpec) -> None:
    engine = NarrowEngine()
    queries = [Query(image_HWC=random_image(64, 64, seed=seed)) for seed in range(5)]
    found = SegmentationPredictor(spec, engine).predict(queries)
    assert [shape[0] for shape in engine.shapes] == [2, 1, 2]
    for query, prediction in zip(queries, found, strict=True):
        (alone,) = SegmentationPredictor(spec, ToyEngine()).predict([query])
        np.testing.assert_array_equal(prediction.mask_HW, alone.mask_HW)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_one_that_cannot_fit_has_the_error_and_the_others_have_answers(place: int, spec: ModelSpec) -> None:
    sizing = {"resize": "never", "working_side": 512}
    spec = spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update=sizing)})
    queries = [Query(image_HWC=random_image(64, 64, seed=seed)) for seed in range(4)]
    queries.insert(place, Query(image_HWC=random_image(64, 200)))
    outcomes = SegmentationPredictor(spec, NarrowEngine()).attempt(queries)
    assert isinstance(outcomes.pop(place), torch.OutOfMemoryError)
    assert all(isinstance(outcome, SegmentationPrediction) for outcome in outcomes)


@pytest.mark.parametrize(("limit", "expected"), [(None, 8192), ("max\n", 8192), ("4096\n", 4096), ("16384\n", 8192)])
def test_a_container_has_its_limit_and_no_more_than_the_machine(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 4096}.__getitem__)
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    assert machine_memory(file) == expected
