"""Which masks are taken, which are looked at, which are thrown away; and which pixels of those taken are trained on.

The thresholds are fitted on held-out labelled images, for a precision that is asked for.

Dimensions: N images, H, W.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segserve.settings import Settings
from segserve.spec import ClassSpec
from training.boundary import contour_distance
from training.data import IGNORE
from training.flywheel.scores import ScoreName, auroc
from training.flywheel.soft import SoftMask
from training.layouts import Dataset

Verdict = Literal["accept", "review", "relabel"]
"""Train on it; it needs a look and some work; it is of no use, label the image anew."""
USUAL_SHARE = 0.75
"""Of the held-out images that are as good as a mask must be, if nothing is said about it."""
LEAST_HELD_OUT, LEAST_ACCEPTED = 8, 5
"""Held-out images that thresholds can be fitted on, and those above the upper one."""
HOPELESS = 0.5
"""Masks of which less than this share are good are not worth the work on them."""


class Selection(Settings):
    """What masks must be like to be taken."""

    score: ScoreName = "expected_iou"
    precision: float = Field(default=0.9, ge=0.0, le=1.0)
    """Share of the accepted held-out masks that must be good; 0 takes everything."""
    good_iou: float | None = Field(default=None, ge=0.0, le=1.0)
    """Mean IoU of a good mask; None: what three of four held-out masks reach."""


class PixelRule(Settings):
    """Which pixels of an accepted mask are not trained on."""

    border: float = Field(default=2.0, ge=0.0)
    """Those so near to another class, in pixels of the size that the network sees."""
    least_confidence: float = Field(default=0.5, ge=0.0, le=1.0)
    """Those whose class is less probable."""
    most_disagreement: float = Field(default=0.25, ge=0.0, le=1.0)
    """Those of which a larger share of the views says something else."""

    def trainable(self, soft: SoftMask) -> NDArray[np.uint8]:
        """The mask, (H, W), with `IGNORE` for pixels that are not trained on."""
        mask_HW = soft.mask_HW
        unsure_HW = soft.probs_THW[0] < 255 * self.least_confidence
        unsure_HW |= soft.disagreement_HW > 255 * self.most_disagreement
        if self.border:
            reach = max(1, round(self.border * soft.scale))
            unsure_HW |= contour_distance(mask_HW, reach=reach) <= reach
        return np.where(unsure_HW, np.uint8(IGNORE), mask_HW)


class Thresholds(Settings):
    """Two values of a score, and what they did on the held-out images."""

    score: ScoreName
    good_iou: float
    target: float
    accept_from: float | None
    """None: no value reaches the target, and nothing is accepted."""
    relabel_below: float | None
    """None: nothing is thrown away."""
    num_held_out: int
    num_good: int
    """Of them."""
    num_accepted: int
    num_accepted_good: int
    mean_iou: float
    """Of the held-out masks."""
    auroc: dict[str, float]
    """Of each score, for telling good held-out masks from others; without those that have no value."""

    @property
    def precision(self) -> float:
        """Share of the accepted held-out masks that are good; NaN where none is accepted."""
        return self.num_accepted_good / self.num_accepted if self.num_accepted else math.nan

    @property
    def good_share(self) -> float:
        """Of all held-out masks."""
        return self.num_good / self.num_held_out

    def verdict(self, score: float) -> Verdict:
        if self.accept_from is not None and score >= self.accept_from:
            return "accept"
        return "relabel" if self.relabel_below is not None and score < self.relabel_below else "review"

    @property
    def sentence(self) -> str:
        """What was fitted, in words."""
        good = f"good is a mean IoU of {self.good_iou:.3f} or more, as {self.num_good} of {self.num_held_out} are"
        if self.accept_from is None:
            return (
                f"nothing is accepted: on {self.num_held_out} held-out images no value of {self.score} leaves "
                f"{LEAST_ACCEPTED} or more of which {self.target:.0%} are good ({good})"
            )
        below = "" if self.relabel_below is None else f"; below {self.relabel_below:.4f} they are to be labelled anew"
        return (
            f"masks are accepted where {self.score} is {self.accept_from:.4f} or more: so it is on {self.num_accepted} "
            f"of {self.num_held_out} held-out images, of which {self.num_accepted_good} ({self.precision:.0%}, target "
            f"{self.target:.0%}) are good; {good}{below}"
        )


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A labelled image that the model was not trained on."""

    scores: dict[str, float]
    iou: float
    """The mask's true mean IoU over the image's classes."""


def check_held_out(dataset: Dataset, split: str, classes: Sequence[ClassSpec]) -> None:
    """A ValueError where no thresholds can be fitted on a split: it has too few images, or other classes."""
    names = [[entry.name for entry in each] for each in (classes, dataset.classes)]
    if names[0] != names[1]:
        raise ValueError(
            f"expected held-out images with the classes {names[0]}, but {dataset.root} has {names[1]}: give another "
            "set by --held-out"
        )
    _check_count(len(dataset.split(split)))


def _check_count(count: int) -> None:
    if count < LEAST_HELD_OUT:
        raise ValueError(
            f"expected at least {LEAST_HELD_OUT} held-out labelled images to fit the thresholds on, but got "
            f"{count}: add some to the split, or give another set by --held-out"
        )


def fit_thresholds(found: Sequence[HeldOut], selection: Selection) -> Thresholds:
    """The lowest value from which on masks are as precise as asked for, and the highest below which they are hopeless.

    Raises:
        ValueError: there are too few images, or they do not have the score.
    """
    _check_count(len(found))
    if any(selection.score not in image.scores for image in found):
        raise ValueError(
            f"expected one of the scores {', '.join(found[0].scores)}, but got {selection.score}: choose one of them"
            + (" (stability needs --run, of a training with eval.keep_thirds)" * (selection.score == "stability"))
        )
    iou_N = np.array([image.iou for image in found])
    score_N = np.array([image.scores[selection.score] for image in found])
    good_iou = selection.good_iou
    if good_iou is None:
        # Rounded down as it is stored, so that the image it is taken from reaches it.
        good_iou = math.floor(1e6 * float(np.quantile(iou_N, 1 - USUAL_SHARE, method="lower"))) / 1e6
    is_good_N = iou_N >= good_iou
    accept_from = _accept_from(score_N, is_good_N, target=selection.precision)
    is_accepted_N = score_N >= (math.inf if accept_from is None else accept_from)
    return Thresholds(
        score=selection.score,
        good_iou=good_iou,
        target=selection.precision,
        accept_from=accept_from,
        relabel_below=_relabel_below(score_N, is_good_N, at_most=accept_from),
        num_held_out=len(found),
        num_good=int(is_good_N.sum()),
        num_accepted=int(is_accepted_N.sum()),
        num_accepted_good=int((is_accepted_N & is_good_N).sum()),
        mean_iou=float(iou_N.mean()),
        auroc=_aurocs(found, is_good_N),
    )


def _accept_from(score_N: NDArray[np.float64], is_good_N: NDArray[np.bool_], *, target: float) -> float | None:
    if target == 0:
        return 0.0
    for value in np.unique(score_N):
        kept_N = score_N >= value
        if kept_N.sum() >= LEAST_ACCEPTED and is_good_N[kept_N].mean() >= target:
            return float(value)
    return None


def _relabel_below(
    score_N: NDArray[np.float64], is_good_N: NDArray[np.bool_], *, at_most: float | None
) -> float | None:
    for value in np.unique(score_N)[::-1]:
        below_N = score_N < value
        if (at_most is None or value <= at_most) and below_N.any() and is_good_N[below_N].mean() < HOPELESS:
            return float(value)
    return None


def _aurocs(found: Sequence[HeldOut], is_good_N: NDArray[np.bool_]) -> dict[str, float]:
    shared = [name for name in get_args(ScoreName) if all(name in image.scores for image in found)]
    areas = {name: auroc([image.scores[name] for image in found], is_good_N) for name in shared}
    return {name: round(area, 4) for name, area in areas.items() if not math.isnan(area)}
