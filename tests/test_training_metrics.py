import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import IGNORE
from training.metrics import accuracy, class_iou, class_recall, confusion_matrix, merge, scores

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
