"""How long each form of an answer takes, and how many bytes it is: `python -m bench.forms`.

Runs without a model, on a made-up mask of smooth regions. Times are of the processor, the better of two, so that other
work on the machine matters little. Figures go into docs/answers.md by hand, dated.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from segserve.api import ModelInfo, Options
from segserve.clock import StageClock
from segserve.prediction import SegmentationPrediction
from segserve.problem import Problem
from segserve.render import Asked, render
from segserve.spec import ClassSpec, ModelSpec, NetworkSpec, PreprocessSpec, Provenance

SIDE, CLASSES, SMOOTH = 1024, 4, 24
LARGER = 6, 7
"""How often the mask is repeated in height and width for the large one: 44 megapixels."""
REPEATS = 2
MODEL = ModelInfo(name="bench", version="1", digest="")

ASKED: dict[str, dict[str, Any]] = {
    "png": {"format": "png"},
    "png, overlay": {"format": "png", "render": "overlay"},
    "json": {"format": "json"},
    "json, polygons": {"format": "json", "masks": "polygons"},
    "json, polygons, simplify=1": {"format": "json", "masks": "polygons", "simplify": 1},
    "json, objects": {"format": "json", "objects": True},
    "json, one class, objects, watershed": {"format": "json", "objects": True, "split": "watershed", "classes": "1"},
    "coco": {"format": "coco"},
    "cvat": {"format": "cvat"},
    "labelstudio": {"format": "labelstudio"},
    "hf": {"format": "hf"},
    "npz": {"format": "npz"},
    "png, min_area=50": {"format": "png", "min_area": 50},
}


def main() -> int:
    """Measure and print; returns the exit code."""
    argparse.ArgumentParser(prog="python -m bench.forms", description=__doc__).parse_args()
    mask_HW = _mask()
    large_HW = np.tile(mask_HW, LARGER)
    print(f"{'':36} {mask_HW.size / 1e6:.0f} megapixel{'':12}{large_HW.size / 1e6:.0f} megapixels")
    for name, asked in ASKED.items():
        cells = (f"{_measure(each_HW, asked):>22}" for each_HW in (mask_HW, large_HW))
        print(f"{name:36}" + "".join(cells), flush=True)
    return 0


def _mask() -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    fields = [gaussian_filter(random.normal(size=(SIDE, SIDE)), SMOOTH, mode="wrap") for _ in range(CLASSES)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def _measure(mask_HW: NDArray[np.uint8], asked: dict[str, Any]) -> str:
    options = Options.model_validate(asked)
    seconds, num_bytes = [], 0
    for _ in range(REPEATS):
        prediction = _prediction(mask_HW, with_probs="npz" in options.format)
        request = Asked(image_HWC=np.repeat(mask_HW[..., None] * 60, 3, axis=2), options=options)
        start = time.process_time()
        try:
            _, body = render(prediction, request, spec=_spec(), model=MODEL, clock=StageClock())
        except Problem:
            return "refused"
        seconds.append(time.process_time() - start)
        num_bytes = len(body)
    return f"{min(seconds) * 1000:.0f} ms {num_bytes / 1000:.0f} kB"


def _prediction(mask_HW: NDArray[np.uint8], *, with_probs: bool) -> SegmentationPrediction:
    """Sure of everything but the outlines, as networks are."""
    probs_KHW = np.stack([(mask_HW == index) * np.uint8(250) for index in range(CLASSES)]) if with_probs else None
    return SegmentationPrediction(
        mask_HW=mask_HW,
        confidence_HW=np.full_like(mask_HW, 250),
        uncertainty_HW={},
        probs_KHW=probs_KHW,
        mean_entropy=0.0,
        mutual_information=0.0,
        view_agreement=1.0,
        windows=1,
    )


def _spec() -> ModelSpec:
    return ModelSpec(
        name="bench",
        task="segmentation",
        network=NetworkSpec(),
        classes=tuple(ClassSpec(id=index, name=str(index), color=(index * 80, 0, 0)) for index in range(CLASSES)),
        preprocess=PreprocessSpec(working_side=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        provenance=Provenance(data_digest="none", recipe={}, commit="none", seed=0, scores={}),
    )


if __name__ == "__main__":
    sys.exit(main())
