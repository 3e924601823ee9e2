"""What a model scores on a data set's split, as a record and as text."""

import math
from collections.abc import Iterator, Mapping

from pydantic import Field

from segserve.settings import Settings
from segserve.spec import Aggregate, EngineChoice, Plan, Task
from training.boundary import TRIMAP_RADII, WIDTHS
from training.certainty import Certainty

LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("areas", ("class_accuracy", "weighted_iou")),
    ("images", ("miou_i", "miou_c", "miou_i_worst10", "miou_c_worst10")),
    ("contours", (*(f"boundary_iou_{width}" for width in WIDTHS), "boundary_f1", "rand_error")),
    ("trimaps", tuple(f"trimap_miou_{radius}px" for radius in TRIMAP_RADII)),
)
"""The further scores, as they are printed."""
COLUMNS: tuple[tuple[str, str], ...] = (
    ("recall", "recall"),
    ("precision", "precision"),
    ("boundary_iou_3px", "BIoU 3px"),
    ("boundary_f1", "BF1"),
    ("rand_f1", "Rand F"),
)
"""Further scores of classes, and what they are called there."""


class ClassScore(Settings):
    """How well one class does."""

    name: str
    score: float | None
    """IoU (segmentation) or recall (classification), 0 to 1; None where the split has nothing of the class."""
    count: int
    """Its pixels (segmentation) or images (classification) in the truth."""
    further: dict[str, float] = Field(default_factory=dict)
    """Others by name, those it has: recall, precision and, from `assess`, of its contours and its calibration."""


class ImageScore(Settings):
    """How one image came out."""

    name: str
    """Its file, from the data set's folder."""
    score: float | None
    """Mean IoU over the classes of truth and prediction; of a label 1 if it is right, else 0; None: it is all
    void."""
    confidence: float
    """Probability of the predicted class, the mean over the pixels; 0 to 1."""
    uncertainty: float
    """Mean entropy, 0 (certain) to 1."""

    def rating(self, task: Task) -> float:
        """Its place between best and worst. Of labels the most confident mistake is the worst. NaN: it has none."""
        if self.score is None:
            return math.nan
        if task == "segmentation":
            return self.score
        return self.confidence if self.score else -self.confidence


class Evaluation(Settings):
    """What a model scores on one split."""

    task: Task
    split: str
    num_images: int
    tta: Plan
    aggregate: Aggregate
    scores: dict[str, float]
    classes: tuple[ClassScore, ...]
    engine: EngineChoice = "torch"
    """That ran the network."""
    temperature: float = 1.0
    """The logits were divided by it."""
    selected_on: str | None = None
    """The split whose scores chose the epoch: the scores on it are too good."""
    certainty: Certainty | None = None
    """None: not looked at, or nothing to look at."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Truth in rows, prediction in columns: pixels or images."""
    images: tuple[ImageScore, ...] = ()
    """In the split's order; from `assess` only."""

    def table(self) -> str:
        """The scores, a line a class, and how well the model knows what it knows, as text."""
        lines = [*self._class_lines(), self._total_line()]
        if self.selected_on:
            lines.append(f"the epoch was chosen by its score on {self.selected_on}: scores on it are too good")
        width = max(len(title) for title, _ in LINES)
        for title, names in LINES:
            known = {name: self.scores[name] for name in names if name in self.scores}
            if known:
                lines.append(f"{title:{width}}  {_named(known)}")
        if self.certainty is not None:
            figures = _named(self.certainty.figures())
            lines += [f"temperature {self.temperature:.3g}: {figures}", "", self.certainty.table()]
        return "\n".join(lines)

    def _class_lines(self) -> Iterator[str]:
        measure, unit = ("IoU", "pixels") if self.task == "segmentation" else ("recall", "images")
        columns = [
            (name, title)
            for name, title in COLUMNS
            if title != measure and any(name in entry.further for entry in self.classes)
        ]
        width = max(len("class"), *(len(entry.name) for entry in self.classes))
        titles = "".join(f"  {title:>9}" for _, title in columns)
        yield f"{'class':{width}}  {measure:>7}{titles}  {unit:>11}"
        for entry in self.classes:
            cells = "".join(f"  {_cell(entry.further.get(name)):>9}" for name, _ in columns)
            yield f"{entry.name:{width}}  {_cell(entry.score):>7}{cells}  {entry.count:>11,}"

    def _total_line(self) -> str:
        names = [name for name in self.scores if not any(name in others for _, others in LINES)]
        how = self.tta if self.tta == "none" else f"{self.tta}, aggregate {self.aggregate}"
        totals = _named({name: self.scores[name] for name in names})
        scored = f"{self.num_scored} of {len(self.classes)} classes"
        return f"{self.split}, {self.num_images} images, engine {self.engine}, tta {how}: {totals} ({scored})"

    @property
    def figures(self) -> dict[str, float]:
        """The scores, and the calibration error where it was looked at."""
        return {**self.scores, **({} if self.certainty is None else {"ece": self.certainty.ece})}

    @property
    def num_scored(self) -> int:
        """The classes that the means are over."""
        return sum(entry.score is not None for entry in self.classes)


def _cell(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def _named(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
