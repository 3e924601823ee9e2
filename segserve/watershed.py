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
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from segserve.codec import NO_CLASS
from segserve.problem import Problem

NECK = 0.75
"""Objects are taken apart where the neck is narrower than this share of the narrower one's width. Two equal discs that
overlap come apart from a distance of 1.3 radii between their centres on."""
MAX_PIXELS = 25_000_000
"""The watershed needs some 60 bytes a pixel."""

BACKWARD_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Half of the 8 neighbours, so that each pair of pixels is met once."""


def split_touching(mask_HW: NDArray[np.uint8], components_HW: NDArray[np.int32]) -> NDArray[np.int32]:
    """Divide the connected components of each class into objects.

    Args:
        mask_HW: class indices.
        components_HW: connected components (8 neighbours) of the classes; 0 = none.

    Returns:
        Labels of the objects, 1, 2, ...; 0 where there is no component.

    Raises:
        Problem: `too-large`, more than `MAX_PIXELS` pixels.
    """
    if mask_HW.size > MAX_PIXELS:
        raise Problem(
            "too-large",
            f"expected at most {MAX_PIXELS} pixels with split=watershed, but got {mask_HW.size}: "
            "send a smaller image, or leave split out",
        )
    objects_HW = np.zeros_like(components_HW)
    for class_id in np.unique(mask_HW[mask_HW != NO_CLASS]).tolist():
        parts_HW = _split_class(mask_HW == class_id)
        objects_HW += np.where(parts_HW > 0, parts_HW + objects_HW.max(), 0).astype(np.int32)
    return objects_HW


def _split_class(region_HW: NDArray[np.bool_]) -> NDArray[np.int32]:
    if region_HW.all():  # nothing to measure a distance from
        return np.ones(region_HW.shape, dtype=np.int32)
    distance_HW = distance_transform_edt(region_HW).astype(np.float32)
    maxima_HW = label(local_maxima(distance_HW, connectivity=2) & region_HW, connectivity=2)
    basins_HW = watershed(-distance_HW, maxima_HW, mask=region_HW, connectivity=2)
    return _join_basins(basins_HW, distance_HW)


def _join_basins(basins_HW: NDArray[np.int32], distance_HW: NDArray[np.float32]) -> NDArray[np.int32]:
    """Join basins from the widest neck to the narrowest, as long as the neck is wide beside the lower maximum."""
    count = int(basins_HW.max()) + 1
    heights = np.zeros(count, dtype=np.float32)
    np.maximum.at(heights, basins_HW, distance_HW)
    leader = list(range(count))
    for first, second, saddle in _necks(basins_HW, distance_HW):
        lower, higher = sorted((_lead(leader, first), _lead(leader, second)), key=lambda basin: heights[basin])
        # One pixel is added to both: at the smallest scale, distances of 1 and 1.41 are no narrowing.
        if lower != higher and saddle + 1 >= NECK * (heights[lower] + 1):
            leader[lower] = higher
    leaders = np.array([_lead(leader, basin) for basin in range(count)])
    _, objects = np.unique(leaders, return_inverse=True)
    return objects.astype(np.int32)[basins_HW]


def _lead(leader: list[int], basin: int) -> int:
    """Who leads the basin's group; shortens the way for the next to ask (union-find)."""
    while leader[basin] != basin:
        leader[basin] = leader[leader[basin]]
        basin = leader[basin]
    return basin


def _necks(basins_HW: NDArray[np.int32], distance_HW: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs of basins that touch, with the greatest distance on the way from one to the other; the widest first."""
    pairs, saddles = zip(*(_steps(basins_HW, distance_HW, dy, dx) for dy, dx in BACKWARD_NEIGHBOURS), strict=True)
    keys, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
    widest = np.zeros(len(keys), dtype=np.float32)
    np.maximum.at(widest, inverse, np.concatenate(saddles))
    order = np.argsort(-widest, kind="stable")
    first, second = np.divmod(keys[order], int(basins_HW.max()) + 1)
    return list(zip(first.tolist(), second.tolist(), widest[order].tolist(), strict=True))


def _steps(
    basins_HW: NDArray[np.int32], distance_HW: NDArray[np.float32], dy: int, dx: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Steps from a pixel to its neighbour that lead into another basin: the two as one number, and the lower height."""
    height, width = basins_HW.shape
    here = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
    there = np.s_[dy:, max(0, dx) : width + min(0, dx)]
    crossing = (basins_HW[here] != basins_HW[there]) & (basins_HW[here] > 0) & (basins_HW[there] > 0)
    ends = np.stack([basins_HW[here][crossing], basins_HW[there][crossing]]).astype(np.int64)
    saddles = np.minimum(distance_HW[here][crossing], distance_HW[there][crossing])
    return ends.min(axis=0) * (int(basins_HW.max()) + 1) + ends.max(axis=0), saddles
