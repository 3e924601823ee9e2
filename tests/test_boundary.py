"""Each score against a slow, obvious version: sets of places, distances measured one by one."""

import math
from itertools import combinations, product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import label

from training.boundary import (
    TRIMAP_RADII,
    WIDTHS,
    BoundaryTally,
    Mask,
    band_pixels,
    boundary_f1,
    contour_distance,
    edge_distance,
    rand_score,
)
from training.data import IGNORE
from training.metrics import class_iou, confusion_matrix

K = 4
SIZE = (13, 15)
Place = tuple[int, int]


def _blobs(seed: int, *, size: tuple[int, int] = SIZE, classes: int = 3) -> Mask:
    """Areas of some pixels, so that there is something beside contours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (size[0] // 4 + 1, size[1] // 4 + 1), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4), dtype=np.uint8))[: size[0], : size[1]]


def _pair(seed: int, *, void: bool = True) -> tuple[Mask, Mask]:
    """A truth without class 3, with void, and a prediction that is moved and has some wrong pixels."""
    truth_HW = _blobs(seed)
    predicted_HW = np.roll(truth_HW, 1, axis=seed % 2)
    rng = np.random.default_rng(seed)
    predicted_HW[rng.random(truth_HW.shape) < 0.05] = 3
    if void:
        truth_HW[3:6, 2:9] = IGNORE
        truth_HW[rng.random(truth_HW.shape) < 0.05] = IGNORE
    return truth_HW, predicted_HW


def _places(mask_HW: Mask) -> dict[Place, int]:
    """The places that count, with their class."""
    return {(int(y), int(x)): int(mask_HW[y, x]) for y, x in np.ndindex(*mask_HW.shape) if mask_HW[y, x] != IGNORE}


def _slow_distance(mask_HW: Mask, *, reach: int) -> dict[Place, int]:
    places = _places(mask_HW)
    return {
        (y, x): min(
            [max(abs(y - v), abs(x - u)) for (v, u), k in places.items() if k != places[y, x]], default=reach + 1
        )
        for y, x in places
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_that_of_the_nearest_other_class(seed: int) -> None:
    mask_HW, _ = _pair(seed)
    found_HW = contour_distance(mask_HW, reach=5)
    slow = _slow_distance(mask_HW, reach=5)
    assert {place: found_HW[place] for place in slow} == {place: min(value, 6) for place, value in slow.items()}
    assert (found_HW[mask_HW == IGNORE] == 6).all()


def test_nothing_else_is_far_away() -> None:
    assert (contour_distance(np.zeros((3, 40), dtype=np.uint8), reach=7) == 8).all()
    assert contour_distance(np.array([[5]], dtype=np.uint8), reach=1).tolist() == [[2]]
    assert contour_distance(np.array([[0, IGNORE, 1]], dtype=np.uint8), reach=3).tolist() == [[2, 4, 2]]


def test_the_edge_is_one_pixel_from_the_outside() -> None:
    assert edge_distance((3, 5)).tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]


# --- Boundary IoU ---


def _eroded_band(mask_HW: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """The definition by morphology: the mask less its erosion, with an empty rim around the image."""
    padded = cv2.copyMakeBorder(mask_HW, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=width)[1:-1, 1:-1]
    return (mask_HW - eroded).astype(bool)


@pytest.mark.parametrize("seed", range(4))
def test_boundary_iou_equals_erosion_class_by_class(seed: int) -> None:
    pairs, tally = [_pair(seed, void=False), _pair(seed + 10, void=False)], BoundaryTally(K)
    for truth_HW, predicted_HW in pairs:
        tally.add(truth_HW, predicted_HW)
    for width, k in product(WIDTHS, range(K)):
        shared = joined = 0
        for truth_HW, predicted_HW in pairs:
            bands = [
                _eroded_band((mask_HW == k).astype(np.uint8), band_pixels(SIZE, width))
                for mask_HW in (truth_HW, predicted_HW)
            ]
            shared, joined = shared + (bands[0] & bands[1]).sum(), joined + (bands[0] | bands[1]).sum()
        assert tally.boundary_iou(width)[k] == pytest.approx(shared / joined)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_with_void_equals_sets(seed: int) -> None:
    truth_HW, predicted_HW = _pair(seed)
    tally = BoundaryTally(K)
    tally.add(truth_HW, predicted_HW)
    counted_HW = np.where(truth_HW == IGNORE, np.uint8(IGNORE), predicted_HW)
    bands = []
    for mask_HW in (truth_HW, counted_HW):
        places, distances = _places(mask_HW), _slow_distance(mask_HW, reach=99)
        outside = {(y, x): min(y + 1, x + 1, SIZE[0] - y, SIZE[1] - x) for y, x in places}
        bands.append({(place, k) for place, k in places.items() if min(distances[place], outside[place]) <= 3})
    for k in range(K):
        first, second = ({entry for entry in band if entry[1] == k} for band in bands)
        assert tally.boundary_iou("3px")[k] == pytest.approx(len(first & second) / len(first | second))


def test_two_per_cent_of_the_diagonal_is_one_pixel_at_least() -> None:
    assert [band_pixels((360, 480), width) for width in WIDTHS] == [1, 3, 12]
    assert band_pixels((10, 10), "2pct") == 1


# --- Boundary F1 ---


def _slow_f1(truth_HW: Mask, predicted_HW: Mask, k: int, tolerance: float) -> float:
    contours = [
        [place for place, value in _slow_distance(mask_HW, reach=99).items() if value == 1 and mask_HW[place] == k]
        for mask_HW in (truth_HW, predicted_HW)
    ]
    if not contours[0] and not contours[1]:
        return 1.0
    shares = []
    for one, other in (contours, contours[::-1]):
        near = [place for place in one if any(math.dist(place, it) <= tolerance for it in other)]
        shares.append(len(near) / len(one) if one else 0.0)
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def _contour(mask_HW: Mask) -> Mask:
    return np.where(contour_distance(mask_HW, reach=1) == 1, mask_HW, np.uint8(IGNORE))


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 0.4), (1, 1.0), (2, 2.3), (3, 4.5)])
def test_boundary_f1_equals_distances_one_by_one(seed: int, tolerance: float) -> None:
    truth_HW, predicted_HW = _pair(seed)
    predicted_HW = np.where(truth_HW == IGNORE, np.uint8(IGNORE), predicted_HW)
    found_K = boundary_f1(
        _contour(truth_HW), _contour(predicted_HW), tolerance=tolerance, present_2K=np.ones((2, K), dtype=bool)
    )
    np.testing.assert_allclose(found_K, [_slow_f1(truth_HW, predicted_HW, k, tolerance) for k in range(K)])


def test_boundary_f1_is_a_mean_over_classes_then_images() -> None:
    tally = BoundaryTally(K)
    half_HW = np.repeat(np.array([[0] * 8 + [1] * 8], dtype=np.uint8), 16, axis=0)
    tally.add(half_HW, half_HW)
    tally.add(half_HW, np.full_like(half_HW, 2))  # 0, 1: not found; 2: not there
    assert tally.scores()["boundary_f1"] == pytest.approx((1 + 0) / 2)
    np.testing.assert_allclose(tally.class_f1(), [0.5, 0.5, 0, np.nan])


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    """3 x 4 times 100: the diagonal is 500 and the tolerance 3.75 pixels."""
    truth_HW = np.zeros((300, 400), dtype=np.uint8)
    truth_HW[:, 200:] = 1
    for shift, expected in ((3, 1.0), (5, 0.0)):
        tally = BoundaryTally(2)
        tally.add(truth_HW, _moved(truth_HW, shift))
        assert tally.scores()["boundary_f1"] == expected


def _moved(mask_HW: Mask, shift: int) -> Mask:
    moved_HW = np.zeros_like(mask_HW)
    moved_HW[:, shift:] = mask_HW[:, :-shift]
    return moved_HW


# --- trimaps ---


@pytest.mark.parametrize("seed", range(2))
def test_trimaps_equal_the_iou_of_their_places(seed: int) -> None:
    pairs, tally = [_pair(seed), _pair(seed + 5)], BoundaryTally(K)
    for truth_HW, predicted_HW in pairs:
        tally.add(truth_HW, predicted_HW)
    for radius in TRIMAP_RADII:
        matrix_KK = np.zeros((K, K), dtype=np.int64)
        for truth_HW, predicted_HW in pairs:
            for place, distance in _slow_distance(truth_HW, reach=99).items():
                matrix_KK[truth_HW[place], predicted_HW[place]] += distance <= radius
        assert tally.scores()[f"trimap_miou_{radius}px"] == pytest.approx(np.nanmean(class_iou(matrix_KK)))


def test_the_widest_trimap_of_a_small_image_is_the_whole_image() -> None:
    truth_HW, predicted_HW = _pair(1)
    tally = BoundaryTally(K)
    tally.add(truth_HW, predicted_HW)
    np.testing.assert_array_equal(tally.trimap_RKK[-1], confusion_matrix(truth_HW, predicted_HW, num_classes=K))


# --- the Rand score ---


def _slow_rand(truth_HW: NDArray[np.bool_], predicted_HW: NDArray[np.bool_]) -> float:
    """F-score over all pairs of the truth's pixels: which are of one piece in the truth, which in the prediction?"""
    pieces = [label(part_HW)[0] for part_HW in (truth_HW, predicted_HW)]
    places = list(zip(*np.nonzero(truth_HW), strict=True))
    both = one = other = 0
    for first, second in combinations(places, 2):
        in_truth, in_prediction = (piece_HW[first] == piece_HW[second] for piece_HW in pieces)
        both, one, other = both + (in_truth and in_prediction), one + in_truth, other + in_prediction
    return 2 * both / (one + other)


@pytest.mark.parametrize("seed", range(4))
def test_the_rand_score_equals_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth_HW = rng.random((9, 11)) < 0.6
    predicted_HW = truth_HW ^ (rng.random((9, 11)) < 0.1)
    assert rand_score(truth_HW, predicted_HW) == pytest.approx(_slow_rand(truth_HW, predicted_HW))


def test_a_gap_in_a_membrane_merges_two_cells() -> None:
    cells_HW = np.ones((5, 11), dtype=bool)
    cells_HW[:, 5] = False
    assert rand_score(cells_HW, cells_HW) == 1
    leaky_HW = cells_HW.copy()
    leaky_HW[2, 5] = True
    pairs_of_25, pairs_of_50 = 25 * 24 // 2, 50 * 49 // 2
    assert rand_score(cells_HW, leaky_HW) == pytest.approx(2 * 2 * pairs_of_25 / (2 * pairs_of_25 + pairs_of_50))
    assert math.isnan(rand_score(np.zeros((3, 3), dtype=bool), np.ones((3, 3), dtype=bool)))


def test_rand_scores_are_of_two_classes_only() -> None:
    for num_classes, expected in ((2, 1), (3, 0)):
        tally = BoundaryTally(num_classes)
        tally.add(_blobs(0, classes=2), _blobs(0, classes=2))
        assert len(tally.rand_K) == expected
        assert np.isnan(tally.class_rand()).sum() == (0 if expected else num_classes)


# --- what all of them owe ---


def _scenes() -> dict[str, Mask]:
    one_pixel = np.zeros((12, 12), dtype=np.uint8)
    one_pixel[5, 5] = 1
    corner = np.zeros((12, 12), dtype=np.uint8)
    corner[:3, :4] = 2
    return {
        "one pixel": one_pixel,
        "at the image's edge": corner,
        "one class only": np.ones((12, 12), dtype=np.uint8),
        "with void": _pair(2)[0],
        "one by one": np.array([[2]], dtype=np.uint8),
    }


@pytest.mark.parametrize("name", _scenes())
def test_a_perfect_prediction_scores_one(name: str) -> None:
    truth_HW = _scenes()[name]
    tally = BoundaryTally(K)
    tally.add(truth_HW, np.where(truth_HW == IGNORE, np.uint8(3), truth_HW))
    known = [score for score in tally.scores().values() if not math.isnan(score)]
    assert len(known) >= 4
    assert known == [1.0] * len(known)


def test_what_is_void_never_counts() -> None:
    truth_HW, predicted_HW = _pair(0)
    tallies = [BoundaryTally(K), BoundaryTally(K)]
    for tally, filler in zip(tallies, (0, 2), strict=True):
        tally.add(truth_HW, np.where(truth_HW == IGNORE, np.uint8(filler), predicted_HW))
    assert tallies[0].scores() == tallies[1].scores()


def test_an_empty_prediction_finds_no_object() -> None:
    truth_HW = _scenes()["one pixel"]
    tally = BoundaryTally(2)
    tally.add(truth_HW, np.zeros_like(truth_HW))
    assert tally.boundary_iou("1px")[1] == 0
    assert tally.class_f1().tolist() == [0, 0]  # the background's contour is not there either


def test_nothing_but_void_has_no_score() -> None:
    tally = BoundaryTally(K)
    tally.add(np.full((4, 4), IGNORE, dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8))
    assert all(math.isnan(score) for score in tally.scores().values())


def test_the_masks_are_not_changed() -> None:
    truth_HW, predicted_HW = _pair(0)
    before = truth_HW.copy(), predicted_HW.copy()
    BoundaryTally(K).add(truth_HW, predicted_HW)
    np.testing.assert_array_equal(before, (truth_HW, predicted_HW))
