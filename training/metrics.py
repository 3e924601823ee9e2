"""Scores, all of them from one integer confusion matrix, so that those of parts add up to those of the whole.

Intersection over union: Everingham et al. 2010 (PASCAL VOC); over the whole split, not image by image.

Dimensions: K classes; a matrix (K, K) has the truth as rows and the prediction as columns.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from segserve.spec import Task
from training.data import IGNORE

Confusion = NDArray[np.int64]

HEADLINE: dict[Task, str] = {"segmentation": "miou", "classification": "accuracy"}
"""The score a run is known by."""


def confusion_matrix(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], *, num_classes: int) -> Confusion:
    """Count (truth, prediction) pairs.

    Args:
        truth: class indices of any shape; `IGNORE` is not counted.
        predicted: class indices of the same shape, all below `num_classes`.
        num_classes: K.

    Returns:
        (K, K) int64.
    """
    valid = truth != IGNORE
    pairs = truth[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def merge(matrices: Iterable[Confusion], *, num_classes: int) -> Confusion:
    """The matrix of all parts together; zeros where there are none."""
    return sum(matrices, start=np.zeros((num_classes, num_classes), dtype=np.int64))


def class_iou(confusion_KK: Confusion) -> NDArray[np.float64]:
    """(K,) TP / (TP + FP + FN), 0 to 1; NaN for a class that neither truth nor prediction contains."""
    hits_K = confusion_KK.diagonal()
    return _ratio(hits_K, confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - hits_K)


def image_miou(confusion_KK: Confusion) -> float:
    """Mean IoU over the classes in one image's truth or prediction, 0 to 1; 1 where nothing counts."""
    iou_K = class_iou(confusion_KK)
    return float(np.nanmean(iou_K)) if not np.isnan(iou_K).all() else 1.0


def class_recall(confusion_KK: Confusion) -> NDArray[np.float64]:
    """(K,) TP / (TP + FN), 0 to 1; NaN for a class the truth does not contain."""
    return _ratio(confusion_KK.diagonal(), confusion_KK.sum(axis=1))


def accuracy(confusion_KK: Confusion) -> float:
    """Share of pixels or images that are right, 0 to 1; NaN where there are none."""
    return float(_ratio(np.trace(confusion_KK), confusion_KK.sum()))


def scores(confusion_KK: Confusion, *, task: Task) -> dict[str, float]:
    """`miou` and `pixel_accuracy`, or `accuracy` and `mean_recall`; means leave classes without a value out."""
    if task == "segmentation":
        return {"miou": _mean(class_iou(confusion_KK)), "pixel_accuracy": accuracy(confusion_KK)}
    return {"accuracy": accuracy(confusion_KK), "mean_recall": _mean(class_recall(confusion_KK))}


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
    return quotient


def _mean(values_K: NDArray[np.float64]) -> float:
    known_K = values_K[~np.isnan(values_K)]
    return float(known_K.mean()) if known_K.size else float("nan")
