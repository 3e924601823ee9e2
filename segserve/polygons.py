"""Outlines of regions as polygons in pixel coordinates: (0, 0) is the image's upper left corner.

They follow the pixels' edges, so that they hold exactly the region's pixels. Pixels that touch at a corner only are
different polygons of a region (4 neighbours): no ring touches itself, and every polygon is valid.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from segserve.problem import Problem
from segserve.regions import LabelMap

MAX_OUTLINE = 2_000_000
"""Pixel edges between regions; a million of them take some two seconds, and are some ten megabytes of text."""

Ring = list[tuple[int, int]]
MultiPolygon = list[list[Ring]]
"""Polygons of rings of points x, y; the first ring of each is its outline, the others are its holes."""


def trace(label_map: LabelMap, *, outside: int, simplify: float = 0.0) -> Mapping[int, MultiPolygon]:
    """The outlines of all regions of a map, by label.

    Args:
        label_map: the regions.
        outside: the label that is no region.
        simplify: corners that cut off less than this squared, in pixels, are left out. Neighbours stay in step: no
            gap and no overlap comes about, and no region is lost (Visvalingam and Whyatt 1993,
            https://doi.org/10.1179/000870493786962263, on the whole coverage). 0: exact.

    Raises:
        Problem: `too-large`, more than `MAX_OUTLINE` pixel edges.
    """
    labels_HW = label_map.labels_HW
    _check_outline(labels_HW)
    shapes = list(rasterio.features.shapes(labels_HW, mask=labels_HW != outside, connectivity=4))
    polygons = [[np.array(ring, dtype=np.int64) for ring in shape["coordinates"]] for shape, _ in shapes]
    if simplify and polygons:
        polygons = _simplify(polygons, min(simplify, sum(labels_HW.shape)))
    traced = defaultdict[int, MultiPolygon](list)
    for (_, label), rings in zip(shapes, polygons, strict=True):
        traced[int(label)].append([list(map(tuple, ring.tolist())) for ring in rings])
    return traced


def _check_outline(labels_HW: NDArray[np.uint8] | NDArray[np.int32]) -> None:
    edges = sum(int(np.count_nonzero(np.diff(labels_HW, axis=axis))) for axis in (0, 1))
    if edges > MAX_OUTLINE:
        raise Problem(
            "too-large",
            f"expected outlines of at most {MAX_OUTLINE} pixel edges, but got {edges}: "
            "ask for a larger min_area, or for masks=rle",
        )


def _simplify(polygons: list[list[NDArray[np.int64]]], tolerance: float) -> list[list[NDArray[np.int64]]]:
    """Simplify all at once. They get a point at each pixel first: neighbours must agree in every point they share."""
    shapes = np.array([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])
    dense = shapely.transform(shapely.segmentize(shapes, 1.0), np.rint)
    return [
        [shapely.get_coordinates(ring).astype(np.int64) for ring in (shape.exterior, *shape.interiors)]
        for shape in shapely.coverage_simplify(dense, tolerance)
    ]
