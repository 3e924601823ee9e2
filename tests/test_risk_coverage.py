from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.risk_coverage import COVERAGES, aurc, aurc_by, best_aurc, risk_curve, risk_curve_by


def _slow_aurc(risks: NDArray[np.float64]) -> float:
    """Mean risk of the first i, averaged over i; the most certain come first."""
    return float(np.mean([np.mean(risks[:i]) for i in range(1, len(risks) + 1)]))


def test_an_area_computed_by_hand() -> None:
    # right, wrong, right: risks of the first 1, 2 and 3 are 0, 1/2 and 1/3
    assert aurc([0, 1, 0], [1, 1, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize("number", [1, 2, 1000])
def test_the_area_without_ties_is_that_of_the_slow_obvious_way(number: int) -> None:
    rng = np.random.default_rng(number)
    risks_N, doubts_N = rng.random(number), rng.permutation(number) / 7
    assert aurc_by(doubts_N, risks_N) == pytest.approx(_slow_aurc(risks_N[np.argsort(doubts_N)]), abs=1e-12)


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    certain, doubtful = (0.0, 1.0, 0.25), (1.0, 0.0, 1.0)
    areas = [_slow_aurc(np.array(a + b)) for a in permutations(certain) for b in permutations(doubtful)]
    assert aurc([sum(certain), sum(doubtful)], [3, 3]) == pytest.approx(np.mean(areas))
    assert aurc_by([0, 0, 0, 5, 5, 5], certain + doubtful) == pytest.approx(np.mean(areas))


def test_one_level_is_worth_the_mean_risk() -> None:
    assert aurc([30], [1000]) == pytest.approx(0.03)


def test_empty_levels_change_nothing() -> None:
    assert aurc([0, 0, 3, 0, 4, 0], [0, 5, 9, 0, 4, 0]) == pytest.approx(aurc([0, 3, 4], [5, 9, 4]))


@pytest.mark.parametrize(("wrong", "right"), [(0, 5), (5, 0), (3, 7), (1, 999)])
def test_no_order_is_better_than_the_best(wrong: int, right: int) -> None:
    best = best_aurc(wrong, right)
    assert best == pytest.approx(_slow_aurc(np.repeat([0.0, 1.0], [right, wrong])))
    risks_N = np.random.default_rng(0).permutation(np.repeat([0.0, 1.0], [right, wrong]))
    assert aurc_by(np.arange(wrong + right), risks_N) >= best - 1e-12


def test_a_hundred_million_pixels_are_added_up_without_loss() -> None:
    # The best order's area tends to r + (1 - r) ln(1 - r): Geifman et al. 2019
    risk = 0.02
    assert best_aurc(2_000_000, 98_000_000) == pytest.approx(risk + (1 - risk) * np.log(1 - risk), rel=1e-5)


@pytest.mark.parametrize("number", [50, 400])
def test_a_curve_is_the_risk_of_what_is_kept(number: int) -> None:
    rng = np.random.default_rng(number)
    risks_N, doubts_N = rng.random(number), rng.permutation(number) / 7
    ordered_N = risks_N[np.argsort(doubts_N)]
    slow = [ordered_N[: round(coverage * number)].mean() for coverage in COVERAGES]
    np.testing.assert_allclose(risk_curve_by(doubts_N, risks_N), slow)
    assert COVERAGES[-1] == 1.0


def test_a_curve_of_ties_is_level() -> None:
    assert risk_curve([0, 3, 0], [0, 10, 0]) == pytest.approx([0.3] * len(COVERAGES))
