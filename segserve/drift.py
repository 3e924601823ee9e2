"""What is kept of the answers so that a change of them shows: how often each class, and how sure.

Counted by the service, and by export on held-out images; Prometheus compares the two as a population stability index
(Siddiqi 2006, Credit Risk Scorecards), see deploy/prometheus/rules.yaml.
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from PIL import Image

from segserve import metrics
from segserve.prediction import Prediction, SegmentationPrediction
from segserve.spec import ModelSpec

BINS = tuple(f"{bound:g}" for bound in metrics.SHARES)
"""Of confidence, each named by its upper bound, which belongs to it."""


class Summary(NamedTuple):
    """One answer in short."""

    counts_K: list[int]
    """Pixels of each class; of a label, 1 for the most probable class."""
    confidence: float
    """Mean probability of the chosen class, 0 to 1."""


def summary(prediction: Prediction, *, num_classes: int) -> Summary:
    """What is counted of an answer."""
    if isinstance(prediction, SegmentationPrediction):
        counts_K = Image.fromarray(prediction.mask_HW).histogram()[:num_classes]
        return Summary(counts_K, float(prediction.confidence_HW.mean()) / 255)
    chosen = int(prediction.probs_K.argmax())
    return Summary(np.eye(num_classes, dtype=int)[chosen].tolist(), float(prediction.probs_K[chosen]))


def bin_of(confidence: float) -> str:
    """The name of the bin that a confidence falls in."""
    return BINS[min(bisect_left(metrics.SHARES, confidence), len(BINS) - 1)]


class AnswerCounter:
    """Counts a model's answers. From its first moment every series is there, at 0, and so is the reference, if any.

    Args:
        spec: of the model.
        name: as the server knows it.
        version: likewise; another version has another reference.
    """

    def __init__(self, spec: ModelSpec, *, name: str, version: str) -> None:
        by_class = metrics.CLASS_PIXELS if spec.task == "segmentation" else metrics.CLASS_IMAGES
        self._classes = [by_class.labels(name, version, entry) for entry in spec.class_names]
        self._bins = {entry: metrics.CONFIDENCE_IMAGES.labels(name, version, entry) for entry in BINS}
        self._confidence = metrics.CONFIDENCE.labels(name)
        if spec.reference is not None:
            for entry, share in zip(spec.class_names, spec.reference.class_shares, strict=True):
                metrics.REFERENCE_CLASS_SHARE.labels(name, version, entry).set(share)
            for entry, share in spec.reference.confidence_shares.items():
                metrics.REFERENCE_CONFIDENCE_SHARE.labels(name, version, entry).set(share)

    def count(self, prediction: Prediction) -> None:
        """Take an answer in."""
        counts_K, confidence = summary(prediction, num_classes=len(self._classes))
        self._confidence.observe(confidence)
        self._bins[bin_of(confidence)].inc()
        for counter, count in zip(self._classes, counts_K, strict=True):
            counter.inc(count)
