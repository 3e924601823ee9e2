"""Scores of a predictor on a data set's split, by the path the service takes, at the images' own size."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from segserve.artifact import Artifact
from segserve.choice import build_engine
from segserve.codec import Decoded
from segserve.engines.torch_engine import best_device
from segserve.prediction import Prediction, Query, SegmentationPrediction
from segserve.predictor import Predictor, build_predictor
from segserve.spec import Aggregate, ClassSpec, EngineChoice, Measure, ModelSpec, Plan, PreprocessSpec
from segserve.tta import PLANS
from training.boundary import WIDTHS, BoundaryTally
from training.calibration import ProbabilityTally
from training.certainty import Certainty, ImageTally, PixelTally, certainty
from training.config import Layout
from training.data import IGNORE, check_truth, read_for, read_truth, stored_mask, void_as_ignore
from training.evaluation import ClassScore, Evaluation, ImageScore
from training.layouts import Dataset, Sample, open_dataset
from training.metrics import (
    Confusion,
    class_iou,
    class_precision,
    class_recall,
    confusion_matrix,
    image_miou,
    mask_scores,
    merge,
    scores,
)

IMAGES_AT_ONCE, PIXELS_AT_ONCE = 8, 2**23
"""Predicted together: so many, or fewer once they have this many pixels."""
TOP = 5
"""A label is right in `top5_accuracy` when the truth is among so many most probable classes; not with fewer classes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One image, what is true of it, and what the predictor says."""

    sample: Sample
    image_HWC: NDArray[np.uint8]
    """As decoded for the model, see `training.data.read_for`: maybe smaller than the mask."""
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
    artifact: Artifact,
    dataset_root: Path,
    *,
    layout: Layout = "folder",
    split: str = "val",
    tta: Plan = "none",
    aggregate: Aggregate = "mean",
    engine: EngineChoice | None = None,
) -> Evaluation:
    """Score an artifact on a split of a data set with the same classes, by the engine that would serve it here.

    Args:
        artifact: what is scored.
        dataset_root: the data set's folder.
        layout: how it lies there.
        split: of it.
        tta: plan of test-time augmentation.
        aggregate: how its views are joined.
        engine: another than the one that its spec asks for.

    Raises:
        ValueError: the data set has no such split, other classes, or files that are missing or cannot be read; or the
            artifact has no such engine.
    """
    dataset = open_dataset(dataset_root, artifact.spec.task, layout=layout)
    return evaluate_dataset(artifact, dataset, split=split, tta=tta, aggregate=aggregate, engine=engine)


def evaluate_dataset(
    artifact: Artifact,
    dataset: Dataset,
    *,
    split: str = "val",
    tta: Plan = "none",
    aggregate: Aggregate = "mean",
    engine: EngineChoice | None = None,
) -> Evaluation:
    """The same, on a data set that is open already."""
    _check_classes(artifact.spec.classes, dataset)
    chosen = build_engine(artifact, device=best_device(), choice=engine)
    predictor = build_predictor(artifact.spec, chosen)
    found = outcomes(
        predictor,
        dataset.split(split),
        ignore_index=dataset.ignore_index,
        tta=tta,
        aggregate=aggregate,
        maps=measures_of(tta),
        probabilities=True,
    )
    evaluation = assess(found, dataset, split=split, tta=tta, aggregate=aggregate, spec=artifact.spec)
    if not any(map(any, evaluation.confusion)):
        raise ValueError(
            f"expected split {split!r} of {dataset.root} to have pixels that count, but all of them are void: "
            "see `segserve lint`"
        )
    return evaluation.model_copy(update={"engine": chosen.name})


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
    probabilities: bool = False,
) -> Iterator[Outcome]:
    """Predict the samples in order, a few at a time; the files are read as they are needed.

    Args:
        predictor: what predicts.
        samples: any number.
        ignore_index: the data set's.
        tta: plan.
        aggregate: of the plan's views.
        maps: uncertainty maps wanted.
        probabilities: keep those of all classes of every pixel, too (those of labels always are).
    """
    for group in _groups(samples, predictor.spec.preprocess):
        queries = [
            Query(
                image_HWC=decoded.image_HWC,
                sent_size=decoded.sent_size,
                tta=tta,
                aggregate=aggregate,
                maps=maps,
                probabilities="float16" if probabilities and predictor.spec.task == "segmentation" else None,
            )
            for _, decoded in group
        ]
        predictions: Sequence[Prediction] = predictor.predict(queries)
        for (sample, _), query, prediction in zip(group, queries, predictions, strict=True):
            truth = _truth(sample, ignore_index=ignore_index)
            yield _outcome(sample, query, truth, prediction, num_classes=predictor.spec.num_classes)


def _groups(samples: Sequence[Sample], preprocess: PreprocessSpec) -> Iterator[list[tuple[Sample, Decoded]]]:
    """The samples and their images, as many together as are predicted at once."""
    group: list[tuple[Sample, Decoded]] = []
    pixels = 0
    for sample in samples:
        decoded = read_for(preprocess, sample.image)
        group.append((sample, decoded))
        pixels += math.prod(decoded.sent_size)
        if len(group) == IMAGES_AT_ONCE or pixels >= PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _truth(sample: Sample, *, ignore_index: int | None) -> NDArray[np.uint8]:
    """As `read_truth`, but 255 must be the set's void: the white of 0 and 255, for one, would count nowhere."""
    if isinstance(sample.truth, int):
        return read_truth(sample, ignore_index=ignore_index)
    mask_HW = stored_mask(sample.truth)
    if ignore_index != IGNORE and (mask_HW == IGNORE).any():
        raise ValueError(
            f"expected {sample.truth} to have {IGNORE} only where that is the data set's ignore_index, but it is "
            f"{ignore_index}: see `segserve lint`"
        )
    return void_as_ignore(mask_HW, ignore_index)


def _outcome(
    sample: Sample, query: Query, truth: NDArray[np.uint8], prediction: Prediction, *, num_classes: int
) -> Outcome:
    predicted = predicted_classes(prediction)
    check_truth(sample, truth, shape=predicted.shape, num_classes=num_classes)
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
    tallies = _Tallies(dataset, measures=measures_of(tta))
    for outcome in found:
        tallies.add(outcome)
    evaluation = summarise(tallies.confusions, dataset, split=split, tta=tta, aggregate=aggregate)
    return evaluation.model_copy(
        update={
            "scores": evaluation.scores | tallies.scores(),
            "classes": tallies.classes(evaluation.classes),
            "certainty": tallies.certainty(),
            "images": tuple(tallies.images),
            "temperature": spec.calibration.temperature,
            "selected_on": spec.provenance.selected_on,
        }
    )


@dataclass
class _Tallies:
    """What is added up, outcome by outcome."""

    dataset: Dataset
    measures: tuple[Measure, ...]
    confusions: list[Confusion] = field(default_factory=list)
    images: list[ImageScore] = field(default_factory=list)
    num_in_top: int = 0

    def __post_init__(self) -> None:
        num_classes = len(self.dataset.classes)
        self.of_pixels, self.of_images = PixelTally(), ImageTally(self.measures)
        self.of_contours, self.of_probabilities = BoundaryTally(num_classes), ProbabilityTally(num_classes)

    def add(self, outcome: Outcome) -> None:
        self.confusions.append(outcome.confusion_KK)
        counts = bool(outcome.confusion_KK.any())
        if counts:
            self.of_images.add(outcome.prediction, confidence=outcome.confidence, risk=outcome.risk)
        self.images.append(
            ImageScore(
                name=Path(os.path.relpath(outcome.sample.image, self.dataset.root)).as_posix(),
                score=1 - outcome.risk if counts else None,
                confidence=outcome.confidence,
                uncertainty=outcome.prediction.mean_entropy,
            )
        )
        if isinstance(outcome.prediction, SegmentationPrediction):
            self._add_mask(outcome.truth, outcome.prediction)
        else:
            probs_K = outcome.prediction.probs_K
            self.num_in_top += int((probs_K > probs_K[outcome.truth]).sum() < TOP)
            self.of_probabilities.add(probs_K[:, None], outcome.truth[None])

    def _add_mask(self, truth_HW: NDArray[np.uint8], prediction: SegmentationPrediction) -> None:
        self.of_pixels.add(truth_HW, prediction)
        self.of_contours.add(truth_HW, prediction.mask_HW)
        if prediction.probs_KHW is not None:
            counts_HW = truth_HW != IGNORE
            self.of_probabilities.add(prediction.probs_KHW[:, counts_HW], truth_HW[counts_HW])

    def scores(self) -> dict[str, float]:
        """All that is not from the confusion matrix alone; only those that have a value."""
        if self.dataset.task == "classification":
            shown = len(self.dataset.classes) > TOP and len(self.images) > 0
            return {f"top{TOP}_accuracy": self.num_in_top / len(self.images)} if shown else {}
        confusion_KK = merge(self.confusions, num_classes=len(self.dataset.classes))
        found = mask_scores(confusion_KK, self.confusions) | self.of_contours.scores()
        if len(self.dataset.classes) == 2:
            # The class that covers more are the objects, the other one parts them.
            found["rand_error"] = 1 - float(self.of_contours.class_rand()[confusion_KK.sum(axis=1).argmax()])
        return _known(found)

    def classes(self, classes: tuple[ClassScore, ...]) -> tuple[ClassScore, ...]:
        """The classes with what their contours and probabilities score."""
        columns: dict[str, Sequence[float]] = {}
        if self.dataset.task == "segmentation":
            columns |= {f"boundary_iou_{width}": self.of_contours.boundary_iou(width).tolist() for width in WIDTHS}
            columns["boundary_f1"] = self.of_contours.class_f1().tolist()
        if len(classes) == 2 and self.of_contours.rand_K:
            columns["rand_f1"] = self.of_contours.class_rand().tolist()
        if self.of_probabilities.count:
            columns["ece"] = self.of_probabilities.class_errors()
        return tuple(
            entry.model_copy(
                update={"further": entry.further | _known({name: values[k] for name, values in columns.items()})}
            )
            for k, entry in enumerate(classes)
        )

    def certainty(self) -> Certainty | None:
        probabilities = self.of_probabilities if self.of_probabilities.count else None
        if self.dataset.task == "segmentation":
            return certainty(self.of_pixels, self.of_images, probabilities=probabilities)
        return certainty(self.of_images, probabilities=probabilities)


def _known(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def summarise(
    confusions: Iterable[Confusion],
    dataset: Dataset,
    *,
    split: str,
    tta: Plan = "none",
    aggregate: Aggregate = "mean",
) -> Evaluation:
    """The evaluation that the images' confusion matrices add up to; cheap enough for every epoch of a training."""
    matrices = list(confusions)
    confusion_KK = merge(matrices, num_classes=len(dataset.classes))
    recall_K, precision_K = class_recall(confusion_KK).tolist(), class_precision(confusion_KK).tolist()
    score_K = class_iou(confusion_KK).tolist() if dataset.task == "segmentation" else recall_K
    count_K = confusion_KK.sum(axis=1).tolist()
    return Evaluation(
        task=dataset.task,
        split=split,
        num_images=len(matrices),
        tta=tta,
        aggregate=aggregate,
        scores=scores(confusion_KK, task=dataset.task),
        classes=tuple(
            ClassScore(
                name=entry.name,
                score=None if math.isnan(score_K[k]) else score_K[k],
                count=count_K[k],
                further=_known({"recall": recall_K[k], "precision": precision_K[k]}),
            )
            for k, entry in enumerate(dataset.classes)
        ),
        confusion=tuple(map(tuple, confusion_KK.tolist())),
    )


def _check_classes(classes: tuple[ClassSpec, ...], dataset: Dataset) -> None:
    trained, found = [entry.name for entry in classes], [entry.name for entry in dataset.classes]
    if trained != found:
        raise ValueError(
            f"expected {dataset.root} to have the classes the model was trained on, {', '.join(trained)}, "
            f"but it has {', '.join(found)}: evaluate on a data set with the same classes"
        )
