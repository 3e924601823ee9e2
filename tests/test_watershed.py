"""What is taken apart, and what is not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from segserve import watershed
from segserve.problem import Problem
from segserve.regions import find_objects
from tests.masks import blobs, noise

Y, X = np.indices((120, 180))
OUTSIDE = 255


def disc(y: float, x: float, radius: float) -> NDArray[np.bool_]:
    return (Y - y) ** 2 + (X - x) ** 2 <= radius**2


def areas(inside_HW: NDArray[np.bool_]) -> list[int]:
    mask_HW = np.where(inside_HW, 1, OUTSIDE).astype(np.uint8)
    return [found.area for found in find_objects(mask_HW, mask_HW, split="watershed")]


@pytest.mark.parametrize(("radius", "distance"), [(5, 10), (10, 16), (30, 42)])
def test_discs_that_touch_come_apart_in_the_middle(radius: int, distance: int) -> None:
    both_HW = disc(60, 60, radius) | disc(60, 60 + distance, radius)
    left, right = areas(both_HW)
    assert left + right == both_HW.sum()
    assert left == pytest.approx(right, rel=0.15)


@pytest.mark.parametrize("radius", [5, 10, 30])
def test_discs_that_cover_each_other_by_half_stay_one(radius: int) -> None:
    assert len(areas(disc(60, 60, radius) | disc(60, 60 + 0.9 * radius, radius))) == 1


def test_a_small_disc_comes_off_a_large_one() -> None:
    assert len(areas(disc(60, 60, 40) | disc(60, 112, 15))) == 2


def test_three_in_a_row_are_three() -> None:
    assert len(areas(disc(60, 30, 20) | disc(60, 64, 20) | disc(60, 98, 20))) == 3


@pytest.mark.parametrize("shape", ["disc", "bar", "frame", "line", "diagonal"])
def test_what_has_no_neck_stays_one(shape: str) -> None:
    shapes = {
        "disc": disc(60, 90, 50),
        "bar": (np.abs(Y - 60) < 8) & (np.abs(X - 90) < 70),
        "frame": (np.maximum(np.abs(Y - 60), np.abs(X - 90)) // 4 == 10),
        "line": Y == 7,
        "diagonal": Y == X,
    }
    assert areas(shapes[shape]) == [shapes[shape].sum()]


def test_a_rough_outline_does_not_split_an_object() -> None:
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=Y.shape), 2)
    components_HW, _ = ndimage.label(1 + rough > ((Y - 60) / 45) ** 2 + ((X - 90) / 60) ** 2)
    assert len(areas(components_HW == components_HW[60, 90])) == 1


def test_an_image_of_one_class_is_one_object() -> None:
    assert areas(np.ones((5, 6), dtype=np.bool_)) == [30]


def test_classes_are_divided_each_on_its_own() -> None:
    mask_HW = np.full(Y.shape, OUTSIDE, dtype=np.uint8)
    mask_HW[disc(60, 40, 20) | disc(60, 74, 20)] = 1
    mask_HW[disc(60, 110, 20)] = 2  # touches the second disc
    found = find_objects(mask_HW, mask_HW, split="watershed")
    assert [region.class_id for region in found] == [1, 1, 2]


@pytest.mark.parametrize("mask_HW", [noise(60, 70), blobs(60, 70)], ids=["noise", "blobs"])
def test_objects_are_connected_and_cover_their_class(mask_HW: NDArray[np.uint8]) -> None:
    found = find_objects(mask_HW, mask_HW, split="watershed")
    assert sum(region.area for region in found) == mask_HW.size
    for region in found:
        inside_HW = region.map.labels_HW == region.label
        assert ndimage.label(inside_HW, np.ones((3, 3)))[1] == 1
        assert (mask_HW[inside_HW] == region.class_id).all()


def test_classes_in_many_places_are_divided_as_if_each_were_alone() -> None:
    """Each is looked at in the box around it; what lies in there of others, and the image's edges, change nothing."""
    mask_HW = np.pad(blobs(60, 70), ((0, 5), (7, 0)), constant_values=OUTSIDE)
    found = find_objects(mask_HW, mask_HW, split="watershed")
    for class_id in np.unique(mask_HW[mask_HW != OUTSIDE]):
        alone_HW = np.where(mask_HW == class_id, mask_HW, OUTSIDE).astype(np.uint8)
        alone = find_objects(alone_HW, alone_HW, split="watershed")
        boxes = [(region.box, region.area) for region in found if region.class_id == class_id]
        assert [(region.box, region.area) for region in alone] == boxes


def test_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stripes_HW = np.repeat(np.arange(4, dtype=np.uint8), 5)[:, None].repeat(9, axis=1)
    work = (6 + 7 + 7 + 6) * 9
    monkeypatch.setattr(watershed, "MAX_WORK", work)
    assert len(find_objects(stripes_HW, stripes_HW, split="watershed")) == 4
    monkeypatch.setattr(watershed, "MAX_WORK", work - 1)
    with pytest.raises(Problem, match=f"expected at most {work - 1} pixels .* but got {work} around 4 of them: ask"):
        find_objects(stripes_HW, stripes_HW, split="watershed")


def test_images_too_large_for_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watershed, "MAX_PIXELS", 29)
    sentence = "expected at most 29 pixels with split=watershed, but got 30: send a smaller image, or leave split out"
    with pytest.raises(Problem, match=sentence):
        areas(np.ones((5, 6), dtype=np.bool_))
