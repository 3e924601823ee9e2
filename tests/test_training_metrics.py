import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import IGNORE
from training.metrics import (
    Confusion,
    accuracy,
    class_iou,
    class_precision,
    class_recall,
    confusion_matrix,
    image_level_scores,
    mask_scores,
    merge,
    scores,
    weighted_iou,
)

K = 5


def _masks(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth without class 4 and with ignored pixels; prediction without class 3 and 4."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 2, 3, IGNORE], dtype=np.uint8), size=(3, 7, 9))
    return truth, rng.integers(0, 3, size=truth.shape, dtype=np.uint8)


def _slow_iou(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], k: int) -> float:
    """Intersection over union of two sets of places."""
    counted = {place for place in np.ndindex(truth.shape) if truth[place] != IGNORE}
    is_k = {place for place in counted if truth[place] == k}
    said_k = {place for place in counted if predicted[place] == k}
    return len(is_k & said_k) / len(is_k | said_k) if is_k | said_k else math.nan


@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_equals_a_loop(seed: int) -> None:
    truth, predicted = _masks(seed)
    slow_KK = np.zeros((K, K), dtype=np.int64)
    for place in np.ndindex(truth.shape):
        if truth[place] != IGNORE:
            slow_KK[truth[place], predicted[place]] += 1
    found_KK = confusion_matrix(truth, predicted, num_classes=K)
    assert found_KK.dtype == np.int64
    np.testing.assert_array_equal(found_KK, slow_KK)


@pytest.mark.parametrize("seed", range(3))
def test_iou_and_its_mean_equal_sets(seed: int) -> None:
    truth, predicted = _masks(seed)
    confusion_KK = confusion_matrix(truth, predicted, num_classes=K)
    slow_K = [_slow_iou(truth, predicted, k) for k in range(K)]
    np.testing.assert_allclose(class_iou(confusion_KK), slow_K)
    found = scores(confusion_KK, task="segmentation")
    assert found["miou"] == pytest.approx(np.mean([value for value in slow_K if not math.isnan(value)]))
    assert found["pixel_accuracy"] == pytest.approx(np.mean((truth == predicted)[truth != IGNORE]))


def test_a_class_that_is_nowhere_is_not_in_the_mean_but_one_that_is_only_predicted_is() -> None:
    truth, predicted = np.array([0, 0, 1], dtype=np.uint8), np.array([0, 2, 1], dtype=np.uint8)
    confusion_KK = confusion_matrix(truth, predicted, num_classes=4)
    np.testing.assert_array_equal(class_iou(confusion_KK), [0.5, 1.0, 0.0, np.nan])
    assert scores(confusion_KK, task="segmentation")["miou"] == 0.5


def test_labels_by_hand() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 2], dtype=np.uint8), np.array([0, 0, 1, 1, 0], dtype=np.uint8)
    confusion_KK = confusion_matrix(truth, predicted, num_classes=4)
    np.testing.assert_allclose(class_recall(confusion_KK), [2 / 3, 1, 0, np.nan])
    assert scores(confusion_KK, task="classification") == pytest.approx({"accuracy": 0.6, "mean_recall": 5 / 9})


def test_parts_add_up_to_the_whole() -> None:
    truth, predicted = _masks(0)
    parts = [confusion_matrix(t, p, num_classes=K) for t, p in zip(truth, predicted, strict=True)]
    np.testing.assert_array_equal(merge(parts, num_classes=K), confusion_matrix(truth, predicted, num_classes=K))


def test_single_values_count_like_arrays() -> None:
    for t, p in product(range(3), range(3)):
        found_KK = confusion_matrix(np.asarray(t, dtype=np.uint8), np.asarray(p, dtype=np.uint8), num_classes=3)
        assert found_KK.sum() == 1 == found_KK[t, p]


def test_nothing_counted_has_no_score() -> None:
    empty_KK = merge([], num_classes=3)
    assert empty_KK.shape == (3, 3)
    assert math.isnan(accuracy(empty_KK))
    assert math.isnan(scores(empty_KK, task="segmentation")["miou"])


def test_a_perfect_prediction_scores_one() -> None:
    truth, _ = _masks(0)
    confusion_KK = confusion_matrix(truth, np.where(truth == IGNORE, np.uint8(0), truth), num_classes=K)
    assert scores(confusion_KK, task="segmentation") == {"miou": 1.0, "pixel_accuracy": 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_weighted_iou_equal_sets(seed: int) -> None:
    truth, predicted = _masks(seed)
    confusion_KK = confusion_matrix(truth, predicted, num_classes=K)
    counted = truth != IGNORE
    slow_K = [
        np.mean(truth[counted & (predicted == k)] == k) if (counted & (predicted == k)).any() else math.nan
        for k in range(K)
    ]
    np.testing.assert_allclose(class_precision(confusion_KK), slow_K)
    shares = {k: np.mean(truth[counted] == k) for k in range(K)}
    assert weighted_iou(confusion_KK) == pytest.approx(
        sum(share * _slow_iou(truth, predicted, k) for k, share in shares.items() if share)
    )


# --- image by image ---


def _slow_image_level(truths: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> dict[str, float]:
    """Of each image and each class in its truth the IoU, in a table of lists."""
    table = {
        (n, k): _slow_iou(truth, said, k)
        for n, (truth, said) in enumerate(zip(truths, predicted, strict=True))
        for k in range(K)
        if (truth == k).any()
    }
    rows = [[value for (m, _), value in table.items() if m == n] for n in range(len(truths))]
    columns = [[value for (_, k), value in table.items() if k == c] for c in range(K)]
    of_images = sorted(np.mean(row) for row in rows if row)
    of_classes = [sorted(column) for column in columns if column]
    return {
        "miou_i": float(np.mean(of_images)),
        "miou_c": float(np.mean([np.mean(column) for column in of_classes])),
        "miou_i_worst10": float(np.mean(of_images[: max(1, len(of_images) // 10)])),
        "miou_c_worst10": float(np.mean([np.mean(column[: max(1, len(column) // 10)]) for column in of_classes])),
    }


@pytest.mark.parametrize("number", [1, 9, 25])
def test_image_level_scores_equal_a_table(number: int) -> None:
    rng = np.random.default_rng(number)
    truths = np.stack([rng.choice(rng.integers(0, 4, 2, dtype=np.uint8), (5, 6)) for _ in range(number)])
    truths[0, :2] = IGNORE
    predicted = np.where(rng.random(truths.shape) < 0.3, rng.integers(0, 4, truths.shape), truths).astype(np.uint8)
    predicted[truths == IGNORE] = 0
    matrices = [confusion_matrix(t, p, num_classes=K) for t, p in zip(truths, predicted, strict=True)]
    assert image_level_scores(matrices) == pytest.approx(_slow_image_level(truths, predicted))


def test_nothing_but_void_is_no_image() -> None:
    nothing_KK: Confusion = np.zeros((2, 2), dtype=np.int64)
    right_KK: Confusion = np.array([[3, 0], [0, 1]], dtype=np.int64)
    assert image_level_scores([nothing_KK, right_KK])["miou_i"] == 1.0
    assert all(math.isnan(value) for value in image_level_scores([nothing_KK]).values())
    assert all(math.isnan(value) for value in mask_scores(nothing_KK, []).values())


# --- the ways in which others are wrong ---


def _two_images() -> list[Confusion]:
    """A large object that is found, in one image; a small one that is missed, in the other."""
    large, small = np.zeros((2, 10, 10), dtype=np.uint8)
    large[:9] = 1
    small[0, 0] = 1
    pairs = ((large, large), (small, np.zeros_like(small)))
    return [confusion_matrix(truth, said, num_classes=2) for truth, said in pairs]


def test_the_mean_iou_is_not_a_mean_over_images() -> None:
    """Averaged per image it is 0.75, and of batches it is what the batches are; the split's is that of all pixels."""
    matrices = _two_images()
    whole = scores(merge(matrices, num_classes=2), task="segmentation")["miou"]
    assert whole == pytest.approx((90 / 91 + 109 / 110) / 2)
    assert image_level_scores(matrices)["miou_i"] == pytest.approx((1 + (0 + 0.99) / 2) / 2)
    assert abs(image_level_scores(matrices)["miou_i"] - whole) > 0.2


def test_void_is_not_a_class() -> None:
    """With void as a class that is always wrong or always right, the score of the others would move."""
    truth = np.array([0, 0, 1, 1, IGNORE, IGNORE], dtype=np.uint8)
    for said in ([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]):
        confusion_KK = confusion_matrix(truth, np.array(said, dtype=np.uint8), num_classes=2)
        assert scores(confusion_KK, task="segmentation") == {"miou": 1.0, "pixel_accuracy": 1.0}


@pytest.mark.parametrize("num_absent", [1, 8])
def test_a_class_that_is_absent_is_neither_0_nor_1(num_absent: int) -> None:
    truth, predicted = np.array([0, 0, 1, 1], dtype=np.uint8), np.array([0, 1, 1, 1], dtype=np.uint8)
    confusion_KK = confusion_matrix(truth, predicted, num_classes=2 + num_absent)
    assert scores(confusion_KK, task="segmentation")["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_micro_iou_is_not_called_miou() -> None:
    """a / (2 - a), with a the pixel accuracy, is what counting all classes' pixels together gives."""
    confusion_KK = np.array([[95, 0], [5, 0]], dtype=np.int64)
    a = accuracy(confusion_KK)
    assert scores(confusion_KK, task="segmentation")["miou"] == pytest.approx(0.475)
    assert a / (2 - a) == pytest.approx(95 / 105)
