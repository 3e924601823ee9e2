"""Does doubt point at the mistakes? The risk among the most certain, averaged over all shares that may be kept.

Area under the risk-coverage curve: Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500; its excess over the
best order (E-AURC): Geifman, Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206.

Dimensions: L levels of doubt, from the most certain to the most doubtful, C coverages.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

COVERAGES = tuple(share / 50 for share in range(1, 51))
"""Shares of the predictions that are kept, at which a curve is written down."""


def aurc(risk_L: ArrayLike, count_L: ArrayLike) -> float:
    """Mean, over i = 1 to n, of the mean risk of the i most certain of n predictions.

    Predictions of one level are tied. They count as in random order, so that the value is the expected one: with all of
    them in one level it is their mean risk.

    Args:
        risk_L: sum of the risks of each level's predictions (number of wrong ones, where wrong is 1 and right is 0).
        count_L: number of predictions in each level; levels may be empty, but not all of them.

    Returns:
        0 (no risk at all) to 1.
    """
    risk_L, count_L = np.asarray(risk_L, dtype=np.float64), np.asarray(count_L, dtype=np.float64)
    mean_L = np.divide(risk_L, count_L, out=np.zeros_like(risk_L), where=count_L > 0)
    kept_L, taken_L = np.cumsum(count_L) - count_L, np.cumsum(risk_L) - risk_L
    # Within a level the risk of the first i is (taken + (i - kept) mean) / i; digamma sums the 1 / i.
    inverses_L = digamma(kept_L + count_L + 1) - digamma(kept_L + 1)
    area_L: NDArray[np.float64] = (taken_L - kept_L * mean_L) * inverses_L + risk_L
    return float(area_L.sum() / count_L.sum())


def risk_curve(risk_L: ArrayLike, count_L: ArrayLike) -> tuple[float, ...]:
    """The mean risk of the most certain predictions, for each of `COVERAGES`; within a level in random order.

    Args:
        risk_L: as `aurc` takes it; so is `count_L`.
        count_L: likewise.
    """
    taken_L, kept_L = np.cumsum(np.asarray(risk_L, dtype=np.float64)), np.cumsum(np.asarray(count_L, dtype=np.float64))
    wanted_C = np.array(COVERAGES) * kept_L[-1]
    risk_C = np.interp(wanted_C, np.concatenate([[0.0], kept_L]), np.concatenate([[0.0], taken_L])) / wanted_C
    return tuple(risk_C.tolist())


def risk_curve_by(doubt_N: ArrayLike, risk_N: ArrayLike) -> tuple[float, ...]:
    """The curve when N predictions are ordered by their doubt, least first; arguments as in `aurc_by`."""
    return risk_curve(*_levels(doubt_N, risk_N))


def best_aurc(num_wrong: int, num_right: int) -> float:
    """The least area that predictions of which some are wrong can have: all right ones come first."""
    return aurc([0, num_wrong], [num_right, num_wrong])


def aurc_by(doubt_N: ArrayLike, risk_N: ArrayLike) -> float:
    """The area when N predictions are ordered by their doubt, least first; equal doubts are tied.

    Args:
        doubt_N: (N,) of any range; at least one.
        risk_N: (N,), 0 to 1.
    """
    return aurc(*_levels(doubt_N, risk_N))


def _levels(doubt_N: ArrayLike, risk_N: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Sum of the risks, and number, of each level of doubt."""
    _, level_N = np.unique(np.asarray(doubt_N), return_inverse=True)
    return np.bincount(level_N, weights=np.asarray(risk_N, dtype=np.float64)), np.bincount(level_N)
