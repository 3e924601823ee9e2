"""How well a predictor knows what it knows, over a split: calibration, and whether its doubt points at its mistakes.

Everything is added up image by image in 256-level histograms: exact for the 8-bit maps that the service sends, and the
memory does not grow with the pixels.

Dimensions: K classes, L levels of an 8-bit map, H, W.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segserve.prediction import Prediction, SegmentationPrediction
from segserve.settings import Settings
from segserve.spec import Measure
from training.boundary import BAND, contour_distance
from training.calibration import (
    LEVELS,
    ProbabilityTally,
    ReliabilityBin,
    expected_calibration_error,
    level_counts,
    reliability,
    reliability_of_levels,
)
from training.data import IGNORE
from training.risk_coverage import aurc, aurc_by, best_aurc, risk_curve, risk_curve_by

Doubt = Literal["confidence", Measure]
"""What predictions are ordered by: 1 - confidence, or a measure of uncertainty."""


class RiskCoverage(Settings):
    """Areas under risk-coverage curves, see `training.risk_coverage`; less is better."""

    unit: Literal["pixels", "images"]
    """The risk of a pixel or of a labelled image is 1 where it is wrong; that of an image with a mask, 1 - its mIoU."""
    aurc: dict[Doubt, float]
    excess: dict[Doubt, float]
    """The same, less `best`."""
    best: float
    """With the order that only the truth can tell."""
    random: float
    """Without any order: the mean risk."""
    curves: dict[Doubt, tuple[float, ...]] = Field(default_factory=dict)
    """The risk of what is kept, at each of `training.risk_coverage.COVERAGES`."""

    def areas(self) -> dict[str, float]:
        """All of them by name."""
        return {str(doubt): area for doubt, area in self.aurc.items()} | {"random": self.random, "best": self.best}


class Certainty(Settings):
    """The figures of one split."""

    ece: float
    """Expected calibration error of the predicted classes, 0 to 1: of pixels, or of images where those are labelled."""
    reliability: tuple[ReliabilityBin, ...]
    risk_coverage: tuple[RiskCoverage, ...]
    """Of pixels (masks only), then of images."""
    ece_boundary: float | None = None
    """Calibration error of the pixels within 3 of a contour of the truth; None where there is none, and of labels."""
    nll: float | None = None
    """Mean negative log-likelihood of the truth, nats. None, and so are the next ones: not looked at."""
    brier: float | None = None
    """Mean squared distance from the truth's one-hot vector, 0 to 2."""
    classwise_ece: float | None = None
    """Mean of `class_ece`, 0 to 1."""
    class_ece: tuple[float, ...] = ()
    """For each class the calibration error of its own probability."""

    def figures(self) -> dict[str, float]:
        """Those that are known, by name; less is better."""
        named = {
            "ece": self.ece,
            "ece_boundary": self.ece_boundary,
            "classwise_ece": self.classwise_ece,
            "nll": self.nll,
            "brier": self.brier,
        }
        return {name: value for name, value in named.items() if value is not None}

    def table(self) -> str:
        """The areas, a line each order, as text."""
        columns = [entry.areas() for entry in self.risk_coverage]
        width = max(map(len, columns[0]))
        lines = [f"{'AURC':{width}}" + "".join(f"  {entry.unit:>8}" for entry in self.risk_coverage)]
        for name in columns[0]:
            lines.append(f"{name:{width}}" + "".join(f"  {column[name]:8.5f}" for column in columns))
        return "\n".join(lines)


class Tally(Protocol):
    """What is counted of one kind of unit."""

    def reliability(self) -> tuple[ReliabilityBin, ...]: ...

    def boundary_reliability(self) -> tuple[ReliabilityBin, ...]: ...

    def risk_coverage(self) -> RiskCoverage: ...


@dataclass(frozen=True)
class PixelTally:
    """Of each map of doubt: how often each level is at a wrong and at a right pixel."""

    counts: defaultdict[Doubt, NDArray[np.int64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros((LEVELS, 2), dtype=np.int64))
    )
    boundary_L2: NDArray[np.int64] = field(default_factory=lambda: np.zeros((LEVELS, 2), dtype=np.int64))
    """The same of the confidence near contours."""

    def add(self, truth_HW: NDArray[np.uint8], prediction: SegmentationPrediction) -> None:
        """Count an image's pixels, all but those whose truth is `IGNORE`; every image with the same maps."""
        valid_HW = truth_HW != IGNORE
        is_right = (prediction.mask_HW == truth_HW)[valid_HW]
        self.counts["confidence"] += level_counts(prediction.confidence_HW[valid_HW], is_right)
        near_HW = contour_distance(truth_HW, reach=BAND) <= BAND
        self.boundary_L2[:] += level_counts(
            prediction.confidence_HW[near_HW], (prediction.mask_HW == truth_HW)[near_HW]
        )
        for measure, map_HW in prediction.uncertainty_HW.items():
            self.counts[measure] += level_counts(map_HW[valid_HW], is_right)

    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """The bins of the pixels' confidence."""
        return reliability_of_levels(self.counts["confidence"])

    def boundary_reliability(self) -> tuple[ReliabilityBin, ...]:
        """The bins of the confidence of pixels within `BAND` of a contour of the truth."""
        return reliability_of_levels(self.boundary_L2)

    def risk_coverage(self) -> RiskCoverage:
        """Of pixels, by each map; there must be some."""
        wrong, right = self.counts["confidence"].sum(axis=0).tolist()
        return _risk_coverage(
            "pixels",
            {doubt: aurc(*_risks(doubt, counts_L2)) for doubt, counts_L2 in self.counts.items()},
            best=best_aurc(wrong, right),
            random=wrong / (wrong + right),
            curves={doubt: risk_curve(*_risks(doubt, counts_L2)) for doubt, counts_L2 in self.counts.items()},
        )


@dataclass(frozen=True)
class ImageTally:
    """Each image's risk and doubts."""

    measures: tuple[Measure, ...]
    """Those to look at, beside the confidence."""
    risks: list[float] = field(default_factory=list)
    doubts: defaultdict[Doubt, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, prediction: Prediction, *, confidence: float, risk: float) -> None:
        """Count an image.

        Args:
            prediction: of the image.
            confidence: of its predicted class, or the mean over its pixels.
            risk: 0 to 1.
        """
        self.risks.append(risk)
        self.doubts["confidence"].append(1 - confidence)
        for measure in self.measures:
            self.doubts[measure].append(_image_score(prediction, measure))

    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """The bins of labelled images' confidence."""
        return reliability(1 - np.array(self.doubts["confidence"]), right_N=1 - np.array(self.risks))

    def boundary_reliability(self) -> tuple[ReliabilityBin, ...]:
        """Labels have no contours."""
        return ()

    def risk_coverage(self) -> RiskCoverage:
        """Of images, by each score; there must be some."""
        return _risk_coverage(
            "images",
            {doubt: aurc_by(scores, self.risks) for doubt, scores in self.doubts.items()},
            best=aurc_by(self.risks, self.risks),
            random=float(np.mean(self.risks)),
            curves={doubt: risk_curve_by(scores, self.risks) for doubt, scores in self.doubts.items()},
        )


def certainty(*tallies: Tally, probabilities: ProbabilityTally | None = None) -> Certainty | None:
    """The figures of the tallies, the calibration being that of the first; None where that has counted nothing.

    Args:
        tallies: of pixels, of images.
        probabilities: of all classes; without them there is no `nll`, `brier` and `class_ece`.
    """
    bins, boundary_ece = tallies[0].reliability(), expected_calibration_error(tallies[0].boundary_reliability())
    if not any(entry.count for entry in bins):
        return None
    figures = Certainty(
        ece=expected_calibration_error(bins),
        reliability=bins,
        risk_coverage=tuple(tally.risk_coverage() for tally in tallies),
        ece_boundary=None if math.isnan(boundary_ece) else boundary_ece,
    )
    return figures if probabilities is None else figures.model_copy(update=_of_probabilities(probabilities))


def _of_probabilities(tally: ProbabilityTally) -> dict[str, object]:
    errors = tally.class_errors()
    return {
        "nll": tally.nll / tally.count,
        "brier": tally.brier / tally.count,
        "class_ece": errors,
        "classwise_ece": sum(errors) / len(errors),
    }


def _risks(doubt: Doubt, counts_L2: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Wrong ones and all of them at each level, the most certain first."""
    if doubt == "confidence":
        counts_L2 = counts_L2[::-1]
    return counts_L2[:, 0], counts_L2.sum(axis=1)


def _image_score(prediction: Prediction, measure: Measure) -> float:
    match measure:
        case "entropy":
            return prediction.mean_entropy
        case "mutual-information":
            return prediction.mutual_information
        case "disagreement":
            return 1 - prediction.view_agreement
        case _:
            assert_never(measure)


def _risk_coverage(
    unit: Literal["pixels", "images"],
    areas: dict[Doubt, float],
    *,
    best: float,
    random: float,
    curves: dict[Doubt, tuple[float, ...]],
) -> RiskCoverage:
    excess = {doubt: area - best for doubt, area in areas.items()}
    return RiskCoverage(unit=unit, aurc=areas, excess=excess, best=best, random=random, curves=curves)
