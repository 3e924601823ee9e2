"""Is a probability the share of times it comes true? How far it is from that, and the temperature that mends it.

Expected calibration error and temperature scaling: Guo et al. 2017, https://arxiv.org/abs/1706.04599. The same error
of each class's probability: Kull et al. 2019, https://arxiv.org/abs/1910.12656. Brier score, summed over the classes:
Brier 1950.

Dimensions: N pixels or images, K classes, B bins, L levels of an 8-bit map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from segserve.settings import Settings

NUM_BINS = 15
LEVELS = 256
TEMPERATURES = (0.2, 5.0)
"""Least and largest that is tried: an easy split has no least negative log-likelihood short of temperature 0."""


class ReliabilityBin(Settings):
    """What came true of the predictions whose confidence is in one bin."""

    upper: float
    """Its upper end, 0 to 1, included; the lower end is the upper one of the bin before."""
    count: int
    confidence: float | None
    """Mean confidence, 0 to 1; None where there is nothing. So is the next one."""
    accuracy: float | None
    """Share that is right."""


class ProbabilityScores(Settings):
    """How good class probabilities are, 0 is best."""

    ece: float
    """Expected calibration error over `NUM_BINS` bins, 0 to 1."""
    nll: float
    """Mean negative log-likelihood of the truth, nats."""
    brier: float
    """Mean squared distance from the truth's one-hot vector, 0 to 2."""


LEAST_PROBABILITY = 2.0**-24
"""That float16 holds; what is below it counts as this much."""


@dataclass
class ProbabilityTally:
    """What is added up of all classes' probabilities, of pixels or labelled images."""

    num_classes: int
    count: int = 0
    nll: float = 0.0
    """Sum of the negative log-likelihoods; `brier` likewise."""
    brier: float = 0.0
    levels_KL2: NDArray[np.int64] = field(init=False)
    """For each class the `level_counts` of its probability, "right" where the truth is this class."""

    def __post_init__(self) -> None:
        self.levels_KL2 = np.zeros((self.num_classes, LEVELS, 2), dtype=np.int64)

    def add(self, probs_KN: NDArray[np.generic], truth_N: NDArray[np.uint8]) -> None:
        """Count N predictions.

        Args:
            probs_KN: probabilities of the classes, floats, 0 to 1.
            truth_N: class indices, 0 to K - 1.
        """
        exact_KN = probs_KN.astype(np.float32)
        true_N = np.take_along_axis(exact_KN, truth_N[None].astype(np.intp), axis=0)[0].astype(np.float64)
        self.count += len(truth_N)
        self.nll -= float(np.log(true_N.clip(min=LEAST_PROBABILITY)).sum())
        self.brier += float(np.square(exact_KN).sum(dtype=np.float64) + (1 - 2 * true_N).sum())
        levels_KN = np.rint(255 * exact_KN).astype(np.uint8)
        for k, levels_N in enumerate(levels_KN):
            self.levels_KL2[k] += level_counts(levels_N, truth_N == k)

    def class_errors(self) -> tuple[float, ...]:
        """For each class the expected calibration error of its probability (256 levels), over all predictions."""
        return tuple(expected_calibration_error(reliability_of_levels(counts_L2)) for counts_L2 in self.levels_KL2)


def level_counts(levels: NDArray[np.uint8], is_right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each level of an 8-bit map is at a wrong (column 0) and at a right pixel (column 1).

    Args:
        levels: uint8 of any shape.
        is_right: of the same shape.

    Returns:
        (256, 2) int64. Those of several images add up to those of all.
    """
    pairs = levels.ravel().astype(np.intp) * 2 + is_right.ravel()
    return np.bincount(pairs, minlength=2 * LEVELS).reshape(LEVELS, 2).astype(np.int64)


def reliability(confidence_N: ArrayLike, right_N: ArrayLike, count_N: ArrayLike = 1) -> tuple[ReliabilityBin, ...]:
    """Sort predictions by their confidence into `NUM_BINS` bins of equal width, (0, 1/15], (1/15, 2/15] and so on.

    Args:
        confidence_N: probability of the predicted class, 0 to 1. For 8-bit maps the 256 levels / 255, which are bins'
            ends exactly at every 17th.
        right_N: how many predictions of this confidence are right.
        count_N: how many there are; one number stands for all.
    """
    confidence_N = np.asarray(confidence_N, dtype=np.float64)
    count_N = np.broadcast_to(count_N, confidence_N.shape)
    ends_B = np.arange(1, NUM_BINS + 1) / NUM_BINS
    # A float32 softmax may exceed 1 by a rounding.
    bin_N = np.searchsorted(ends_B, confidence_N, side="left").clip(max=NUM_BINS - 1)
    count_B, right_B, confidence_B = (
        np.bincount(bin_N, weights=weight_N, minlength=NUM_BINS)
        for weight_N in (count_N, np.asarray(right_N), count_N * confidence_N)
    )
    return tuple(
        ReliabilityBin(
            upper=float(end),
            count=int(count),
            confidence=float(confidence / count) if count else None,
            accuracy=float(right / count) if count else None,
        )
        for end, count, right, confidence in zip(ends_B, count_B, right_B, confidence_B, strict=True)
    )


def reliability_of_levels(counts_L2: NDArray[np.int64]) -> tuple[ReliabilityBin, ...]:
    """The bins of 8-bit confidences, 255 = 1, from their `level_counts`."""
    return reliability(np.arange(LEVELS) / 255, right_N=counts_L2[:, 1], count_N=counts_L2.sum(axis=1))


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean over all predictions of the distance of their bin's accuracy from its confidence, 0 to 1; NaN of nothing."""
    total = sum(entry.count for entry in bins)
    gaps = [
        entry.count * abs(entry.accuracy - entry.confidence)
        for entry in bins
        if entry.accuracy is not None and entry.confidence is not None
    ]
    return sum(gaps) / total if total else math.nan


def probability_scores(logits_NK: Tensor, truth_N: Tensor) -> ProbabilityScores:
    """Score the softmax of logits.

    Args:
        logits_NK: (N, K) float; N at least 1.
        truth_N: (N,) int64, 0 to K - 1.
    """
    probs_NK = logits_NK.double().softmax(dim=1)
    confidence_N, predicted_N = probs_NK.max(dim=1)
    bins = reliability(confidence_N.numpy(), (predicted_N == truth_N).numpy())
    wanted_NK = functional.one_hot(truth_N, num_classes=logits_NK.shape[1])
    return ProbabilityScores(
        ece=expected_calibration_error(bins),
        nll=functional.cross_entropy(logits_NK.double(), truth_N).item(),
        brier=(probs_NK - wanted_NK).square().sum(dim=1).mean().item(),
    )


def fit_temperature(logits_NK: Tensor, truth_N: Tensor) -> float:
    """The temperature whose softmax(logits / temperature) makes the truth most likely.

    The negative log-likelihood is convex in 1 / temperature, so that there is one least, or an end of `TEMPERATURES`.

    Args:
        logits_NK: (N, K) float, up to a constant per row: log-probabilities do as well.
        truth_N: (N,) int64, 0 to K - 1.

    Returns:
        Within `TEMPERATURES`; 1 where N is 0.
    """
    if len(truth_N) == 0:
        return 1.0
    logits_NK = logits_NK.double()

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits_NK / math.exp(log_temperature), truth_N).item()

    least, largest = (math.log(temperature) for temperature in TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(least, largest), method="bounded", options={"xatol": 1e-4}).x)


def cross_fitted(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The logits of all images, divided by a temperature that was fitted on other images than their own.

    Even images get the temperature of the odd ones and the other way round, so that scores of the result are those of
    held-out images.

    Args:
        parts: for each image its logits (N, K) and truth (N,), as `fit_temperature` takes them; at least one image.

    Returns:
        (N of all, K) float, in the images' order.
    """
    halves = [parts[0::2], parts[1::2]]
    temperatures = [fit_temperature(*joined(half)) if half else 1.0 for half in reversed(halves)]
    return torch.cat([logits_NK / temperatures[index % 2] for index, (logits_NK, _) in enumerate(parts)])


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several images' logits (N, K) and truth (N,) as one."""
    logits, truths = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(truths)
