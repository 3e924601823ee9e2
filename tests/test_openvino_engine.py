import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segserve.artifact import Artifact
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import Engine, SegmentationPredictor
from tests.conftest import random_image

SIZES = [(1, 32, 32), (1, 1, 1), (2, 33, 47), (3, 64, 96), (1, 97, 31), (5, 32, 160)]


@pytest.fixture(scope="session")
def engine(openvino_model: Path) -> OpenVINOEngine:
    return OpenVINOEngine(openvino_model, precision="float32")


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, of the largest logit."""
    assert (found.shape, found.dtype) == (expected.shape, torch.float32)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_torch_at_any_size(
    size: tuple[int, int, int], engine: OpenVINOEngine, artifact: Artifact
) -> None:
    batch, height, width = size
    images_BCHW = torch.randn(batch, 3, height, width)
    expected_BKHW = TorchEngine(artifact.network, precision="float32")(images_BCHW)
    assert relative(engine(images_BCHW), expected_BKHW) < 1e-4


def test_a_batch_is_its_images_one_by_one(engine: OpenVINOEngine) -> None:
    images_BCHW = torch.randn(3, 3, 64, 96)
    singles = [engine(image_CHW[None]) for image_CHW in images_BCHW]
    torch.testing.assert_close(engine(images_BCHW), torch.cat(singles), atol=1e-4, rtol=1e-4)


def test_logits_outlive_the_next_call_and_the_images_stay(engine: OpenVINOEngine) -> None:
    images_BCHW = torch.randn(1, 3, 32, 32)
    given_BCHW = images_BCHW.clone()
    logits_BKHW = engine(images_BCHW)
    kept_BKHW = logits_BKHW.clone()
    engine(-images_BCHW)
    assert torch.equal(logits_BKHW, kept_BKHW)
    assert torch.equal(images_BCHW, given_BCHW)


def test_bfloat16_is_near(openvino_model: Path, engine: OpenVINOEngine) -> None:
    images_BCHW = torch.randn(2, 3, 64, 64)
    short = OpenVINOEngine(openvino_model, precision="bfloat16")
    assert short.precision == "bfloat16"
    assert relative(short(images_BCHW), engine(images_BCHW)) < 0.1


def test_smaller_sides_are_filled_up_by_the_last_pixel(openvino_model: Path, engine: OpenVINOEngine) -> None:
    images_BCHW = torch.randn(2, 3, 9, 70)
    filled_BCHW = functional.pad(images_BCHW, (0, 0, 0, 55), mode="replicate")
    found_BKHW = OpenVINOEngine(openvino_model, least_side=64, precision="float32")(images_BCHW)
    torch.testing.assert_close(found_BKHW, engine(filled_BCHW))


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (2, 2)])
def test_it_takes_as_many_threads_as_torch_unless_told(asked: int | None, expected: int, openvino_model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compiled = OpenVINOEngine(openvino_model, threads=asked)._compiled
    finally:
        torch.set_num_threads(before)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == expected
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_the_predictor_says_what_it_says_with_torch(engine: OpenVINOEngine, artifact: Artifact) -> None:
    queries = [Query(image_HWC=random_image(*size)) for size in ((48, 64), (7, 64), (1, 1), (100, 33))]
    engines: list[Engine] = [engine, TorchEngine(artifact.network, precision="float32")]
    found, expected = (SegmentationPredictor(artifact.spec, one).predict(queries) for one in engines)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.mask_HW == theirs.mask_HW).mean() > 0.999
        np.testing.assert_allclose(ours.mean_entropy, theirs.mean_entropy, atol=1e-3)


def test_a_signal_is_handled_after_an_engine_went_in_another_thread(openvino_model: Path) -> None:
    """Where OpenVINO's own core goes with it, the process ends with a segmentation fault."""
    program = """if True:
        import os, signal, sys, threading
        from pathlib import Path
        from segserve.engines.openvino_engine import OpenVINOEngine
        signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
        engines = [OpenVINOEngine(Path(sys.argv[1]))]
        other = threading.Thread(target=engines.clear)
        other.start(), other.join()
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    done = subprocess.run([sys.executable, "-c", program, openvino_model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
