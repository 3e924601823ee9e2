import json
import math
import shutil
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
from segserve.prediction import ClassificationPrediction, Query
from segserve.predictor import ClassificationPredictor, SegmentationPredictor
from segserve.spec import Measure, ModelSpec, Plan, PreprocessSpec
from tests.conftest import random_image
from training.boundary import BoundaryTally
from training.calibration import expected_calibration_error, reliability
from training.data import IGNORE
from training.evaluate import Outcome, assess, evaluate, outcomes, summarise
from training.evaluation import Evaluation, ImageScore
from training.held_out import LOG
from training.layouts import open_dataset
from training.metrics import class_recall, confusion_matrix, mask_scores, merge
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
    miou = f"{evaluation.scores['miou']:.4f}"
    assert lines[-1].startswith(f"val, 4 images, engine torch, tta none: miou {miou}, pixel_accuracy")
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


def test_a_split_is_scored_whole_or_not_at_all(
    masked: Path, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "artifacts/mine"
    shutil.copytree(artifact.path, model)
    for kind in ("images", "masks"):
        (masked / kind / "val").rename(masked / kind / "test")
    (masked / "masks/test/2.png").unlink()
    command = ["evaluate", str(model), str(masked)]
    assert main([*command, "--split", "test"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "expected split 'test' of " in told.err
    assert (
        "1 fault(s), correct them: images/test/2.png: expected a mask masks/test/2.png, but there is none" in told.err
    )
    assert not (model.parent / LOG).exists()
    assert main([*command, "--split", "train"]) == 0, "the faults of another split are none of this one"


def test_what_would_serve_is_scored_unless_another_engine_is_asked_for(
    masked: Path, engine_artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    command = ["evaluate", str(engine_artifact.path), str(masked)]
    assert main([*command, "--html", str(page)]) == 0
    assert "val, 4 images, engine openvino, tta none" in capsys.readouterr().out
    assert page.is_file()
    assert main([*command, "--engine", "torch"]) == 0
    assert "val, 4 images, engine torch, tta none" in capsys.readouterr().out
    assert main([*command, "--engine", "openvino-int8"]) == 2
    assert "to have the engine openvino-int8, but it has torch and openvino" in capsys.readouterr().err


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


@pytest.mark.parametrize("void", [9, None])
def test_white_is_no_void_unless_the_data_set_says_so(masked: Path, artifact: Artifact, void: int | None) -> None:
    """The white half of a mask of 0 and 255 counted nowhere, and the score was that of the black one."""
    (masked / "classes.json").write_text(CLASSES.replace("9", json.dumps(void)))
    for index, size in enumerate(SIZES):
        mask_HW = np.zeros(size, dtype=np.uint8)
        mask_HW[: size[0] // 2] = 255
        Image.fromarray(mask_HW).save(masked / f"masks/val/{index}.png")
    with pytest.raises(ValueError, match=rf"val/0.png to have 255 only where .* but it is {void}: see `segserve lint`"):
        evaluate(artifact, masked)
    (masked / "classes.json").write_text(CLASSES.replace("9", "255"))
    assert evaluate(artifact, masked).classes[0].count == sum(height * width for height, width in SIZES) // 2 + 32


def test_an_image_of_void_has_no_score(masked: Path, artifact: Artifact) -> None:
    """It has a line, and is in no mean and no curve."""
    before = evaluate(artifact, masked)
    count = len(before.images)
    Image.fromarray(random_image(48, 40, seed=99)).save(masked / "images/val/void.png")
    Image.fromarray(np.full((48, 40), 9, dtype=np.uint8)).save(masked / "masks/val/void.png")
    after = evaluate(artifact, masked)
    assert (after.num_images, len(after.images)) == (count + 1, count + 1)
    assert [(image.name, image.score) for image in after.images if image.score is None] == [
        ("images/val/void.png", None)
    ]
    assert after.scores == pytest.approx(before.scores)
    assert before.certainty is not None and after.certainty is not None
    assert after.certainty.figures() == pytest.approx(before.certainty.figures())


def test_a_split_of_void_has_no_score(masked: Path, artifact: Artifact) -> None:
    for index, size in enumerate(SIZES):
        Image.fromarray(np.full(size, 9, dtype=np.uint8)).save(masked / f"masks/val/{index}.png")
    with pytest.raises(ValueError, match=r"expected split 'val' of .* to have pixels that count, but all .* are void"):
        evaluate(artifact, masked)


def test_a_class_without_pixels_has_no_score(masked: Path, spec: ModelSpec) -> None:
    dataset = open_dataset(masked, "segmentation")
    nothing = summarise([np.zeros((4, 4), dtype=np.int64)], dataset, split="val")
    assert all(entry.score is None for entry in nothing.classes)
    assert math.isnan(nothing.scores["miou"])


# --- all the scores ---


def test_the_tallies_are_those_of_all_images(masked: Path, artifact: Artifact) -> None:
    evaluation, dataset = evaluate(artifact, masked), open_dataset(masked, "segmentation")
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network, device="cpu"))
    found = list(outcomes(predictor, dataset.split("val"), ignore_index=9))
    contours = BoundaryTally(4)
    for outcome in found:
        contours.add(outcome.truth, outcome.predicted)
    matrices = [outcome.confusion_KK for outcome in found]
    expected = mask_scores(merge(matrices, num_classes=4), matrices) | contours.scores()
    assert {name: evaluation.scores[name] for name in expected} == pytest.approx(expected, abs=0.005)
    assert set(evaluation.scores) == {"miou", "pixel_accuracy", *expected}
    assert evaluation.confusion == tuple(map(tuple, merge(matrices, num_classes=4).tolist()))
    assert evaluation.certainty is not None
    assert list(evaluation.certainty.figures()) == ["ece", "ece_boundary", "classwise_ece", "nll", "brier"]
    for k, entry in enumerate(evaluation.classes):
        assert entry.further["ece"] == pytest.approx(evaluation.certainty.class_ece[k])
        if entry.score is not None:
            assert entry.further["boundary_iou_3px"] == pytest.approx(contours.boundary_iou("3px")[k], abs=0.01)
        assert entry.further.get("recall", math.nan) == pytest.approx(
            class_recall(merge(matrices, num_classes=4))[k], nan_ok=True, abs=0.01
        )


def test_each_image_is_named_and_rated(masked: Path, artifact: Artifact) -> None:
    evaluation = evaluate(artifact, masked)
    assert [image.name for image in evaluation.images] == [f"images/val/{index}.png" for index in range(len(SIZES))]
    assert np.mean([1 - image.score for image in evaluation.images]) == pytest.approx(
        evaluation.certainty.risk_coverage[1].random  # type: ignore[union-attr]
    )


def test_labels_are_rated_from_surely_right_to_surely_wrong() -> None:
    images = [
        ImageScore(name="", score=score, confidence=confidence, uncertainty=0)
        for score, confidence in ((1, 0.9), (1, 0.4), (0, 0.4), (0, 0.9))
    ]
    ratings = [image.rating("classification") for image in images]
    assert ratings == sorted(ratings, reverse=True)
    assert images[1].rating("segmentation") == 1


@pytest.mark.parametrize(("num_classes", "is_there"), [(5, False), (6, True)])
def test_top_5_is_for_more_than_5_classes(
    tmp_path: Path, labels_spec: ModelSpec, num_classes: int, is_there: bool
) -> None:
    lines = [f"val,{n},{n % num_classes},c{n % num_classes}" for n in range(2 * num_classes)]
    lines += [f"train,{n}t,{n},c{n}" for n in range(num_classes)]
    (tmp_path / "labels.csv").write_text("\n".join(["split,stem,label_id,label", *lines]) + "\n")
    (tmp_path / "images/val").mkdir(parents=True)
    for n in range(2 * num_classes):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"images/val/{n}.png")
    dataset = open_dataset(tmp_path, "classification")
    probs_K = np.arange(num_classes, 0, -1, dtype=np.float32) / (num_classes * (num_classes + 1) / 2)
    prediction = ClassificationPrediction(probs_K=probs_K, mean_entropy=0.5, mutual_information=0, view_agreement=1)
    found = [
        Outcome(
            sample=sample,
            image_HWC=np.zeros((8, 8, 3), dtype=np.uint8),
            truth=np.asarray(sample.truth, dtype=np.uint8),
            prediction=prediction,
            confusion_KK=confusion_matrix(np.uint8(sample.truth), np.uint8(0), num_classes=num_classes),  # type: ignore[arg-type]
        )
        for sample in dataset.split("val")
    ]
    evaluation = assess(found, dataset, spec=labels_spec, split="val", tta="none", aggregate="mean")
    assert ("top5_accuracy" in evaluation.scores) == is_there
    if is_there:
        assert evaluation.scores["top5_accuracy"] == pytest.approx(5 / 6)
    assert evaluation.certainty is not None
    assert evaluation.certainty.nll == pytest.approx(-np.log(probs_K).mean(), rel=1e-4)


def test_two_classes_have_a_rand_error(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}))
    mask_HW = np.zeros((20, 33), dtype=np.uint8)
    mask_HW[:, 16] = 1
    for kind, array in (
        ("images", np.stack([255 * (1 - mask_HW), 255 * mask_HW, 0 * mask_HW], axis=2)),
        ("masks", mask_HW),
    ):
        (tmp_path / kind / "val").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / kind / "val/0.png")
    two = _plain(spec).model_copy(update={"classes": spec.classes[:2]})

    class TwoChannels(BrightestChannel):
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            return 10 * images_BCHW[:, :2]

    dataset = open_dataset(tmp_path, "segmentation")
    found = outcomes(SegmentationPredictor(two, TwoChannels()), dataset.split("val"), ignore_index=None)
    evaluation = assess(found, dataset, spec=two, split="val", tta="none", aggregate="mean")
    predicted_is_right = evaluation.scores["miou"] == 1
    assert (evaluation.scores["rand_error"] < 1e-9) == predicted_is_right
    assert evaluation.classes[0].further["rand_f1"] == pytest.approx(1 - evaluation.scores["rand_error"])
    assert evaluation.classes[1].further["rand_f1"] > 0.9
    assert "Rand F" in evaluation.table()


def test_many_pixels_are_predicted_a_few_at_a_time(
    masked: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counting(SegmentationPredictor):
        def predict(self, queries, **options):  # type: ignore[no-untyped-def]
            sizes.append(len(queries))
            return super().predict(queries, **options)

    samples = open_dataset(masked, "segmentation").split("val")
    predictor = Counting(_plain(spec), BrightestChannel())
    whole = list(outcomes(predictor, samples, ignore_index=9))
    monkeypatch.setattr("training.evaluate.PIXELS_AT_ONCE", 64 * 40 + 1)
    parts = list(outcomes(predictor, samples, ignore_index=9))
    assert sizes == [4, 2, 1, 1]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.predicted, other.predicted)
