"""Outlines, judged by whether each pixel's centre lies in them, and by another library's rasteriser."""

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from segserve import polygons
from segserve.polygons import trace
from segserve.problem import Problem
from segserve.regions import LabelMap
from tests.masks import CASES, blobs, noise

OUTSIDE = 255
SMALL_MASKS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 2))


def shapes_of(mask_HW: NDArray[np.uint8], simplify: float = 0.0) -> dict[int, shapely.MultiPolygon]:
    traced = trace(LabelMap(labels_HW=mask_HW), outside=OUTSIDE, simplify=simplify)
    return {
        label: shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in outlines])
        for label, outlines in traced.items()
    }


def centres_inside(shape: shapely.MultiPolygon, size: tuple[int, int]) -> NDArray[np.bool_]:
    """By GEOS: the tracer is GDAL, whose own rasteriser might share its errors."""
    shapely.prepare(shape)
    y, x = np.indices(size) + 0.5
    return np.asarray(shapely.contains_xy(shape, x, y))


def check_exact(mask_HW: NDArray[np.uint8]) -> None:
    shapes = shapes_of(mask_HW)
    assert sorted(shapes) == np.unique(mask_HW[mask_HW != OUTSIDE]).tolist()
    for label, shape in shapes.items():
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == (mask_HW == label).sum()
        assert (centres_inside(shape, mask_HW.shape) == (mask_HW == label)).all()


@pytest.mark.parametrize("name", CASES)
def test_outlines_hold_exactly_their_pixels(name: str) -> None:
    check_exact(CASES[name])


@settings(deadline=None)
@given(mask_HW=SMALL_MASKS)
def test_outlines_of_any_mask_hold_exactly_their_pixels(mask_HW: NDArray[np.uint8]) -> None:
    check_exact(mask_HW)


@pytest.mark.parametrize("name", ["holes in holes", "noise", "odd", "holes that touch at corners"])
def test_rasterio_draws_the_mask_again(name: str) -> None:
    mask_HW = CASES[name]
    drawn_HW = rasterio.features.rasterize(
        [(shape, label) for label, shape in shapes_of(mask_HW).items()], mask_HW.shape, fill=OUTSIDE, dtype=np.uint8
    )
    assert (drawn_HW == mask_HW).all()


def test_what_is_outside_has_no_outline() -> None:
    mask_HW = np.array([[1, OUTSIDE], [OUTSIDE, OUTSIDE]], dtype=np.uint8)
    assert trace(LabelMap(labels_HW=mask_HW), outside=OUTSIDE) == {1: [[[(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]]]}


@pytest.mark.parametrize("simplify", [0.5, 1.5, 6.0])
@pytest.mark.parametrize("name", ["noise", "odd", "holes in holes", "single pixels", "checkerboard", "long runs"])
def test_simplified_neighbours_have_no_gap_and_no_overlap(name: str, simplify: float) -> None:
    mask_HW = CASES[name]
    shapes = list(shapes_of(mask_HW, simplify).values())
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    together = shapely.coverage_union_all(shapes)
    assert together.area == pytest.approx(sum(shape.area for shape in shapes))
    assert len(shapes) == len(np.unique(mask_HW))


def test_simplified_outlines_have_fewer_points_and_stay_near() -> None:
    mask_HW = blobs(120, 150, smooth=8)
    exact, simplified = shapes_of(mask_HW), shapes_of(mask_HW, 1.5)
    for label, shape in exact.items():
        assert shapely.get_num_coordinates(simplified[label]) < shapely.get_num_coordinates(shape) / 3
        assert simplified[label].symmetric_difference(shape).area < 0.05 * shape.area
        assert simplified[label].hausdorff_distance(shape) < 3


def test_the_largest_simplify_loses_no_region() -> None:
    mask_HW = blobs(53, 37)
    assert sorted(shapes_of(mask_HW, 1e300)) == np.unique(mask_HW).tolist()


def test_outlines_that_are_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "MAX_OUTLINE", 100)
    with pytest.raises(Problem, match=r"at most 100 pixel edges, but got \d+: ask for a larger min_area, or for masks"):
        shapes_of(noise(20, 20))
