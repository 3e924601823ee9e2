import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cli import main
from segserve.artifact import Artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import ClassificationPredictor, SegmentationPredictor
from segserve.spec import Measure, ModelSpec, Plan, PreprocessSpec
from training.calibration import expected_calibration_error, reliability
from training.data import IGNORE
from training.evaluate import Evaluation, assess, evaluate, outcomes, summarise
from training.layouts import open_dataset
from training.risk_coverage import aurc_by

NAMES = ("sky", "road", "tree", "car")
CLASSES = json.dumps({"classes": [{"id": i, "name": name} for i, name in enumerate(NAMES)], "ignore_index": 9})
SIZES = ((64, 40), (33, 64), (64, 64), (20, 64))


class BrightestChannel:
    """An engine that knows without weights: classes 0, 1, 2 are the channels, class 3 is never chosen."""

    name = "brightest"
    device = torch.device("cpu")

    def __init__(self, *, dims: tuple[int, ...] = ()) -> None:
        self.dims = dims

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        scores_BCHW = images_BCHW.mean(dim=self.dims) if self.dims else images_BCHW
        return torch.cat([10 * scores_BCHW, torch.full_like(scores_BCHW[:, :1], -99)], dim=1)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Images of the classes' channels with noise that makes some pixels wrong, and masks with void (9)."""
    rng = np.random.default_rng(0)
    (tmp_path / "classes.json").write_text(CLASSES)
    for split in ("train", "val"):
        for index, size in enumerate(SIZES):
            image_HWC = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            mask_HW = image_HWC.argmax(axis=2).astype(np.uint8)
            swapped_HW = rng.random(size) < 0.3
            mask_HW[swapped_HW] = rng.choice([0, 1, 3, 9], size=int(swapped_HW.sum()))
            for kind, array in (("images", image_HWC), ("masks", mask_HW)):
                path = tmp_path / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path


def _plain(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"preprocess": PreprocessSpec(working_side=64, mean=(0, 0, 0), std=(1, 1, 1))})


def _evaluate(root: Path, spec: ModelSpec) -> Evaluation:
    dataset = open_dataset(root, "segmentation")
    predictor = SegmentationPredictor(_plain(spec), BrightestChannel())
    found = outcomes(predictor, dataset.split("val"), ignore_index=dataset.ignore_index)
    return summarise((outcome.confusion_KK for outcome in found), dataset, split="val")


def test_scores_equal_the_slow_obvious_way(masked: Path, spec: ModelSpec) -> None:
    evaluation = _evaluate(masked, spec)
    places = []
    for index in range(len(SIZES)):
        image_HWC = np.asarray(Image.open(masked / f"images/val/{index}.png"))
        mask_HW = np.asarray(Image.open(masked / f"masks/val/{index}.png"))
        places += [(int(t), int(p)) for t, p in zip(mask_HW.flat, image_HWC.argmax(axis=2).flat, strict=True) if t != 9]
    for k, entry in enumerate(evaluation.classes):
        hits = sum(t == p == k for t, p in places)
        assert entry.score == pytest.approx(hits / sum(k in pair for pair in places))
        assert entry.count == sum(t == k for t, _ in places)
    known = [entry.score for entry in evaluation.classes if entry.score is not None]
    assert evaluation.scores["miou"] == pytest.approx(np.mean(known))
    assert evaluation.scores["pixel_accuracy"] == pytest.approx(np.mean([t == p for t, p in places]))
    assert evaluation.num_images == len(SIZES)


def test_labels(tmp_path: Path, labels_spec: ModelSpec) -> None:
    (tmp_path / "labels.csv").write_text(
        "split,stem,label_id,label\nval,a,0,sky\nval,b,1,road\nval,c,1,road\nval,d,3,car\ntrain,e,2,tree\n"
    )
    (tmp_path / "images/val").mkdir(parents=True)
    for stem, color in {"a": (255, 0, 0), "b": (0, 255, 0), "c": (9, 0, 255), "d": (0, 0, 200)}.items():
        Image.new("RGB", (40, 50), color).save(tmp_path / f"images/val/{stem}.png")
    dataset = open_dataset(tmp_path, "classification")
    predictor = ClassificationPredictor(_plain(labels_spec), BrightestChannel(dims=(2, 3)))
    found = list(outcomes(predictor, dataset.split("val"), ignore_index=None))
    assert [int(outcome.predicted) for outcome in found] == [0, 1, 2, 2]
    assert all(0.9 < outcome.confidence <= 1 for outcome in found)
    evaluation = assess(found, dataset, spec=labels_spec, split="val", tta="none", aggregate="mean")
    assert evaluation.scores == pytest.approx({"accuracy": 0.5, "mean_recall": 0.5})
    assert [entry.score for entry in evaluation.classes] == [1.0, 0.5, None, 0.0]
    assert evaluation.certainty is not None
    assert evaluation.certainty.ece == pytest.approx(np.mean([outcome.confidence for outcome in found]) - 0.5)
    assert [(areas.unit, areas.random) for areas in evaluation.certainty.risk_coverage] == [("images", 0.5)]


def test_the_table_shows_every_class_and_the_scores(masked: Path, spec: ModelSpec) -> None:
    evaluation = _evaluate(masked, spec)
    lines = evaluation.table().splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["class", "sky", "road", "tree", "car"]
    assert lines[-1].startswith(f"val, 4 images, tta none: miou {evaluation.scores['miou']:.4f}, pixel_accuracy")
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_an_artifact_is_scored_by_what_its_predictor_says(masked: Path, artifact: Artifact) -> None:
    evaluation = evaluate(artifact, masked, split="train", tta="hflip")
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network, device="cpu"))
    right = total = 0
    for index in range(len(SIZES)):
        image_HWC = np.asarray(Image.open(masked / f"images/train/{index}.png"))
        mask_HW = np.asarray(Image.open(masked / f"masks/train/{index}.png"))
        predicted_HW = predictor.predict([Query(image_HWC=image_HWC, tta="hflip")])[0].mask_HW
        right, total = right + int((predicted_HW == mask_HW).sum()), total + int((mask_HW != 9).sum())
    assert evaluation.scores["pixel_accuracy"] == pytest.approx(right / total, abs=0.005)
    assert (evaluation.split, evaluation.tta, evaluation.num_images) == ("train", "hflip", 4)


def test_certainty_is_that_of_the_maps_a_person_gets(masked: Path, artifact: Artifact) -> None:
    found = evaluate(artifact, masked, tta="flips", aggregate="vote").certainty
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network, device="cpu"))
    wrong, doubts, confidences = [], [], []
    for index in range(len(SIZES)):
        image_HWC = np.asarray(Image.open(masked / f"images/val/{index}.png"))
        mask_HW = np.asarray(Image.open(masked / f"masks/val/{index}.png"))
        query = Query(image_HWC=image_HWC, tta="flips", aggregate="vote", maps=("disagreement",))
        prediction = predictor.predict([query])[0]
        wrong.append((prediction.mask_HW != mask_HW)[mask_HW != 9])
        doubts.append(prediction.uncertainty_HW["disagreement"][mask_HW != 9])
        confidences.append(prediction.confidence_HW[mask_HW != 9] / 255)
    wrong_N, confidence_N = np.concatenate(wrong), np.concatenate(confidences)
    assert found is not None
    assert found.risk_coverage[0].aurc["disagreement"] == pytest.approx(
        aurc_by(np.concatenate(doubts), wrong_N), abs=0.005
    )
    assert found.ece == pytest.approx(expected_calibration_error(reliability(confidence_N, ~wrong_N)), abs=0.005)


@pytest.mark.parametrize(("tta", "measures"), [("none", ("entropy",)), ("hflip", get_args(Measure))])
def test_images_are_ranked_where_there_are_views_to_disagree(
    masked: Path, artifact: Artifact, tta: Plan, measures: tuple[Measure, ...]
) -> None:
    found = evaluate(artifact, masked, tta=tta).certainty
    assert found is not None
    pixels, images = found.risk_coverage
    assert tuple(pixels.aurc) == tuple(images.aurc) == ("confidence", *measures)
    for areas in found.risk_coverage:
        assert all(area >= areas.best - 1e-9 for area in areas.aurc.values())


def test_an_image_s_risk_is_what_its_miou_lacks(masked: Path, spec: ModelSpec) -> None:
    dataset = open_dataset(masked, "segmentation")
    found = list(
        outcomes(SegmentationPredictor(_plain(spec), BrightestChannel()), dataset.split("val"), ignore_index=9)
    )
    for outcome in found:
        ious = []
        for k in range(4):
            union = ((outcome.truth == k) | (outcome.predicted == k)) & (outcome.truth != IGNORE)
            if union.any():
                ious.append(((outcome.truth == k) & (outcome.predicted == k)).sum() / union.sum())
        assert outcome.risk == pytest.approx(1 - np.mean(ious))


def test_the_command_prints_and_writes_the_same(
    masked: Path, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tta", "hflip", "--aggregate", "logits", "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(artifact.path), str(masked), *options]) == 0
    written = Evaluation.model_validate_json((tmp_path / "scores.json").read_bytes())
    printed = capsys.readouterr().out
    assert printed == written.table() + "\n"
    assert written.certainty is not None
    assert f"temperature 1: ece {written.certainty.ece:.4f}" in printed
    assert [line.split()[0] for line in printed.splitlines()[-6:]] == [
        "confidence",
        *get_args(Measure),
        "random",
        "best",
    ]


def test_scores_written_before_there_was_certainty_are_still_read() -> None:
    old = {"task": "segmentation", "split": "val", "num_images": 1, "tta": "none", "aggregate": "mean"}
    assert Evaluation.model_validate({**old, "scores": {"miou": 0.5}, "classes": []}).certainty is None


def test_other_classes_are_refused(masked: Path, artifact: Artifact) -> None:
    (masked / "classes.json").write_text(CLASSES.replace("tree", "bush"))
    with pytest.raises(ValueError, match="trained on, sky, road, tree, car, but it has sky, road, bush, car"):
        evaluate(artifact, masked)


def test_a_split_that_is_not_there_is_refused(masked: Path, artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="to have images in split 'test', but it has train, val"):
        evaluate(artifact, masked, split="test")


@pytest.mark.parametrize("value", [9, 7])
def test_a_mask_that_does_not_fit_is_refused(masked: Path, artifact: Artifact, value: int) -> None:
    size = (4, 4) if value == 9 else SIZES[2]
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(masked / "masks/val/2.png")
    with pytest.raises(
        ValueError, match=r"2.png to have its image's size and class indices below 4, .* `segserve lint`"
    ):
        evaluate(artifact, masked)


def test_a_class_without_pixels_has_no_score(masked: Path, spec: ModelSpec) -> None:
    dataset = open_dataset(masked, "segmentation")
    nothing = summarise([np.zeros((4, 4), dtype=np.int64)], dataset, split="val")
    assert all(entry.score is None for entry in nothing.classes)
    assert math.isnan(nothing.scores["miou"])
