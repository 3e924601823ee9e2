import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.calibration import (
    TEMPERATURES,
    ProbabilityTally,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    joined,
    level_counts,
    probability_scores,
    reliability,
    reliability_of_levels,
)


def _slow_ece(confidences: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for m in range(1, 16):
        inside = (confidences > (m - 1) / 15) & (confidences <= m / 15)
        if inside.any():
            total += inside.sum() * abs(is_right[inside].mean() - confidences[inside].mean())
    return total / len(confidences)


def _drawn(temperature: float, *, number: int = 20_000, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits, and classes drawn from softmax(logits / temperature)."""
    torch.manual_seed(3)
    logits_NK = 4 * torch.randn(number, num_classes)
    return logits_NK, torch.multinomial((logits_NK / temperature).softmax(dim=1), 1).flatten()


def test_a_calibration_error_computed_by_hand() -> None:
    bins = reliability([0.55, 0.57, 0.95, 0.97], [1, 0, 1, 1])
    assert [entry.count for entry in bins] == [0] * 8 + [2] + [0] * 5 + [2]
    assert (bins[8].accuracy, bins[8].confidence) == (0.5, pytest.approx(0.56))
    assert expected_calibration_error(bins) == pytest.approx((2 * abs(0.5 - 0.56) + 2 * abs(1 - 0.96)) / 4)


@pytest.mark.parametrize("number", [1, 7, 5000])
def test_the_calibration_error_is_that_of_the_slow_obvious_way(number: int) -> None:
    rng = np.random.default_rng(number)
    confidences = rng.uniform(0.001, 1, number)
    is_right = rng.random(number) < confidences**2
    found = expected_calibration_error(reliability(confidences, is_right))
    assert found == pytest.approx(_slow_ece(confidences, is_right), abs=1e-12)


def test_counts_of_8_bit_maps_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    levels_HW = rng.integers(0, 256, (50, 61), dtype=np.uint8)
    is_right_HW = rng.random((50, 61)) < levels_HW / 300
    counts_L2 = level_counts(levels_HW, is_right_HW)
    assert counts_L2.shape == (256, 2) and counts_L2.sum() == 50 * 61
    assert counts_L2[7].tolist() == [(~is_right_HW[levels_HW == 7]).sum(), is_right_HW[levels_HW == 7].sum()]
    expected = _slow_ece(levels_HW.ravel() / 255 + (levels_HW.ravel() == 0) * 1e-9, is_right_HW.ravel())
    assert expected_calibration_error(reliability_of_levels(counts_L2)) == pytest.approx(expected, abs=1e-9)


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    levels_N, is_right_N = rng.integers(0, 256, 999, dtype=np.uint8), rng.random(999) < 0.5
    parts = level_counts(levels_N[:400], is_right_N[:400]) + level_counts(levels_N[400:], is_right_N[400:])
    np.testing.assert_array_equal(parts, level_counts(levels_N, is_right_N))


def test_each_bin_ends_exactly_at_a_level() -> None:
    counts_L2 = np.ones((256, 2), dtype=np.int64)
    assert [entry.count for entry in reliability_of_levels(counts_L2)] == [2 * 18] + [2 * 17] * 14


def test_a_confidence_that_rounding_pushed_above_1_is_in_the_last_bin() -> None:
    assert reliability([1.0000001], [1])[-1].count == 1


def test_nothing_has_no_calibration_error() -> None:
    assert math.isnan(expected_calibration_error(reliability([], [])))


def test_scores_of_probabilities_computed_by_hand() -> None:
    logits_NK = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]]).log()
    scores = probability_scores(logits_NK, torch.tensor([0, 2]))
    assert scores.nll == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2)
    assert scores.brier == pytest.approx((0.3**2 + 0.2**2 + 0.1**2 + 0.25**2 + 0.5**2 + 0.75**2) / 2)
    assert scores.ece == pytest.approx((0.3 + 0.5) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_truth_is_found(temperature: float) -> None:
    assert fit_temperature(*_drawn(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.7, 1.9])
def test_no_temperature_of_a_fine_grid_is_better(temperature: float) -> None:
    logits_NK, truth_N = _drawn(temperature, number=500)
    losses = {t: functional.cross_entropy(logits_NK / t, truth_N).item() for t in np.arange(0.2, 5, 0.005)}
    assert fit_temperature(logits_NK, truth_N) == pytest.approx(min(losses, key=losses.__getitem__), abs=0.006)


def test_log_probabilities_give_the_temperature_of_the_logits() -> None:
    logits_NK, truth_N = _drawn(2.0, number=500)
    assert fit_temperature(logits_NK.log_softmax(dim=1), truth_N) == pytest.approx(
        fit_temperature(logits_NK, truth_N), rel=1e-3
    )


def test_scaling_by_the_temperature_mends_the_calibration() -> None:
    logits_NK, truth_N = _drawn(2.5)
    before = probability_scores(logits_NK, truth_N)
    after = probability_scores(logits_NK / fit_temperature(logits_NK, truth_N), truth_N)
    assert before.ece > 0.1 and after.ece < 0.02
    assert after.nll < before.nll and after.brier < before.brier


@pytest.mark.parametrize(("truth", "end"), [(0, TEMPERATURES[0]), (1, TEMPERATURES[1])])
def test_a_split_without_one_right_or_one_wrong_prediction_ends_at_a_bound(truth: int, end: float) -> None:
    logits_NK = torch.tensor([[3.0, 0.0]] * 5)
    assert fit_temperature(logits_NK, torch.full((5,), truth)) == pytest.approx(end, rel=1e-3)


def test_nothing_to_fit_leaves_the_logits_as_they_are() -> None:
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 1.0


def test_cross_fitting_takes_the_temperature_from_the_other_half() -> None:
    even, odd = [_drawn(1.0, number=400), _drawn(3.0, number=300)], [_drawn(2.0, number=500)]
    found_NK = cross_fitted([even[0], odd[0], even[1]])
    from_even, from_odd = fit_temperature(*joined(even)), fit_temperature(*odd[0])
    expected = [even[0][0] / from_odd, odd[0][0] / from_even, even[1][0] / from_odd]
    torch.testing.assert_close(found_NK, torch.cat(expected))


def test_cross_fitting_one_image_has_nothing_to_fit_on() -> None:
    logits_NK, truth_N = _drawn(3.0, number=10)
    torch.testing.assert_close(cross_fitted([(logits_NK, truth_N)]), logits_NK)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_probabilities_are_worth_what_the_logits_are(dtype: type[np.floating]) -> None:
    logits_NK, truth_N = _drawn(2.0, number=3000)
    probs_KN, truths = logits_NK.softmax(dim=1).T.numpy().astype(dtype), truth_N.numpy().astype(np.uint8)
    tally = ProbabilityTally(4)
    tally.add(probs_KN[:, :1000], truths[:1000])
    tally.add(probs_KN[:, 1000:], truths[1000:])
    expected = probability_scores(logits_NK, truth_N)
    assert tally.count == 3000
    assert tally.nll / 3000 == pytest.approx(expected.nll, rel=2e-3)
    assert tally.brier / 3000 == pytest.approx(expected.brier, rel=2e-3)
    slow = [_slow_ece(np.rint(255 * probs_KN[k].astype(float)) / 255, truths == k) for k in range(4)]
    # Levels of 0 belong to no bin of the slow way, and to the first one here, with no gap but those that are wrong.
    zero = [(np.rint(255 * probs_KN[k].astype(float)) == 0) & (truths == k) for k in range(4)]
    assert tally.class_errors() == pytest.approx(slow, abs=max(part.sum() for part in zero) / 3000 + 1e-3)


def test_probabilities_by_hand() -> None:
    tally = ProbabilityTally(2)
    tally.add(np.array([[0.8, 0.6], [0.2, 0.4]], dtype=np.float32), np.array([0, 1], dtype=np.uint8))
    assert tally.nll == pytest.approx(-math.log(0.8) - math.log(0.4))
    assert tally.brier == pytest.approx(2 * 0.2**2 + 2 * 0.6**2)
    assert tally.class_errors() == pytest.approx([(0.2 + 0.6) / 2] * 2)


def test_a_truth_held_impossible_costs_a_finite_likelihood() -> None:
    tally = ProbabilityTally(2)
    tally.add(np.array([[1.0], [0.0]], dtype=np.float16), np.array([1], dtype=np.uint8))
    assert tally.nll == pytest.approx(24 * math.log(2))
