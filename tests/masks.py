"""Masks that are hard to write down, and predictions that hold them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from segserve import api
from segserve.api import Options
from segserve.clock import StageClock
from segserve.prediction import SegmentationPrediction
from segserve.render import Asked, render
from segserve.spec import ModelSpec

MODEL = api.ModelInfo(name="tiny", version="7", digest="abc")


def noise(height: int, width: int, classes: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, classes, (height, width), dtype=np.uint8)


def blobs(height: int, width: int, *, smooth: float = 6.0, classes: int = 4) -> NDArray[np.uint8]:
    """Coherent regions of all classes, as networks give them."""
    random = np.random.default_rng(7)
    fields = [gaussian_filter(random.normal(size=(height, width)), smooth) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def rings(size: int) -> NDArray[np.uint8]:
    """Holes in holes: square rings of classes 0 and 1 by turns, each one pixel wide."""
    y, x = np.indices((size, size))
    return (np.minimum.reduce([y, x, size - 1 - y, size - 1 - x]) % 2).astype(np.uint8)


def single_pixels() -> NDArray[np.uint8]:
    """Objects of one pixel in the middle, at an edge, in a corner, and touching at corners only."""
    mask_HW = np.zeros((9, 12), dtype=np.uint8)
    for y, x in [(0, 0), (8, 11), (0, 5), (4, 4), (5, 5), (6, 4), (8, 0)]:
        mask_HW[y, x] = 1 + (y + x) % 3
    return mask_HW


def corner_hole() -> NDArray[np.uint8]:
    """Holes that touch each other, and the outside, at corners only."""
    mask_HW = np.ones((8, 8), dtype=np.uint8)
    for y, x in [(1, 1), (2, 2), (4, 2), (5, 3), (0, 7), (6, 6), (7, 7)]:
        mask_HW[y, x] = 2
    return mask_HW


CASES: dict[str, NDArray[np.uint8]] = {
    "single pixels": single_pixels(),
    "holes in holes": rings(15),
    "holes that touch at corners": corner_hole(),
    "one class everywhere": np.full((6, 7), 2, dtype=np.uint8),
    "empty classes": np.where(blobs(24, 31, classes=2) == 0, 0, 3).astype(np.uint8),
    "checkerboard": (np.indices((9, 8)).sum(axis=0) % 2).astype(np.uint8),
    "1 x 1": np.array([[3]], dtype=np.uint8),
    "1 x 5000": noise(1, 5000),
    "5000 x 1": noise(5000, 1),
    "odd": blobs(53, 37),
    "noise": noise(40, 61),
    "long runs": np.repeat(np.arange(4, dtype=np.uint8), 300)[:, None].repeat(251, axis=1),
}


def prediction_of(
    mask_HW: NDArray[np.uint8],
    confidence_HW: NDArray[np.uint8] | None = None,
    probs_KHW: NDArray[np.uint8] | NDArray[np.float16] | None = None,
) -> SegmentationPrediction:
    """What a predictor would give, with this mask."""
    gray_HW = np.random.default_rng(0).integers(0, 256, mask_HW.shape, dtype=np.uint8)
    return SegmentationPrediction(
        mask_HW=mask_HW,
        confidence_HW=gray_HW if confidence_HW is None else confidence_HW,
        uncertainty_HW={"entropy": 255 - gray_HW, "mutual-information": gray_HW // 2, "disagreement": gray_HW // 3},
        probs_KHW=probs_KHW,
        mean_entropy=0.25,
        mutual_information=0.125,
        view_agreement=0.75,
        windows=3,
    )


def answer(prediction: SegmentationPrediction, spec: ModelSpec, **options: Any) -> tuple[str, bytes]:
    """Content type and body, for options as a client sends them."""
    image_HWC = np.zeros((*prediction.mask_HW.shape, 3), dtype=np.uint8)
    asked = Asked(image_HWC=image_HWC, options=Options.model_validate(options))
    return render(prediction, asked, spec=spec, model=MODEL, clock=StageClock())
