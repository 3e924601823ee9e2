import math

import numpy as np
import pytest

from tests.rounds import prediction_of
from training.flywheel.scores import agreement, auroc, expected_iou, image_scores
from training.metrics import confusion_matrix, image_miou


def test_expected_iou_by_hand() -> None:
    """Two pixels of class 0 (probabilities 0.8 and 0.6), one of class 1 (0.9).

    Class 0: 1.4 / (2 + 0.1); class 1: 0.9 / (1 + 0.6).
    """
    probs_KHW = np.array([[[0.8, 0.6, 0.1]], [[0.2, 0.4, 0.9]]])
    mask_HW = np.array([[0, 0, 1]], dtype=np.uint8)
    expected = (1.4 / 2.1 + 0.9 / 1.6) / 2
    assert expected_iou(probs_KHW, mask_HW) == pytest.approx(expected)
    assert expected_iou(255 * probs_KHW, mask_HW) == pytest.approx(expected)


def test_a_class_that_the_mask_misses_counts() -> None:
    """Class 2 is expected on 1.5 % of the pixels, half of `MISSED_SHARE`: 0 with half the weight."""
    probs_KHW = np.repeat([[[0.985]], [[0.0]], [[0.015]]], 200, axis=2)
    assert expected_iou(probs_KHW, np.zeros((1, 200), dtype=np.uint8)) == pytest.approx(0.985 / 1.5)


def test_expected_iou_is_near_what_truths_drawn_from_the_probabilities_have() -> None:
    rng = np.random.default_rng(0)
    probs_HWK = rng.dirichlet((2, 1, 0.5), (40, 40))
    mask_HW = probs_HWK.argmax(axis=-1).astype(np.uint8)
    ious = []
    for _ in range(30):
        drawn_HW = (rng.random((40, 40, 1)) > probs_HWK.cumsum(axis=-1)).sum(axis=-1).astype(np.uint8)
        ious.append(image_miou(confusion_matrix(drawn_HW, mask_HW, num_classes=3)))
    assert expected_iou(probs_HWK.transpose(2, 0, 1), mask_HW) == pytest.approx(np.mean(ious), abs=0.01)


def test_no_doubt_scores_1_and_doubt_less() -> None:
    rng = np.random.default_rng(0)
    truth_HW = np.kron(rng.integers(0, 5, (4, 4)), np.ones((16, 16))).astype(np.uint8)
    sure, unsure = (prediction_of(truth_HW, blur=blur, rng=rng) for blur in (0.3, 4.0))
    sure_scores, unsure_scores = image_scores(sure), image_scores(unsure, earlier=[sure.mask_HW, unsure.mask_HW])
    assert all(unsure_scores[name] < value <= 1 for name, value in sure_scores.items())
    assert "stability" not in sure_scores
    assert unsure_scores["stability"] == pytest.approx((1 + agreement(unsure.mask_HW, sure.mask_HW)) / 2, abs=1e-5)


def test_a_mask_of_one_class_has_scores() -> None:
    scores = image_scores(prediction_of(np.zeros((16, 16), dtype=np.uint8), blur=0.3, rng=np.random.default_rng(0)))
    assert scores["border"] == 1
    assert all(math.isfinite(value) for value in scores.values())


def test_agreement_by_hand() -> None:
    """Class 0: 1 of 2; class 1: 0 of 1; class 3: 1 of 2."""
    found = agreement(np.array([[0, 0, 3]], dtype=np.uint8), np.array([[0, 1, 3]], dtype=np.uint8))
    assert found == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    score_N, is_good_N = rng.integers(0, 6, 40), rng.random(40) < 0.6
    pairs = [
        1.0 if good > bad else 0.5 if good == bad else 0.0 for good in score_N[is_good_N] for bad in score_N[~is_good_N]
    ]
    assert auroc(score_N, is_good_N) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc([1, 2], [True, True]))
