"""Regions of a mask: classes and objects, each with where it lies and how large it is.

A region is kept as its runs, the stretches of one label along the image's rows or columns: they are found in one pass
for all regions, however many there are and however far their boxes overlap, and every encoding is made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import rasterio.features
from numpy.typing import NDArray
from skimage.measure import label

from segserve.png import NO_CLASS
from segserve.problem import Problem
from segserve.spec import Split
from segserve.watershed import split_touching

MAX_OBJECTS = 20_000
MAX_RUNS = 10_000_000
"""Along the rows, or the columns, of a mask: each takes up to 80 bytes on its way to an answer."""
NO_OBJECT = 0
"""Label of pixels that belong to no object."""

Labels = NDArray[np.uint8] | NDArray[np.int32]
Ints = NDArray[np.int64]


class Box(NamedTuple):
    """Smallest upright rectangle that holds all pixels of a region, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Stretches of one label along the rows of an image, in reading order, R of them; none crosses a row's end."""

    starts_R: Ints
    """Index of the first pixel in the flattened image."""
    lengths_R: Ints
    labels_R: Ints

    @cached_property
    def _by_label(self) -> tuple[Ints, Ints]:
        """The runs' order by label, and where each label begins in it."""
        order_R = np.argsort(self.labels_R, kind="stable")
        return order_R, np.searchsorted(self.labels_R[order_R], np.arange(self.labels_R.max() + 2))

    def of(self, label: int) -> tuple[Ints, Ints]:
        """Starts and lengths of one label's runs, in reading order."""
        order_R, begins = self._by_label
        mine = order_R[begins[label] : begins[label + 1]]
        return self.starts_R[mine], self.lengths_R[mine]


def find_runs(labels_HW: Labels) -> Runs:
    """All runs along the rows of an image of at least one pixel.

    Raises:
        Problem: `too-large`, more than `MAX_RUNS`.
    """
    flat = labels_HW.ravel()
    is_start = np.ones(flat.size, dtype=np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[:: labels_HW.shape[1]] = True
    if (num_runs := int(is_start.sum())) > MAX_RUNS:
        raise Problem(
            "too-large",
            f"expected at most {MAX_RUNS} runs of one class along the mask's rows or columns, but got {num_runs}: ask "
            "for format=png, or for a larger min_area",
        )
    starts_R = np.flatnonzero(is_start)
    return Runs(
        starts_R=starts_R,
        lengths_R=np.diff(starts_R, append=flat.size),
        labels_R=flat[starts_R].astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """Which region each pixel belongs to, (H, W)."""

    labels_HW: Labels

    @cached_property
    def rows(self) -> Runs:
        return find_runs(self.labels_HW)

    @cached_property
    def columns(self) -> Runs:
        """The runs of the transposed image."""
        return find_runs(self.labels_HW.T.copy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """One class, or one object of a class."""

    map: LabelMap
    label: int
    """Its value in the map."""
    class_id: int
    box: Box
    area: int
    """Pixels."""
    centroid: tuple[float, float]
    """x, y of the mean of its pixels' centres; the first pixel's centre is (0.5, 0.5)."""
    confidence: float
    """Mean of its pixels' confidence, 0 to 1."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole image."""
        height, width = self.map.labels_HW.shape
        return height, width


def sieve(mask_HW: NDArray[np.uint8], min_area: int) -> NDArray[np.uint8]:
    """Give regions (8 neighbours) of fewer than `min_area` pixels the class of the largest region beside them.

    A region stays as it is where neither a neighbour, nor the neighbours' largest neighbours, are that large.
    """
    if not 1 < min_area < mask_HW.size:
        return mask_HW
    return np.asarray(rasterio.features.sieve(mask_HW, min_area, connectivity=8), dtype=np.uint8)


def find_classes(mask_HW: NDArray[np.uint8], confidence_HW: NDArray[np.uint8]) -> tuple[Region, ...]:
    """One region for each class that is present, in the order of the classes.

    Args:
        mask_HW: class indices; `NO_CLASS` where no region is wanted.
        confidence_HW: 255 = 1.
    """
    table = _measure(LabelMap(labels_HW=mask_HW), confidence_HW)
    return tuple(table.region(label, class_id=label) for label in table.present if label != NO_CLASS)


def find_objects(
    mask_HW: NDArray[np.uint8],
    confidence_HW: NDArray[np.uint8],
    *,
    split: Split = "none",
    min_area: int = 0,
) -> tuple[Region, ...]:
    """The connected components (8 neighbours) of each class, in the order of the classes, then of their first pixels.

    Args:
        mask_HW: class indices; `NO_CLASS` where no object is wanted.
        confidence_HW: 255 = 1.
        split: `watershed`: touching objects are taken apart, see `segserve.watershed`.
        min_area: smaller objects are left out.

    Raises:
        Problem: `too-large`, more than `MAX_OBJECTS` objects.
    """
    labels_HW = label(mask_HW, background=NO_CLASS, connectivity=2).astype(np.int32, copy=False)
    if split == "watershed":
        labels_HW = split_touching(mask_HW, labels_HW)
    table = _measure(LabelMap(labels_HW=labels_HW), confidence_HW)
    kept = [one for one in table.present if one != NO_OBJECT and table.areas[one] >= min_area]
    if len(kept) > MAX_OBJECTS:
        raise Problem(
            "too-large", f"expected at most {MAX_OBJECTS} objects, but got {len(kept)}: ask for a larger min_area"
        )
    classes = mask_HW.ravel()[table.firsts]
    in_order = sorted(kept, key=lambda one: (classes[one], table.firsts[one]))
    return tuple(table.region(one, class_id=int(classes[one])) for one in in_order)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Figures of every label of a map; rows of labels that do not occur mean nothing."""

    map: LabelMap
    present: Sequence[int]
    firsts: Ints
    """Index of the first pixel."""
    areas: Ints
    sums: NDArray[np.float64]
    """Of x, y and confidence over the pixels, (labels, 3)."""
    boxes: Ints
    """Left, top, right, bottom; the latter two are outside, (labels, 4)."""

    def region(self, label: int, *, class_id: int) -> Region:
        area = int(self.areas[label])
        x, y, confidence = (self.sums[label] / area).tolist()
        left, top, right, bottom = self.boxes[label].tolist()
        return Region(
            map=self.map,
            label=label,
            class_id=class_id,
            box=Box(left, top, right - left, bottom - top),
            area=area,
            centroid=(round(x, 3), round(y, 3)),
            confidence=round(confidence / 255, 4),
        )


def _measure(label_map: LabelMap, confidence_HW: NDArray[np.uint8]) -> _Table:
    """Every figure as a sum or an extreme over the runs."""
    runs = label_map.rows
    width = label_map.labels_HW.shape[1]
    top_R, left_R = np.divmod(runs.starts_R, width)
    right_R = left_R + runs.lengths_R
    count = int(runs.labels_R.max()) + 1
    summands_R = (
        (left_R + right_R) / 2 * runs.lengths_R,
        (top_R + 0.5) * runs.lengths_R,
        np.add.reduceat(confidence_HW.ravel(), runs.starts_R, dtype=np.int64),
    )
    sums = [np.bincount(runs.labels_R, weights=values_R, minlength=count) for values_R in summands_R]
    areas = np.bincount(runs.labels_R, weights=runs.lengths_R, minlength=count).astype(np.int64)
    boxes = np.stack(
        [
            _extreme(np.minimum, runs.labels_R, left_R, count),
            _extreme(np.minimum, runs.labels_R, top_R, count),
            _extreme(np.maximum, runs.labels_R, right_R, count),
            _extreme(np.maximum, runs.labels_R, top_R + 1, count),
        ],
        axis=1,
    )
    return _Table(
        map=label_map,
        present=np.flatnonzero(areas).tolist(),
        firsts=_extreme(np.minimum, runs.labels_R, runs.starts_R, count),
        areas=areas,
        sums=np.stack(sums, axis=1),
        boxes=boxes,
    )


def _extreme(ufunc: np.ufunc, labels_R: Ints, values_R: Ints, count: int) -> Ints:
    """Least or largest value of each label; 0 for labels that do not occur."""
    extremes = np.zeros(count, dtype=np.int64)
    extremes[labels_R] = values_R
    ufunc.at(extremes, labels_R, values_R)
    return extremes
