"""The report of one evaluation as one HTML page, which needs nothing beside it: no network, no script.

Dimensions: H, W, C channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.prediction import SegmentationPrediction
from segserve.spec import ClassSpec
from training.boundary import TRIMAP_RADII
from training.certainty import RiskCoverage
from training.charts import Axis, Series, line_chart
from training.data import IGNORE
from training.evaluate import Outcome
from training.evaluation import ClassScore, Evaluation
from training.markup import document, figure, grid, heat_cell, heat_map, jpeg, picture, png, row, scrolling, swatch
from training.pictures import ERROR_COLOR, VOID_COLOR, error_map, paint
from training.risk_coverage import COVERAGES
from training.run import EpochLog

MOST_CLASSES = 40
"""Of a confusion matrix that is shown as a whole."""
MOST_CONFUSIONS = 10

TILES: Mapping[str, str] = {
    "miou": "mean IoU",
    "accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "mean_recall": "mean recall",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou_3px": "boundary IoU, 3 px",
    "boundary_f1": "boundary F1",
    "rand_error": "Rand error",
    "ece": "calibration error",
}
"""The figures at the head of the page, those that there are."""

CLASS_COLUMNS = (
    *("recall", "precision", "boundary_iou_1px", "boundary_iou_3px", "boundary_iou_2pct", "boundary_f1", "rand_f1"),
    "ece",
)
"""What is shown of a class beside its score, where it has it."""

MEANINGS: Mapping[str, str] = {
    "miou": "Intersection over union, the mean over the classes; over all pixels of the split at once.",
    "pixel_accuracy": "Share of pixels that are right. Large classes decide it.",
    "class_accuracy": "Recall, the mean over the classes.",
    "weighted_iou": "IoU, each class weighted by its share of the truth.",
    "miou_i": "IoU of each image's classes, the mean over them, then over images. Small objects count as large ones.",
    "miou_c": "IoU of each image, the mean over a class's images, then over classes.",
    "miou_i_worst10": "The same as miou_i, over the worst tenth of the images.",
    "miou_c_worst10": "The same as miou_c, over the worst tenth of each class's images.",
    "boundary_iou_1px": "IoU of what is within 1 pixel of a contour.",
    "boundary_iou_3px": "IoU of what is within 3 pixels of a contour.",
    "boundary_iou_2pct": "IoU of what is within 2 % of the image's diagonal of a contour.",
    "boundary_f1": "Contours found to within 0.75 % of the diagonal: F1, over classes, then images.",
    "rand_error": "1 - Rand score of the connected pieces: 0 when all are told apart.",
    **{
        f"trimap_miou_{r}px": f"Mean IoU over the pixels within {r} of a class change in the truth."
        for r in TRIMAP_RADII
    },
    "accuracy": "Share of images whose most probable class is right.",
    "top5_accuracy": "Share of images whose class is among the five most probable ones.",
    "mean_recall": "Recall, the mean over the classes.",
    "ece": "Expected calibration error: how far confidence is from the share that is right. Less is better.",
    "ece_boundary": "The same within 3 pixels of a contour. Less is better.",
    "classwise_ece": "The same of every class's probability, the mean over the classes. Less is better.",
    "nll": "Negative log-likelihood of the truth, nats. Less is better.",
    "brier": "Squared distance from the truth, 0 to 2. Less is better.",
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows."""

    title: str
    protocol: Sequence[str]
    """Sentences: which weights were scored, on what, and how they were chosen."""
    evaluation: Evaluation
    classes: tuple[ClassSpec, ...]
    samples: Mapping[str, Sequence[Outcome]]
    """By the heading they come under; with maps of entropy."""
    history: Sequence[EpochLog] = ()
    """Of the training, where it is known."""
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def html(self) -> str:
        """The page."""
        sections = {
            "Training": self._training(),
            "Classes": self._classes(),
            "Confusion": self._confusion(),
            "Borders": self._borders(),
            "Certainty": self._certainty(),
            "Samples": self._samples(),
            "All scores": self._all_scores(),
            "Configuration": self._configuration(),
        }
        head = self._subtitle() + self._tiles() + self._protocol()
        return document(self.title, head=head, sections=sections)

    # --- head ---

    def _subtitle(self) -> str:
        evaluation = self.evaluation
        tta = "no test-time augmentation"
        if evaluation.tta != "none":
            tta = f"test-time augmentation {evaluation.tta}, joined by {evaluation.aggregate}"
        scored = f"{evaluation.num_scored} of {len(evaluation.classes)} classes scored"
        parts = (f"split <strong>{escape(evaluation.split)}</strong>", f"{evaluation.num_images:,} images", scored, tta)
        return f'<p class="subtitle">{" · ".join(parts)}</p>'

    def _tiles(self) -> str:
        figures = self._figures()
        tiles = [
            f"<div><dt>{title}</dt><dd>{figures[name]:.4f}</dd></div>"
            for name, title in TILES.items()
            if name in figures and not (self.evaluation.task == "segmentation" and name == "mean_recall")
        ]
        return f'<dl class="tiles">{"".join(tiles)}</dl>'

    def _protocol(self) -> str:
        return f'<p class="protocol"><strong>Protocol.</strong> {escape(" ".join(self.protocol))}</p>'

    def _figures(self) -> dict[str, float]:
        certainty = self.evaluation.certainty
        return self.evaluation.scores | (certainty.figures() if certainty else {})

    # --- sections ---

    def _training(self) -> str:
        if not self.history:
            return ""
        scored = [entry for entry in self.history if entry.scores]
        names = list(scored[-1].scores) if scored else []
        charts = {
            "Loss": [Series(name="loss", points=[(entry.epoch, entry.loss) for entry in self.history])],
            "Scores on the val split": [
                Series(name=name, points=[(e.epoch, e.scores[name]) for e in scored if name in e.scores])
                for name in names
            ],
            "Learning rate": [
                Series(name="learning rate", points=[(entry.epoch, entry.learning_rate) for entry in self.history])
            ],
        }
        return grid(
            figure(title, line_chart(series, label=f"{title} by epoch", x=Axis(title="epoch", is_whole=True), y=Axis()))
            for title, series in charts.items()
            if series
        )

    def _classes(self) -> str:
        measure, unit = ("IoU", "pixels") if self.evaluation.task == "segmentation" else ("recall", "images")
        known = {name for entry in self.evaluation.classes for name in entry.further}
        columns = [name for name in CLASS_COLUMNS if name in known and name != measure]
        total = sum(entry.count for entry in self.evaluation.classes) or 1
        head = row([measure, *map(_spoken, columns), f"share of {unit}", unit], first="class", tag="th", scope="col")
        rows = [
            self._class_row(entry, spec, columns, total)
            for entry, spec in zip(self.evaluation.classes, self.classes, strict=True)
        ]
        note = f"Bars: the {measure} of each class, over all {unit} of the split at once."
        return f'<p class="note">{note}</p>' + scrolling(
            f'<table class="classes"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>', label="classes"
        )

    def _class_row(self, entry: ClassScore, spec: ClassSpec, columns: Sequence[str], total: int) -> str:
        bar = "&ndash;"
        if entry.score is not None:
            width = f"width:{100 * entry.score:.1f}%"
            bar = f'<span class="bar"><span style="{width}"></span></span><span class="value">{entry.score:.4f}</span>'
        cells = [
            bar,
            *(f"{entry.further[name]:.4f}" if name in entry.further else "&ndash;" for name in columns),
            f"{entry.count / total:.2%}",
            f"{entry.count:,}",
        ]
        return row(cells, first=f"{swatch(spec.color)}{escape(entry.name)}")

    def _confusion(self) -> str:
        counts_KK = np.array(self.evaluation.confusion, dtype=np.int64)
        if not counts_KK.size or not counts_KK.any():
            return ""
        share_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
        unit = "pixels" if self.evaluation.task == "segmentation" else "images"
        matrix = [self._matrix(counts_KK, share_KK, unit)] if len(counts_KK) <= MOST_CLASSES else []
        return f'<div class="beside">{"".join([*matrix, self._confusions(counts_KK, share_KK, unit)])}</div>'

    def _matrix(self, counts_KK: NDArray[np.int64], share_KK: NDArray[np.float64], unit: str) -> str:
        names = [escape(entry.name) for entry in self.evaluation.classes]
        titles = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
        rows = []
        for name, counts_K, share_K in zip(names, counts_KK, share_KK, strict=True):
            cells = (
                heat_cell(share, f"{count:,} {unit}")
                for share, count in zip(share_K.tolist(), counts_K.tolist(), strict=True)
            )
            rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
        note = f"Per cent of each class's {unit}: a row is the truth, a column what was predicted."
        corner = '<th class="corner" scope="col">truth \\ predicted</th>'
        table = f'<table class="heat"><thead><tr>{corner}{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return f'<div><p class="note">{note}</p>{scrolling(table, label="confusion matrix")}</div>'

    def _confusions(self, counts_KK: NDArray[np.int64], share_KK: NDArray[np.float64], unit: str) -> str:
        wrong_KK = counts_KK * (1 - np.eye(len(counts_KK), dtype=np.int64))
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_CONFUSIONS]
        names = [escape(entry.name) for entry in self.evaluation.classes]
        rows = [
            row([names[said], f"{wrong_KK[true, said]:,}", f"{share_KK[true, said]:.2%}"], first=names[true])
            for true, said in (divmod(int(place), len(counts_KK)) for place in order)
            if wrong_KK[true, said]
        ]
        head = row(["taken for", unit, "of the class"], first="truth", tag="th", scope="col")
        table = f'<table class="plain"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
        note = '<p class="note">The most frequent confusions.</p>'
        return f"<div>{note}{scrolling(table, label='most frequent confusions')}</div>"

    def _borders(self) -> str:
        scores = self.evaluation.scores
        trimap = [(r, scores[f"trimap_miou_{r}px"]) for r in TRIMAP_RADII if f"trimap_miou_{r}px" in scores]
        if not trimap:
            return ""
        chart = line_chart(
            [
                Series(name="near contours", points=trimap),
                Series(name="everywhere", points=[(trimap[0][0], scores["miou"]), (trimap[-1][0], scores["miou"])]),
            ],
            label="mean IoU in bands around the truth's contours",
            x=Axis(title="pixels from a contour, at most", ends=(0, TRIMAP_RADII[-1] + 1)),
            y=Axis(title="mean IoU"),
        )
        names = [name for name in scores if name.startswith("boundary") or name == "rand_error"]
        rows = [row([f"{scores[name]:.4f}", MEANINGS[name]], first=_spoken(name)) for name in names]
        table = f'<table class="plain"><tbody>{"".join(rows)}</tbody></table>'
        return grid([figure("Mean IoU near class changes", chart), scrolling(table, label="scores of borders")])

    def _certainty(self) -> str:
        found = self.evaluation.certainty
        if found is None:
            return ""
        points = [
            (b.confidence, b.accuracy) for b in found.reliability if b.confidence is not None and b.accuracy is not None
        ]
        charts = [
            figure(
                f"Reliability: calibration error {found.ece:.4f}",
                line_chart(
                    [Series(name="share that is right", points=points)],
                    label="share of right predictions by confidence; on the diagonal they are equal",
                    x=Axis(title="confidence", ends=(0, 1)),
                    y=Axis(title="share that is right", ends=(0, 1)),
                    diagonal=True,
                ),
                note="Below the dotted line the model is too sure, above it not sure enough.",
            ),
            *(_risk_figure(entry) for entry in found.risk_coverage if entry.curves),
        ]
        return grid(charts) + self._bins()

    def _bins(self) -> str:
        assert self.evaluation.certainty is not None
        bins = self.evaluation.certainty.reliability
        total = sum(entry.count for entry in bins)
        rows = [
            row(
                [_shown(entry.confidence), _shown(entry.accuracy), f"{entry.count / total:.2%}"],
                first=f"to {entry.upper:.3f}",
            )
            for entry in bins
            if entry.count
        ]
        head = row(["mean confidence", "share right", "share of all"], first="confidence", tag="th", scope="col")
        table = f'<table class="plain"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
        return f"<details><summary>The bins as numbers</summary>{scrolling(table, label='bins')}</details>"

    def _samples(self) -> str:
        groups = {heading: outcomes for heading, outcomes in self.samples.items() if outcomes}
        if not groups:
            return ""
        show = self._mask_sample if self.evaluation.task == "segmentation" else self._label_sample
        parts = [self._legend()] if self.evaluation.task == "segmentation" else []
        for heading, outcomes in groups.items():
            kind = "rows" if self.evaluation.task == "segmentation" else "cards"
            parts.append(f'<h3>{escape(heading)}</h3><div class="{kind}">{"".join(map(show, outcomes))}</div>')
        return "".join(parts)

    def _legend(self) -> str:
        entries = [(entry.name, entry.color) for entry in self.classes]
        entries += [("wrong", ERROR_COLOR), ("not counted", VOID_COLOR)]
        items = "".join(f"<li>{swatch(color)}{escape(name)}</li>" for name, color in entries)
        return f'<ul class="legend">{items}</ul>'

    def _mask_sample(self, outcome: Outcome) -> str:
        assert isinstance(outcome.prediction, SegmentationPrediction)
        counts = outcome.truth != IGNORE
        wrong = float((outcome.predicted != outcome.truth)[counts].mean()) if counts.any() else 0.0
        name = escape(outcome.sample.image.name)
        doubt_HW = outcome.prediction.uncertainty_HW["entropy"]
        pictures = {
            "image": jpeg(outcome.image_HWC),
            "truth": png(paint(outcome.truth, self.classes)),
            "prediction": png(paint(outcome.predicted, self.classes)),
            f"errors, {wrong:.1%} wrong": png(error_map(outcome)),
            f"uncertainty, mean {outcome.prediction.mean_entropy:.3f}": jpeg(heat_map(doubt_HW)),
        }
        figures = "".join(picture(source, caption, of=name) for caption, source in pictures.items())
        return f'<article><h4>{name}, mean IoU {1 - outcome.risk:.3f}</h4><div class="row">{figures}</div></article>'

    def _label_sample(self, outcome: Outcome) -> str:
        said, true = (escape(self.classes[int(index)].name) for index in (outcome.predicted, outcome.truth))
        verdict = '<span class="right">right</span>' if said == true else f'<span class="wrong">is {true}</span>'
        caption = f"{said} {outcome.confidence:.0%}: {verdict}"
        alt = f"{escape(outcome.sample.image.name)}: predicted {said}, is {true}"
        return f'<figure><img src="{jpeg(outcome.image_HWC)}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'

    def _all_scores(self) -> str:
        rows = [
            row([f"{value:.4f}", escape(MEANINGS.get(name, ""))], first=f"<code>{escape(name)}</code>")
            for name, value in self._figures().items()
        ]
        head = row(["value", "what it is"], first="score", tag="th", scope="col")
        table = f'<table class="plain"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
        return scrolling(table, label="all scores")

    def _configuration(self) -> str:
        rows = [
            row([f"<code>{escape(str(value))}</code>"], first=f"<code>{escape(key)}</code>")
            for key, value in _flat(self.configuration)
        ]
        if not rows:
            return ""
        return scrolling(f'<table class="plain"><tbody>{"".join(rows)}</tbody></table>', label="configuration")


def _risk_figure(entry: RiskCoverage) -> str:
    series = [
        Series(name=f"by {doubt} ({entry.aurc[doubt]:.4f})", points=list(zip(COVERAGES, curve, strict=True)))
        for doubt, curve in entry.curves.items()
    ]
    series.append(Series(name=f"random ({entry.random:.4f})", points=[(0.0, entry.random), (1.0, entry.random)]))
    highest = max(risk for line in series for _, risk in line.points) or 1.0
    chart = line_chart(
        series,
        label=f"risk of the {entry.unit} that are kept, by the share kept",
        x=Axis(title=f"share of {entry.unit} kept, most certain first", ends=(0, 1)),
        y=Axis(title="risk", ends=(0, 1.08 * highest)),
    )
    note = f"Less is better; in brackets the area, at best {entry.best:.4f}."
    return figure(f"Risk and coverage of {entry.unit}", chart, note=note)


def _spoken(name: str) -> str:
    """A score's name for the head of a table."""
    return (
        name.replace("_", " ")
        .replace("iou", "IoU")
        .replace("ece", "ECE")
        .replace("f1", "F1")
        .replace("2pct", "2 %")
        .replace("px", " px")
    )


def _shown(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.4f}"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
