"""How much of a data set is of each class, and the class weights that follow.

Dimensions: N images, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.layouts import SPLITS, Dataset
from training.lint.findings import ClassCount, ClassSummary
from training.lint.survey import Look, MaskFacts
from training.losses.cross_entropy import class_weights


def counts(looks: Iterable[Look], num_classes: int, *, ignore_index: int | None = None) -> NDArray[np.int64]:
    """(N, K + 1): the pixels of each class, then of all else; of a label one pixel. What cannot be read is left out.

    Args:
        looks: at N images.
        num_classes: K.
        ignore_index: counts as all else, even where it is a class's.
    """
    rows = [_count(look.truth, num_classes, ignore_index) for look in looks if look.truth is not None]
    return np.array(rows, dtype=np.int64).reshape(-1, num_classes + 1)


def counts_of(dataset: Dataset, looks: Iterable[Look]) -> NDArray[np.int64]:
    """`counts` by the data set's classes."""
    return counts(looks, len(dataset.classes), ignore_index=dataset.ignore_index)


def _count(truth: MaskFacts | int | None, num_classes: int, ignore_index: int | None) -> NDArray[np.int64]:
    row = np.zeros(num_classes + 1, dtype=np.int64)
    if isinstance(truth, int):
        row[truth] = 1
    elif truth is not None:
        counted = [index for index in range(num_classes) if index != ignore_index]
        is_class_V = np.isin(truth.values_V, counted) & (not truth.has_colors)
        row[truth.values_V[is_class_V]] = truth.counts_V[is_class_V]
        row[-1] = truth.counts_V[~is_class_V].sum()
    return row


def median_frequency_weights(pixels_NK1: NDArray[np.int64]) -> list[float | None]:
    """Those that `class_weights = "median-frequency"` trains with; None for a class that the split does not have."""
    if not pixels_NK1[:, :-1].any():
        return [None] * (pixels_NK1.shape[1] - 1)
    is_labels = (pixels_NK1.sum(axis=1) <= 1).all()
    counts_NK1 = torch.from_numpy(pixels_NK1.sum(axis=0, keepdims=True) if is_labels else pixels_NK1)
    return [weight or None for weight in class_weights("median-frequency", counts_NK1).tolist()]


def summarise_classes(dataset: Dataset, by_split: Mapping[str, Sequence[Look]]) -> tuple[ClassSummary, ...]:
    """Every class, with its share of every split."""
    num_classes = len(dataset.classes)
    pixels = {split: counts(looks, num_classes, ignore_index=dataset.ignore_index) for split, looks in by_split.items()}
    weights = median_frequency_weights(pixels.get(SPLITS[0], np.zeros((0, num_classes + 1), dtype=np.int64)))
    return tuple(
        ClassSummary(
            id=entry.id,
            name=entry.name,
            color=entry.color,
            splits={split: _class_count(rows, entry.id, dataset) for split, rows in pixels.items()},
            weight=weights[entry.id],
        )
        for entry in dataset.classes
    )


def _class_count(pixels_NK1: NDArray[np.int64], index: int, dataset: Dataset) -> ClassCount:
    own_N = pixels_NK1[:, index]
    return ClassCount(
        images=int((own_N > 0).sum()),
        pixels=int(own_N.sum()) if dataset.task == "segmentation" else None,
        share=float(own_N.sum() / max(pixels_NK1[:, :-1].sum(), 1)),
    )


def void_share(pixels_NK1: NDArray[np.int64]) -> float:
    """How much of a split counts nowhere, 0 to 1."""
    return float(pixels_NK1[:, -1].sum() / max(pixels_NK1.sum(), 1))
