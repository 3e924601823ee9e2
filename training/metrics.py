"""Scores, all of them from integer confusion matrices, so that those of parts add up to those of the whole.

Intersection over union: Everingham et al. 2010 (PASCAL VOC); over the whole split, not image by image. Image by image
it is called `miou_i` and `miou_c`: Wang et al. 2023, https://arxiv.org/abs/2310.19252.

Dimensions: K classes, N images; a matrix (K, K) has the truth as rows and the prediction as columns.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segserve.spec import Task
from training.data import IGNORE

Confusion = NDArray[np.int64]

HEADLINE: dict[Task, Literal["miou", "accuracy"]] = {"segmentation": "miou", "classification": "accuracy"}
"""The score a run is known by."""

WORST_SHARE = 0.1
"""Of the images, for the scores of the worst ones; one image at least."""


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


def class_precision(confusion_KK: Confusion) -> NDArray[np.float64]:
    """(K,) TP / (TP + FP), 0 to 1; NaN for a class that is never predicted."""
    return _ratio(confusion_KK.diagonal(), confusion_KK.sum(axis=0))


def weighted_iou(confusion_KK: Confusion) -> float:
    """Mean IoU, each class weighted by its share of the truth, 0 to 1; NaN where there is nothing."""
    iou_K, count_K = class_iou(confusion_KK), confusion_KK.sum(axis=1)
    return float(np.nansum(iou_K * count_K) / count_K.sum()) if count_K.any() else math.nan


def accuracy(confusion_KK: Confusion) -> float:
    """Share of pixels or images that are right, 0 to 1; NaN where there are none."""
    return float(_ratio(np.trace(confusion_KK), confusion_KK.sum()))


def scores(confusion_KK: Confusion, *, task: Task) -> dict[str, float]:
    """`miou` and `pixel_accuracy`, or `accuracy` and `mean_recall`; means leave classes without a value out."""
    if task == "segmentation":
        return {"miou": mean_of_known(class_iou(confusion_KK)), "pixel_accuracy": accuracy(confusion_KK)}
    return {"accuracy": accuracy(confusion_KK), "mean_recall": mean_of_known(class_recall(confusion_KK))}


def mask_scores(confusion_KK: Confusion, images: Sequence[Confusion]) -> dict[str, float]:
    """Further ones of masks, 0 to 1: of the whole split's matrix, and of its images' ones."""
    return {
        "class_accuracy": mean_of_known(class_recall(confusion_KK)),
        "weighted_iou": weighted_iou(confusion_KK),
        **image_level_scores(images),
    }


def image_level_scores(images: Sequence[Confusion]) -> dict[str, float]:
    """Mean IoU with each image's classes counted once, whatever their size: large objects do not hide small ones.

    An image's class counts where its truth contains it. `miou_i`: the mean over an image's classes, then over images;
    `miou_c`: the mean over a class's images, then over classes. With `_worst10` of the worst tenth of the images (for
    `miou_c`, of each class's images) only.

    Args:
        images: one matrix an image; those that count nothing are left out.
    """
    iou_NK = np.array([np.where(matrix.any(axis=1), class_iou(matrix), np.nan) for matrix in images if matrix.any()])
    rows, columns = ([row[~np.isnan(row)] for row in table] for table in (iou_NK, iou_NK.T))
    of_images, of_classes = np.array([mean_of_known(row) for row in rows]), [row for row in columns if row.size]
    return {
        "miou_i": mean_of_known(of_images),
        "miou_c": mean_of_known(np.array([row.mean() for row in of_classes])),
        "miou_i_worst10": mean_of_known(_worst(of_images)),
        "miou_c_worst10": mean_of_known(np.array([_worst(row).mean() for row in of_classes])),
    }


def _worst(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sort(values_N)[: max(1, int(WORST_SHARE * len(values_N)))]


def mean_of_known(values: NDArray[np.float64]) -> float:
    """The mean of all that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
    return quotient
