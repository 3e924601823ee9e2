"""Scores of a predictor on a data set's split, by the path the service takes, at the images' own size."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from segserve.artifact import Artifact
from segserve.engines.torch_engine import TorchEngine, best_device
from segserve.prediction import Prediction, Query, SegmentationPrediction
from segserve.predictor import Predictor, build_predictor
from segserve.settings import Settings
from segserve.spec import Aggregate, ClassSpec, Measure, ModelSpec, Plan, Task
from segserve.tta import PLANS
from training.certainty import Certainty, ImageTally, PixelTally, certainty
from training.data import IGNORE, read_image, read_truth
from training.layouts import Dataset, Sample, open_dataset
from training.metrics import Confusion, class_iou, class_recall, confusion_matrix, image_miou, merge, scores

IMAGES_AT_ONCE = 8


class ClassScore(Settings):
    """How well one class does."""

    name: str
    score: float | None
    """IoU (segmentation) or recall (classification), 0 to 1; None where the split has nothing of the class."""
    count: int
    """Its pixels (segmentation) or images (classification) in the truth."""


class Evaluation(Settings):
    """What a model scores on one split."""

    task: Task
    split: str
    num_images: int
    tta: Plan
    aggregate: Aggregate
    scores: dict[str, float]
    classes: tuple[ClassScore, ...]
    temperature: float = 1.0
    """The logits were divided by it."""
    certainty: Certainty | None = None
    """None: not looked at, or nothing to look at."""

    def table(self) -> str:
        """The scores, a line a class, and how well the model knows what it knows, as text."""
        measure, unit = ("IoU", "pixels") if self.task == "segmentation" else ("recall", "images")
        width = max(len("class"), *(len(entry.name) for entry in self.classes))
        lines = [f"{'class':{width}}  {measure:>7}  {unit:>11}"]
        for entry in self.classes:
            score = "-" if entry.score is None else f"{entry.score:.4f}"
            lines.append(f"{entry.name:{width}}  {score:>7}  {entry.count:>11,}")
        totals = ", ".join(f"{name} {score:.4f}" for name, score in self.scores.items())
        how = self.tta if self.tta == "none" else f"{self.tta}, aggregate {self.aggregate}"
        lines.append(f"{self.split}, {self.num_images} images, tta {how}: {totals}")
        if self.certainty is not None:
            lines += [f"temperature {self.temperature:.3g}: ece {self.certainty.ece:.4f}", "", self.certainty.table()]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One image, what is true of it, and what the predictor says."""

    sample: Sample
    image_HWC: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    """Mask (H, W) with `IGNORE`, or class index ()."""
    prediction: Prediction
    confusion_KK: Confusion

    @property
    def predicted(self) -> NDArray[np.uint8]:
        """Mask (H, W) or class index ()."""
        return predicted_classes(self.prediction)

    @property
    def confidence(self) -> float:
        """Probability of the predicted class, the mean over the pixels; 0 to 1."""
        if isinstance(self.prediction, SegmentationPrediction):
            return float(self.prediction.confidence_HW.mean() / 255)
        return float(self.prediction.probs_K.max())

    @property
    def risk(self) -> float:
        """1 - mean IoU over the classes of truth and prediction; for labels 1 if wrong, else 0."""
        if isinstance(self.prediction, SegmentationPrediction):
            return 1 - image_miou(self.confusion_KK)
        return float(self.truth != self.predicted)


def evaluate(
    artifact: Artifact, dataset_root: Path, *, split: str = "val", tta: Plan = "none", aggregate: Aggregate = "mean"
) -> Evaluation:
    """Score an artifact on a split of a data set with the same classes.

    Raises:
        ValueError: the data set has no such split, other classes, or files that cannot be read.
    """
    dataset = open_dataset(dataset_root, artifact.spec.task)
    _check_classes(artifact.spec.classes, dataset)
    predictor = build_predictor(artifact.spec, TorchEngine(artifact.network, device=best_device()))
    found = outcomes(
        predictor,
        dataset.split(split),
        ignore_index=dataset.ignore_index,
        tta=tta,
        aggregate=aggregate,
        maps=measures_of(tta),
    )
    return assess(found, dataset, split=split, tta=tta, aggregate=aggregate, spec=artifact.spec)


def measures_of(tta: Plan) -> tuple[Measure, ...]:
    """What doubt a plan's views can show; one view cannot disagree."""
    return get_args(Measure) if len(PLANS[tta]) > 1 else ("entropy",)


def outcomes(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    ignore_index: int | None,
    tta: Plan = "none",
    aggregate: Aggregate = "mean",
    maps: tuple[Measure, ...] = (),
) -> Iterator[Outcome]:
    """Predict the samples in order, a few at a time; the files are read as they are needed."""
    for first in range(0, len(samples), IMAGES_AT_ONCE):
        group = samples[first : first + IMAGES_AT_ONCE]
        queries = [
            Query(image_HWC=read_image(sample.image), tta=tta, aggregate=aggregate, maps=maps) for sample in group
        ]
        predictions: Sequence[Prediction] = predictor.predict(queries)
        for sample, query, prediction in zip(group, queries, predictions, strict=True):
            truth = read_truth(sample, ignore_index=ignore_index)
            yield _outcome(sample, query, truth, prediction, num_classes=predictor.spec.num_classes)


def _outcome(
    sample: Sample, query: Query, truth: NDArray[np.uint8], prediction: Prediction, *, num_classes: int
) -> Outcome:
    predicted = predicted_classes(prediction)
    if truth.shape != predicted.shape or (truth[truth != IGNORE] >= num_classes).any():
        raise ValueError(
            f"expected {sample.truth} to have its image's size and class indices below {num_classes}, "
            "but it has not: see `segserve lint`"
        )
    return Outcome(
        sample=sample,
        image_HWC=query.image_HWC,
        truth=truth,
        prediction=prediction,
        confusion_KK=confusion_matrix(truth, predicted, num_classes=num_classes),
    )


def predicted_classes(prediction: Prediction) -> NDArray[np.uint8]:
    """Mask (H, W) or class index ()."""
    if isinstance(prediction, SegmentationPrediction):
        return prediction.mask_HW
    return np.asarray(prediction.probs_K.argmax(), dtype=np.uint8)


def assess(
    found: Iterable[Outcome], dataset: Dataset, *, spec: ModelSpec, split: str, tta: Plan, aggregate: Aggregate
) -> Evaluation:
    """Scores and certainty of outcomes, which are looked at one by one and not kept.

    Args:
        found: with the maps that `measures_of` names.
        dataset: where they come from.
        spec: of the model.
        split: of the data set.
        tta: plan they were found with.
        aggregate: the same.
    """
    confusions, pixels, images = [], PixelTally(), ImageTally(measures_of(tta))
    for outcome in found:
        confusions.append(outcome.confusion_KK)
        images.add(outcome.prediction, confidence=outcome.confidence, risk=outcome.risk)
        if isinstance(outcome.prediction, SegmentationPrediction):
            pixels.add(outcome.truth, outcome.prediction)
    figures = certainty(pixels, images) if dataset.task == "segmentation" else certainty(images)
    evaluation = summarise(confusions, dataset, split=split, tta=tta, aggregate=aggregate)
    return evaluation.model_copy(update={"certainty": figures, "temperature": spec.calibration.temperature})


def summarise(
    confusions: Iterable[Confusion],
    dataset: Dataset,
    *,
    split: str,
    tta: Plan = "none",
    aggregate: Aggregate = "mean",
) -> Evaluation:
    """The evaluation that the images' confusion matrices add up to."""
    matrices = list(confusions)
    confusion_KK = merge(matrices, num_classes=len(dataset.classes))
    score_K = class_iou(confusion_KK) if dataset.task == "segmentation" else class_recall(confusion_KK)
    count_K = confusion_KK.sum(axis=1)
    return Evaluation(
        task=dataset.task,
        split=split,
        num_images=len(matrices),
        tta=tta,
        aggregate=aggregate,
        scores=scores(confusion_KK, task=dataset.task),
        classes=tuple(
            ClassScore(name=entry.name, score=None if math.isnan(score) else score, count=count)
            for entry, score, count in zip(dataset.classes, score_K.tolist(), count_K.tolist(), strict=True)
        ),
    )


def _check_classes(classes: tuple[ClassSpec, ...], dataset: Dataset) -> None:
    trained, found = [entry.name for entry in classes], [entry.name for entry in dataset.classes]
    if trained != found:
        raise ValueError(
            f"expected {dataset.root} to have the classes the model was trained on, {', '.join(trained)}, "
            f"but it has {', '.join(found)}: evaluate on a data set with the same classes"
        )
