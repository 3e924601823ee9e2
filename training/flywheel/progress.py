"""How the loop gets on: what changed between rounds, what the pseudo-labels are made of, and when to stop.

Dimensions: K classes.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segserve.settings import Settings
from segserve.whole import write_whole
from training.data import IGNORE, read_truth
from training.flywheel.round import Round
from training.flywheel.soft import SoftMask
from training.layouts import Dataset


class StopRule(Settings):
    """When there is no use in another round, or harm."""

    least_churn: float = Field(default=0.01, ge=0.0, le=1.0)
    """The masks of two rounds that differ by less are the same: mean over the images of 1 - mean IoU of old and new."""
    most_drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """The share of good held-out masks may fall by so much at most, from the best round before."""
    most_drift: float = Field(default=0.2, ge=0.0, le=1.0)
    """The classes' shares of the accepted pixels may be so far from those of the labelled ones: half the sum of the
    differences."""


class Step(Settings):
    """One training of the loop, and the round its model made."""

    number: int
    """0 is trained on the labelled images alone."""
    run: str
    artifact: str
    labels: str
    """Folder of the round."""
    scores: dict[str, float]
    """Of the model on the val split."""
    num_pseudo: int
    """Images that the model was trained on beside the labelled ones."""
    num_accepted: int
    """Of the round that it made."""
    num_images: int
    held_out_ious: tuple[float, ...]
    """Of the model on each held-out image, in their order: mean IoU over the classes, from one look."""
    good_share: float
    """Of the held-out masks, those as good as was asked for in the first round."""
    precision: float | None
    """Of the accepted held-out masks, those that are good; None where none is accepted."""
    churn: float | None
    """From the round before to this one."""
    drift: float
    shares: tuple[float, ...]
    """Of the classes, in the accepted masks."""
    sentence: str
    """How the thresholds came out."""

    @property
    def held_out_miou(self) -> float:
        """Mean over the held-out images."""
        return statistics.fmean(self.held_out_ious)


def class_shares(masks: Iterable[NDArray[np.uint8]], *, num_classes: int) -> NDArray[np.float64]:
    """(K,) share of the pixels that count, over all masks together; zeros where there is none."""
    counts_K = np.zeros(num_classes)
    for mask_HW in masks:
        counts_K += np.bincount(mask_HW[mask_HW != IGNORE], minlength=num_classes)[:num_classes]
    shares_K: NDArray[np.float64] = counts_K / max(counts_K.sum(), 1)
    return shares_K


def accepted_shares(found: Round) -> NDArray[np.float64]:
    """(K,) of the accepted masks as the model made them, what is not trained on included."""
    names = [entry.name for entry in found.entries().values() if entry.verdict == "accept"]
    masks = (SoftMask.read(found.soft(name)).mask_HW for name in names)
    return class_shares(masks, num_classes=len(found.order.classes))


def labelled_shares(dataset: Dataset) -> NDArray[np.float64]:
    """(K,) of the training split's masks."""
    masks = (read_truth(sample, ignore_index=dataset.ignore_index) for sample in dataset.split("train"))
    return class_shares(masks, num_classes=len(dataset.classes))


def distance(shares_K: NDArray[np.float64], others_K: NDArray[np.float64]) -> float:
    """Half the sum of the differences (total variation), 0 to 1; 0 where there is nothing to compare."""
    return float(np.abs(shares_K - others_K).sum() / 2) if shares_K.any() and others_K.any() else 0.0


def mean_churn(found: Round) -> float | None:
    """Over the images that the round before had, too; None where there is none."""
    churns = [entry.churn for entry in found.entries().values() if entry.churn is not None]
    return sum(churns) / len(churns) if churns else None


def reason_to_stop(steps: Sequence[Step], rule: StopRule) -> str | None:
    """Why there should be no round after these, in a sentence; None where there should."""
    last, before = steps[-1], steps[:-1]
    if not last.num_accepted:
        return f"round {last.number + 1} accepts nothing: label some of its images"
    if last.drift > rule.most_drift:
        return (
            f"the classes' shares of round {last.number + 1} are {last.drift:.3f} away from the labelled ones "
            f"(at most {rule.most_drift}): the model may be drifting"
        )
    best = max((step.good_share for step in before), default=-math.inf)
    if round(best - last.good_share, 9) > rule.most_drop:  # shares of so few images that a fall may be the very limit
        return (
            f"{last.good_share:.0%} of the held-out masks are good, after {best:.0%} "
            f"(a fall of {rule.most_drop:.0%} at most): more rounds do harm"
        )
    if last.churn is not None and last.churn < rule.least_churn:
        return (
            f"the masks changed by {last.churn:.4f} (at least {rule.least_churn}): another round would change nothing"
        )
    return None


def result_of(steps: Sequence[Step]) -> Step:
    """The first whose model is as good on the held-out images as the best one's, by the rule of one standard error.

    Breiman et al., Classification and Regression Trees (1984), 3.4.3: few images cannot tell apart what differs by
    less, and the simplest is to be taken, here the one with the fewest guesses among its labels. The error is that of
    the mean difference, image by image.

    By one look at each, not by the masks of the round: many views make up for what a model has not learnt, so that the
    first model's masks may be as good as those of later ones that do better alone.
    """
    best = max(steps, key=lambda step: step.held_out_miou)
    return next(step for step in steps if _is_as_good(step, best))


def _is_as_good(step: Step, best: Step) -> bool:
    lost = [high - low for high, low in zip(best.held_out_ious, step.held_out_ious, strict=True)]
    return statistics.fmean(lost) <= statistics.stdev(lost) / math.sqrt(len(lost))


def write_steps(path: Path, steps: Sequence[Step]) -> None:
    """One JSON line a step."""
    write_whole(path, "".join(step.model_dump_json() + "\n" for step in steps))
