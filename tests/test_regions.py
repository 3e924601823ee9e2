"""Regions against scipy's own count of the same things, one region at a time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from segserve import regions
from segserve.png import NO_CLASS
from segserve.problem import Problem
from segserve.regions import Region, find_classes, find_objects, find_runs, sieve
from tests.masks import CASES, blobs, noise

EIGHT = np.ones((3, 3))
SMALL_MASKS = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2))


def gray(mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, mask_HW.shape, dtype=np.uint8)


def figures(region: Region) -> dict[str, Any]:
    return {name: getattr(region, name) for name in ("class_id", "box", "area", "centroid", "confidence")}


def slow_figures(inside_HW: NDArray[np.bool_], class_id: int, confidence_HW: NDArray[np.uint8]) -> dict[str, Any]:
    y, x = np.nonzero(inside_HW)
    return {
        "class_id": class_id,
        "box": (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1),
        "area": len(x),
        "centroid": pytest.approx((x.mean() + 0.5, y.mean() + 0.5), abs=6e-4),
        "confidence": pytest.approx(confidence_HW[inside_HW].mean() / 255, abs=6e-5),
    }


def slow_objects(mask_HW: NDArray[np.uint8], confidence_HW: NDArray[np.uint8]) -> list[dict[str, Any]]:
    found = []
    for class_id in range(NO_CLASS):
        components_HW, count = ndimage.label(mask_HW == class_id, EIGHT)
        found += [slow_figures(components_HW == n, class_id, confidence_HW) for n in range(1, count + 1)]
    return found


@pytest.mark.parametrize("name", ["single pixels", "holes in holes", "1 x 1", "odd", "checkerboard", "empty classes"])
def test_objects_are_the_components_of_each_class_in_order(name: str) -> None:
    mask_HW, confidence_HW = CASES[name], gray(CASES[name])
    assert [figures(found) for found in find_objects(mask_HW, confidence_HW)] == slow_objects(mask_HW, confidence_HW)


@settings(deadline=None)
@given(mask_HW=SMALL_MASKS)
def test_objects_of_any_mask_are_its_components(mask_HW: NDArray[np.uint8]) -> None:
    confidence_HW = gray(mask_HW)
    assert [figures(found) for found in find_objects(mask_HW, confidence_HW)] == slow_objects(mask_HW, confidence_HW)


@pytest.mark.parametrize("name", CASES)
def test_classes_are_the_present_ones_with_their_figures(name: str) -> None:
    mask_HW, confidence_HW = CASES[name], gray(CASES[name])
    expected = [slow_figures(mask_HW == index, index, confidence_HW) for index in np.unique(mask_HW).tolist()]
    assert [figures(found) for found in find_classes(mask_HW, confidence_HW)] == expected


def test_classes_not_asked_for_are_no_region() -> None:
    mask_HW = np.array([[1, NO_CLASS], [NO_CLASS, NO_CLASS]], dtype=np.uint8)
    assert [found.class_id for found in find_classes(mask_HW, mask_HW)] == [1]
    assert [found.class_id for found in find_objects(mask_HW, mask_HW)] == [1]


def test_no_class_asked_for_is_present() -> None:
    mask_HW = np.full((3, 4), NO_CLASS, dtype=np.uint8)
    assert find_classes(mask_HW, mask_HW) == find_objects(mask_HW, mask_HW, split="watershed") == ()


def test_pixels_that_touch_at_a_corner_are_one_object() -> None:
    assert len(find_objects(np.eye(4, dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8))) == 2


def test_objects_below_min_area_are_left_out() -> None:
    mask_HW = blobs(53, 37)
    areas = [found.area for found in find_objects(mask_HW, mask_HW)]
    kept = [found.area for found in find_objects(mask_HW, mask_HW, min_area=40)]
    assert kept == [area for area in areas if area >= 40] != areas


def test_too_many_objects_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_OBJECTS", 6)
    mask_HW = CASES["single pixels"]
    with pytest.raises(Problem, match=r"expected at most 6 objects, but got 7: ask for a larger min_area") as raised:
        find_objects(mask_HW, mask_HW)
    assert raised.value.status == 413


@pytest.mark.parametrize("shape", [(9, 1), (1, 9)])
def test_masks_of_too_many_runs_are_refused(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of an image one pixel wide is one, whatever it shows."""
    monkeypatch.setattr(regions, "MAX_RUNS", 8)
    labels = regions.LabelMap(labels_HW=np.zeros(shape, dtype=np.uint8))
    with pytest.raises(
        Problem, match=r"expected at most 8 runs of one class .* but got 9: ask for format=png"
    ) as raised:
        assert labels.rows.lengths_R.tolist() == labels.columns.lengths_R.tolist()
    assert raised.value.status == 413


def test_min_area_brings_objects_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_OBJECTS", 6)
    mask_HW = CASES["single pixels"]
    assert [found.class_id for found in find_objects(mask_HW, mask_HW, min_area=2)] == [0, 2]


@settings(deadline=None)
@given(mask_HW=SMALL_MASKS)
def test_runs_give_the_mask_back(mask_HW: NDArray[np.uint8]) -> None:
    runs = find_runs(mask_HW)
    assert np.repeat(runs.labels_R, runs.lengths_R).tolist() == mask_HW.ravel().tolist()
    assert (runs.starts_R % mask_HW.shape[1] + runs.lengths_R <= mask_HW.shape[1]).all()


def test_a_small_region_takes_the_class_of_the_largest_beside_it() -> None:
    mask_HW = np.zeros((6, 10), dtype=np.uint8)
    mask_HW[:, 6:] = 1
    mask_HW[2:4, 5:7] = 2  # touches 0 (34 pixels) and 1 (22)
    sieved_HW = sieve(mask_HW, 5)
    assert (sieved_HW[2:4, 5:7] == 0).all()
    assert (sieved_HW != mask_HW).sum() == 4
    assert (sieve(mask_HW, 4) == mask_HW).all()


@pytest.mark.parametrize("min_area", [0, 1, 40 * 61, 10**30])
def test_areas_that_no_or_every_region_is_below_change_nothing(min_area: int) -> None:
    mask_HW = noise(40, 61)
    assert (sieve(mask_HW, min_area) == mask_HW).all()


def test_after_the_sieve_no_region_is_smaller() -> None:
    mask_HW = blobs(90, 120, smooth=3)
    areas = [found.area for found in find_objects(sieve(mask_HW, 30), mask_HW)]
    assert min(areas) >= 30 > min(found.area for found in find_objects(mask_HW, mask_HW))


def test_the_sieve_leaves_what_it_is_given_alone() -> None:
    mask_HW = blobs(53, 37)
    before_HW = mask_HW.copy()
    sieve(mask_HW, 30)
    assert (mask_HW == before_HW).all()
