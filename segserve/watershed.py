"""Touching objects are taken apart where their outline narrows: a watershed on the distance map.

The distance map holds, for each pixel of a class, how far the nearest pixel outside it is; its maxima are the middles
of the objects, its saddles half the width of the necks between them. The watershed (Vincent and Soille 1991,
https://doi.org/10.1109/34.87344; flooding from markers: Meyer 1994, https://doi.org/10.1016/0165-1684(94)90060-4)
gives each pixel to one maximum. Rough outlines have many maxima, so that basins are joined again unless the neck
between them is narrow beside both: the dynamics of Grimaud 1992 (https://doi.org/10.1117/12.60650), but as a ratio, so
that the answer does not depend on the image's scale.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, maximum
from skimage.measure import label
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from segserve.png import NO_CLASS
from segserve.problem import Problem

NECK = 0.8
"""Objects are taken apart where the neck is narrower than this share of the narrower one's width. A bend or a fork of a
bar is no end of it: the widest disc in a bend is 1 / 0.85 of the bar's width, in a fork 1 / 0.8."""
BLUR = 1.5
"""Pixels that both widths are increased by: half a pixel more or less is no narrowing."""
MAX_PIXELS = 25_000_000
"""The watershed needs some 50 bytes a pixel."""
MAX_WORK = 200_000_000
"""Pixels in the boxes around all classes: 20 s of a core."""

HALF_OF_THE_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""dy, dx: each pair of pixels is met once."""


def split_touching(mask_HW: NDArray[np.uint8], components_HW: NDArray[np.int32]) -> NDArray[np.int32]:
    """Divide the connected components of each class into objects.

    Args:
        mask_HW: class indices.
        components_HW: connected components (8 neighbours) of the classes; 0 = none.

    Returns:
        Labels of the objects, some numbers from 1 on; 0 where there is no component.

    Raises:
        Problem: `too-large`, more than `MAX_PIXELS` pixels, or `MAX_WORK` of them in the boxes around the classes.
    """
    if mask_HW.size > MAX_PIXELS:
        raise Problem(
            "too-large",
            f"expected at most {MAX_PIXELS} pixels with split=watershed, but got {mask_HW.size}: "
            "send a smaller image, or leave split out",
        )
    boxes = _boxes(mask_HW)
    work = sum(mask_HW[box].size for box in boxes.values())
    if work > MAX_WORK:
        raise Problem(
            "too-large",
            f"expected at most {MAX_WORK} pixels in the boxes around the classes with split=watershed, but got {work} "
            f"around {len(boxes)} of them: ask for fewer classes, send a smaller image, or leave split out",
        )
    distance_HW = np.ones(mask_HW.shape, dtype=np.float32)
    basins_HW = np.zeros_like(components_HW)
    num_basins = 0
    for class_id, box in boxes.items():
        region_hw = mask_HW[box] == class_id
        if region_hw.size == mask_HW.size and region_hw.all():  # no outside to measure the distance to, and no neck
            return components_HW
        distance_hw = distance_transform_edt(region_hw)[region_hw]
        distance_HW[box][region_hw] = distance_hw
        basins_hw = _basins(distance_HW[box], region_hw)[region_hw]
        basins_HW[box][region_hw] = num_basins + basins_hw
        num_basins += int(basins_hw.max())
    return _join_basins(basins_HW, distance_HW, components_HW)


def _boxes(mask_HW: NDArray[np.uint8]) -> dict[int, tuple[slice, slice]]:
    """The part of the image around each class, with a margin of one pixel in which the nearest outside can be seen."""
    found = find_objects(mask_HW.astype(np.int32) + 1)
    return {
        class_id: (_wider(box[0]), _wider(box[1]))
        for class_id, box in enumerate(found)
        if box is not None and class_id != NO_CLASS
    }


def _wider(side: slice) -> slice:
    return slice(max(0, side.start - 1), side.stop + 1)


def _basins(distance_HW: NDArray[np.float32], region_HW: NDArray[np.bool_]) -> NDArray[np.int32]:
    """One for each maximum of the distance in the region; outside it, 0."""
    heights_HW = np.where(region_HW, distance_HW, 0)
    maxima_HW = label(local_maxima(heights_HW, connectivity=2), connectivity=2)
    return np.asarray(watershed(-heights_HW, maxima_HW, mask=region_HW, connectivity=2), dtype=np.int32)


def _join_basins(
    basins_HW: NDArray[np.int32], distance_HW: NDArray[np.float32], components_HW: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Join basins from the widest neck to the narrowest, as long as the neck is wide beside the lower maximum."""
    heights = maximum(distance_HW, basins_HW, np.arange(basins_HW.max() + 1))
    leader = list(range(len(heights)))
    for first, second, saddle in _necks(basins_HW, distance_HW, components_HW):
        lower, higher = sorted((_lead(leader, first), _lead(leader, second)), key=lambda basin: heights[basin])
        if lower != higher and saddle + BLUR >= NECK * (heights[lower] + BLUR):
            leader[lower] = higher
    leaders = np.array([_lead(leader, basin) for basin in range(len(leader))], dtype=np.int32)
    return leaders[basins_HW]


def _lead(leader: list[int], basin: int) -> int:
    """Who leads the basin's group; shortens the way for the next to ask (union-find)."""
    while leader[basin] != basin:
        leader[basin] = leader[leader[basin]]
        basin = leader[basin]
    return basin


def _necks(
    basins_HW: NDArray[np.int32], distance_HW: NDArray[np.float32], components_HW: NDArray[np.int32]
) -> list[tuple[int, int, float]]:
    """Pairs of basins that touch, with the greatest distance on the way from one to the other; the widest first."""
    steps = [_steps(basins_HW, distance_HW, components_HW, dy, dx) for dy, dx in HALF_OF_THE_NEIGHBOURS]
    pairs, saddles = map(np.concatenate, zip(*steps, strict=True))
    order = np.lexsort((pairs, -saddles))
    _, widest = np.unique(pairs[order], return_index=True)
    in_order = order[np.sort(widest)]
    first, second = np.divmod(pairs[in_order], int(basins_HW.max()) + 1)
    return list(zip(first.tolist(), second.tolist(), saddles[in_order].tolist(), strict=True))


def _steps(
    basins_HW: NDArray[np.int32],
    distance_HW: NDArray[np.float32],
    components_HW: NDArray[np.int32],
    dy: int,
    dx: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Steps to a neighbour in another basin of the component: the basins as one number, and the lesser distance."""
    height, width = basins_HW.shape
    here = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
    there = np.s_[dy:, max(0, dx) : width + min(0, dx)]
    crossing = (basins_HW[here] != basins_HW[there]) & (components_HW[here] == components_HW[there])
    ends = np.stack([basins_HW[here][crossing], basins_HW[there][crossing]]).astype(np.int64)
    saddles = np.minimum(distance_HW[here][crossing], distance_HW[there][crossing])
    return ends.min(axis=0) * (int(basins_HW.max()) + 1) + ends.max(axis=0), saddles
