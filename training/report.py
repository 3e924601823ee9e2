"""What a finished run shows: its page, a table by class, the curves of the training, its best and worst val images.

Figures are drawn without pyplot, so that nothing global changes.

Dimensions: H, W, C channels, K classes.
"""

import csv
import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from segserve.artifact import Artifact
from segserve.choice import build_engine
from segserve.engines.torch_engine import best_device
from segserve.png import encode_png
from segserve.predictor import Predictor, build_predictor
from segserve.spec import ClassSpec, Color, ModelSpec, Task
from segserve.whole import write_whole
from training.data import IGNORE, read_image
from training.evaluate import Outcome, assess, measures_of, outcomes
from training.evaluation import Evaluation
from training.layouts import Dataset
from training.page import Page
from training.pictures import ERROR_COLOR, VOID_COLOR, error_map, paint
from training.run import CLASSES, CURVES, EXAMPLE, SAMPLES, SCORES, EpochLog, Run

PAGE = "report.html"

INK, FAINT, BLUE, ORANGE, GREEN, RED = "#1f2430", "#d9dce3", "#2f6fb3", "#e07b27", "#2d8a57", "#cf2e3c"

MOST_SAMPLES: dict[Task, int] = {"segmentation": 3, "classification": 6}
"""How many of the best, and how many of the worst, are drawn."""
MOST_SHOWN: dict[Task, int] = {"segmentation": 4, "classification": 12}
"""How many of a kind the page shows."""


def write_report(run: Run, predictor: Predictor, dataset: Dataset, history: Sequence[EpochLog]) -> Evaluation:
    """Score the val split once more and write the run's page, pictures, tables and, last of all, its scores."""
    samples = dataset.split("val")
    found = outcomes(
        predictor, samples, ignore_index=dataset.ignore_index, maps=measures_of("none"), probabilities=True
    )
    evaluation = assess(found, dataset, spec=predictor.spec, split="val", tta="none", aggregate="mean")
    ratings = [image.rating(dataset.task) for image in evaluation.images]
    chosen = [samples[index] for index in extremes(ratings, most=MOST_SAMPLES[dataset.task])]
    shown = list(outcomes(predictor, chosen, ignore_index=dataset.ignore_index))
    run.write(PAGE, page_of(predictor, dataset, evaluation, history=history).html())
    run.write(SAMPLES, samples_png(shown, classes=dataset.classes, task=dataset.task))
    run.write(CURVES, curves_png(history))
    run.write(CLASSES, class_csv(evaluation))
    run.write(EXAMPLE, encode_png(Image.fromarray(read_image(samples[0].image))))
    run.write(SCORES, evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


def write_page(path: Path, artifact: Artifact, dataset: Dataset, evaluation: Evaluation) -> None:
    """Write the page of an artifact's evaluation.

    Args:
        path: the HTML file, written whole or not at all.
        artifact: what was evaluated.
        dataset: on which.
        evaluation: what `training.evaluate.evaluate` found.
    """
    engine = build_engine(artifact, device=best_device(), choice=evaluation.engine)
    predictor = build_predictor(artifact.spec, engine)
    write_whole(path, page_of(predictor, dataset, evaluation).html())


def page_of(
    predictor: Predictor, dataset: Dataset, evaluation: Evaluation, *, history: Sequence[EpochLog] = ()
) -> Page:
    """The page of what the predictor scored on a data set; the images it shows are predicted once more."""
    return Page(
        title=f"{predictor.spec.name} on {dataset.root.name}/{evaluation.split}",
        protocol=protocol(predictor.spec, evaluation),
        evaluation=evaluation,
        classes=dataset.classes,
        samples=page_samples(predictor, dataset, evaluation),
        history=history,
        configuration=predictor.spec.provenance.recipe,
    )


def protocol(spec: ModelSpec, evaluation: Evaluation) -> list[str]:
    """What was scored, and how it was chosen, in sentences."""
    temperature = spec.calibration.temperature
    return [
        _weights(evaluation),
        f"Images of split {evaluation.split} at their own size, by the path the service takes.",
        "All pixels of the split are counted together; where scores are means over images, it is said below."
        if spec.task == "segmentation"
        else "Every image counts once.",
        f"The logits are divided by a temperature of {temperature:.3g}"
        + (f", fitted on split {spec.calibration.split}." if temperature != 1 else ": not calibrated."),
    ]


def _weights(evaluation: Evaluation) -> str:
    if evaluation.selected_on is None:
        return "Scored are the weights' moving average (EMA) after the last step; no epoch was chosen by its score."
    return (
        f"Scored are the weights' moving average (EMA) of the epoch that was best on {evaluation.selected_on}: "
        f"scores on {evaluation.selected_on} are too good, having been chosen."
    )


def page_samples(predictor: Predictor, dataset: Dataset, evaluation: Evaluation) -> dict[str, list[Outcome]]:
    """The worst, the most uncertain and the best images, predicted once more as the evaluation did; none twice."""
    images, samples, most = evaluation.images, dataset.split(evaluation.split), MOST_SHOWN[dataset.task]
    worst = extremes([image.rating(dataset.task) for image in images], most=len(images))[::-1]
    doubtful = sorted(range(len(images)), key=lambda index: -images[index].uncertainty)
    groups: dict[str, list[int]] = {}
    for heading, order in (("Worst", worst), ("Most uncertain", doubtful), ("Best", worst[::-1])):
        taken = {index for group in groups.values() for index in group}
        groups[heading] = [index for index in order if index not in taken][:most]
    chosen = [samples[index] for group in groups.values() for index in group]
    found = outcomes(
        predictor,
        chosen,
        ignore_index=dataset.ignore_index,
        tta=evaluation.tta,
        aggregate=evaluation.aggregate,
        maps=("entropy",),
    )
    return {heading: [next(found) for _ in group] for heading, group in groups.items()}


def class_csv(evaluation: Evaluation) -> str:
    """A line a class: its name, its score (empty where it has none), how often it is there."""
    columns = ("iou", "pixels") if evaluation.task == "segmentation" else ("recall", "images")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("class", *columns))
    for entry in evaluation.classes:
        writer.writerow((entry.name, "" if entry.score is None else f"{entry.score:.6f}", entry.count))
    return buffer.getvalue()


def extremes(ratings: Sequence[float], *, most: int) -> list[int]:
    """Indices of the best (best first), then of the worst (worst last); none twice, and none without a rating."""
    rated = (index for index, rating in enumerate(ratings) if not math.isnan(rating))
    order = sorted(rated, key=lambda index: -ratings[index])
    return order if len(order) <= 2 * most else order[:most] + order[-most:]


# --- curves ---


def curves_png(history: Sequence[EpochLog]) -> bytes:
    """Loss, scores on the val split and learning rate, by epoch."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[call-arg, union-attr]
    loss, score, rate = figure.subplots(1, 3)
    epochs = [entry.epoch for entry in history]
    _line(loss, epochs, [entry.loss for entry in history], color=BLUE, title="training loss")
    _line(rate, epochs, [entry.learning_rate for entry in history], color=INK, title="learning rate")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    scored = [entry for entry in history if entry.scores]
    names = sorted(scored[-1].scores, key=lambda name: scored[-1].scores[name]) if scored else []
    for index, (name, color) in enumerate(zip(names, (GREEN, ORANGE), strict=False)):
        values = [entry.scores[name] for entry in scored]
        _line(score, [entry.epoch for entry in scored], values, color=color, title="val scores")
        _label_end(score, scored[-1].epoch, values[-1], f"{name} {values[-1]:.4f}", color=color, above=index > 0)
    score.margins(y=0.18)
    return _png(figure, dpi=130)


def _label_end(axes: Any, x: float, y: float, text: str, *, color: str, above: bool) -> None:
    """Write beside the last point of a line what it is, so that no legend is needed."""
    offset, side = ((0, 7), "bottom") if above else ((0, -7), "top")
    where = {"xytext": offset, "textcoords": "offset points", "ha": "right", "va": side}
    axes.annotate(text, (x, y), color=color, fontsize=9, **where)


def _line(axes: Any, x: Sequence[float], y: Sequence[float], *, color: str, title: str) -> None:
    marker = "o" if len(x) <= 30 else ""
    axes.plot(x, y, color=color, linewidth=1.8, marker=marker, markersize=3.5)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)


# --- samples ---


def samples_png(shown: Sequence[Outcome], *, classes: tuple[ClassSpec, ...], task: Task) -> bytes:
    """The outcomes in the order given, best first."""
    draw = _draw_masks if task == "segmentation" else _draw_labels
    with _as_written():
        return _png(draw(shown, classes), dpi=110)


def _draw_masks(shown: Sequence[Outcome], classes: tuple[ClassSpec, ...]) -> Figure:
    """A row an image: the image, the truth, the prediction, and where they differ."""
    height, width = shown[0].truth.shape
    side = 2.6
    figure = Figure(figsize=(4 * side, len(shown) * (side * height / width + 0.3) + 0.8), layout="constrained")
    figure.suptitle("val images, from the best to the worst", fontsize=11, color=INK, fontweight="bold")
    rows = figure.subplots(len(shown), 4, squeeze=False)
    for row, outcome in zip(rows, shown, strict=True):
        counts_HW = outcome.truth != IGNORE
        wrong = np.mean((outcome.predicted != outcome.truth)[counts_HW]) if counts_HW.any() else 0.0
        pictures = {
            f"{outcome.sample.image.stem}, mIoU {1 - outcome.risk:.3f}": outcome.image_HWC,
            "truth": paint(outcome.truth, classes),
            "prediction": paint(outcome.predicted, classes),
            f"{wrong:.1%} wrong": error_map(outcome),
        }
        for axes, (title, picture_HWC) in zip(row, pictures.items(), strict=True):
            _show(axes, picture_HWC, title=title)
    void = [("not counted", VOID_COLOR)] if any((outcome.truth == IGNORE).any() for outcome in shown) else []
    drawn = {
        int(index) for outcome in shown for mask in (outcome.truth, outcome.predicted) for index in np.unique(mask)
    }
    named = [(entry.name, entry.color) for entry in classes if entry.id in drawn]
    entries = [*named, *void, ("wrong", ERROR_COLOR)]
    patches = [Patch(facecolor=_hex(color), edgecolor=FAINT, label=name) for name, color in entries]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(7, len(patches)), frameon=False, fontsize=9)
    return figure


def _draw_labels(shown: Sequence[Outcome], classes: tuple[ClassSpec, ...]) -> Figure:
    """Images with the predicted class, its probability and, where that is wrong, the true class."""
    columns = min(len(shown), MOST_SAMPLES["classification"])
    num_rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.6 * num_rows + 0.4), layout="constrained")
    title = "val images, from the most confident right answers to the most confident wrong ones"
    figure.suptitle(title, fontsize=11, color=INK, fontweight="bold")
    cells = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes in cells[len(shown) :]:
        axes.set_visible(False)
    for axes, outcome in zip(cells, shown, strict=False):
        is_right = outcome.truth == outcome.predicted
        title = f"{classes[int(outcome.predicted)].name} {outcome.confidence:.0%}"
        note = "right" if is_right else f"is {classes[int(outcome.truth)].name}"
        _show(axes, outcome.image_HWC, title=f"{title}\n{note}", color=GREEN if is_right else RED)
    return figure


def _show(axes: Any, picture_HWC: NDArray[np.uint8], *, title: str, color: str = INK) -> None:
    axes.imshow(picture_HWC, interpolation="nearest" if max(picture_HWC.shape) < 400 else None)
    axes.set_title(title, fontsize=9.5, color=color, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _as_written() -> AbstractContextManager[None]:
    """Names may hold dollars, between which matplotlib sees mathematics."""
    return matplotlib.rc_context({"text.parse_math": False})


def _png(figure: Figure, *, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
