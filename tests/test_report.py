import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segserve.artifact import Artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import ClassificationPrediction, Prediction, SegmentationPrediction
from segserve.predictor import build_predictor
from segserve.spec import ClassSpec, ModelSpec, Task
from tests.conftest import tiny_spec
from training.data import IGNORE
from training.evaluate import Outcome, evaluate, predicted_classes
from training.evaluation import ClassScore, Evaluation
from training.layouts import Dataset, Sample, open_dataset
from training.metrics import confusion_matrix
from training.pictures import ERROR_COLOR, VOID_COLOR
from training.report import class_csv, curves_png, extremes, page_samples, protocol, samples_png, write_page
from training.run import EpochLog

K = 4


def _outcome(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> Outcome:
    prediction = SegmentationPrediction(
        mask_HW=predicted,
        confidence_HW=np.full_like(predicted, 230),
        uncertainty_HW={},
        probs_KHW=None,
        mean_entropy=0.1,
        mutual_information=0.0,
        view_agreement=1.0,
        windows=1,
    )
    return _judged(truth, prediction, size=truth.shape)


def _label(truth: int, predicted: int, *, confidence: float) -> Outcome:
    probs_K = np.full(K, (1 - confidence) / (K - 1), dtype=np.float32)
    probs_K[predicted] = confidence
    prediction = ClassificationPrediction(probs_K=probs_K, mean_entropy=0.1, mutual_information=0.0, view_agreement=1.0)
    return _judged(np.asarray(truth, dtype=np.uint8), prediction, size=(30, 40))


def _judged(truth: NDArray[np.uint8], prediction: Prediction, *, size: tuple[int, ...]) -> Outcome:
    return Outcome(
        sample=Sample(image=Path("images/val/name.png"), truth=0),
        image_HWC=np.full((*size, 3), 128, dtype=np.uint8),
        truth=truth,
        prediction=prediction,
        confusion_KK=confusion_matrix(truth, predicted_classes(prediction), num_classes=K),
    )


def _opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def _evaluation(task: Task) -> Evaluation:
    classes = (ClassScore(name="sky, high", score=0.5, count=10), ClassScore(name="road", score=None, count=0))
    return Evaluation(task=task, split="val", num_images=1, tta="none", aggregate="mean", scores={}, classes=classes)


@pytest.mark.parametrize(
    ("task", "columns"), [("segmentation", ["iou", "pixels"]), ("classification", ["recall", "images"])]
)
def test_the_table_is_read_back_by_csv(task: Task, columns: list[str]) -> None:
    assert list(csv.reader(io.StringIO(class_csv(_evaluation(task))))) == [
        ["class", *columns],
        ["sky, high", "0.500000", "10"],
        ["road", "", "0"],
    ]


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.7, 0.3, 0.8], [1, 5, 4, 0]),
        ([0.1, 0.9, 0.5], [1, 2, 0]),
        ([], []),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [0, 1, 3, 4]),
        ([math.nan, 0.1, 0.9, math.nan], [2, 1]),
    ],
)
def test_extremes_are_the_best_then_the_worst_and_none_twice(ratings: list[float], expected: list[int]) -> None:
    assert extremes(ratings, most=2) == expected


def test_a_picture_of_masks_shows_the_error_colour(spec: ModelSpec) -> None:
    rng = np.random.default_rng(0)
    shown = []
    for size in ((30, 40), (50, 20), (1, 1)):
        truth = rng.choice(np.array([0, 1, 2, IGNORE], dtype=np.uint8), size=size)
        shown.append(_outcome(truth, rng.integers(0, K, size, dtype=np.uint8)))
    picture = _opened(samples_png(shown, classes=spec.classes, task="segmentation"))
    assert picture.width > 800 and picture.height > 500
    colors = {color for _, color in picture.convert("RGB").getcolors(maxcolors=2**24) or ()}  # type: ignore[union-attr]
    assert {ERROR_COLOR, VOID_COLOR, *(entry.color for entry in spec.classes)} <= colors


def test_a_mask_of_void_has_no_wrong_pixels(spec: ModelSpec) -> None:
    """The mean of none was nan, with a warning of numpy's, which fails here."""
    shown = [_outcome(np.full((30, 40), IGNORE, dtype=np.uint8), np.zeros((30, 40), dtype=np.uint8))]
    assert _opened(samples_png(shown, classes=spec.classes, task="segmentation")).width > 800


def test_dollars_in_names_are_no_mathematics(spec: ModelSpec, labels_spec: ModelSpec) -> None:
    outcome = _outcome(np.zeros((30, 40), dtype=np.uint8), np.zeros((30, 40), dtype=np.uint8))
    named = replace(outcome, sample=replace(outcome.sample, image=Path("a$x_$b.png")))
    classes = tuple(entry.model_copy(update={"name": "a$^$"}) for entry in spec.classes)
    samples_png([named], classes=classes, task="segmentation")
    samples_png([_label(0, 0, confidence=0.5)], classes=classes, task="classification")


def test_the_legend_names_the_classes_that_are_seen(spec: ModelSpec) -> None:
    """All 255 would leave no room for the pictures."""
    classes = tuple(ClassSpec(id=index, name=f"a long name {index}", color=(index, 0, 0)) for index in range(255))
    masks_HW = np.full((30, 40), 3, dtype=np.uint8)
    assert _opened(samples_png([_outcome(masks_HW, masks_HW)], classes=classes, task="segmentation")).width > 800


@pytest.mark.parametrize("number", [1, 5, 12])
def test_a_picture_of_labels(labels_spec: ModelSpec, number: int) -> None:
    shown = [_label(index % K, 0, confidence=0.5) for index in range(number)]
    picture = _opened(samples_png(shown, classes=labels_spec.classes, task="classification"))
    assert picture.width > 200 and picture.height > 200


@pytest.mark.parametrize("num_epochs", [1, 2, 60])
def test_curves(num_epochs: int) -> None:
    history = [
        EpochLog(
            epoch=index + 1,
            loss=1 / (index + 1),
            learning_rate=1e-3,
            seconds=1,
            scores={"accuracy": 0.5, "mean_recall": 0.4} if index % 5 == 0 else {},
        )
        for index in range(num_epochs)
    ]
    assert _opened(curves_png(history)).size == (1430, 429)


def test_curves_without_any_scores() -> None:
    assert _opened(curves_png([EpochLog(epoch=1, loss=1.0, learning_rate=0.1, seconds=1)])).mode == "RGBA"


def test_drawing_does_not_load_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it would now fail
    assert curves_png([EpochLog(epoch=1, loss=1.0, learning_rate=0.1, seconds=1)])


# --- the page ---


@pytest.fixture
def small_set(tmp_path: Path) -> Dataset:
    """Seven val images of noise, with masks of noise and void (9)."""
    rng = np.random.default_rng(0)
    classes = [entry.model_dump() for entry in tiny_spec("segmentation").classes]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 9}))
    for kind, size in (("images", (32, 40, 3)), ("masks", (32, 40))):
        (tmp_path / kind / "val").mkdir(parents=True)
        for index in range(7):
            array = rng.integers(0, 256, size, dtype=np.uint8)
            array = array if kind == "images" else np.where(array < 20, 9, array % 4).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / kind / "val" / f"{index}.png")
    return open_dataset(tmp_path, "segmentation")


def test_the_page_shows_the_worst_the_most_uncertain_and_the_best_once_each(
    small_set: Dataset, artifact: Artifact
) -> None:
    evaluation = evaluate(artifact, small_set.root)
    predictor = build_predictor(artifact.spec, TorchEngine(artifact.network))
    groups = page_samples(predictor, small_set, evaluation)
    assert [len(group) for group in groups.values()] == [4, 3, 0]
    names = [outcome.sample.image.name for group in groups.values() for outcome in group]
    assert sorted(names) == [f"{index}.png" for index in range(7)]
    order = sorted(evaluation.images, key=lambda image: image.score)
    assert names[:4] == [Path(image.name).name for image in order[:4]]
    rest = sorted(order[4:], key=lambda image: -image.uncertainty)
    assert names[4:] == [Path(image.name).name for image in rest]


def test_a_page_is_written_whole(small_set: Dataset, artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, artifact, small_set, evaluate(artifact, small_set.root))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert [entry.name for entry in tmp_path.glob("*.tmp")] + [entry.name for entry in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("selected_on", "words"), [(None, "after the last step; no epoch was chosen"), ("val", "are too good")]
)
def test_the_protocol_says_which_weights_were_scored(spec: ModelSpec, selected_on: str | None, words: str) -> None:
    evaluation = _evaluation("segmentation").model_copy(update={"selected_on": selected_on})
    assert words in " ".join(protocol(spec, evaluation))
