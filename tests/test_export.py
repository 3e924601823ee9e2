import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cli import main
from segserve.artifact import Artifact, check_example, load_artifact, save_artifact
from segserve.choice import build_engine
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import build_predictor
from segserve.preprocess import normalise, to_tensor
from segserve.spec import CalibrationSpec, EngineName, ModelSpec, Task
from tests.conftest import ToyEngine, lively_network, random_image, tiny_spec
from training import export
from training.calibration import joined, probability_scores
from training.config import Recipe
from training.data import data_digest
from training.engine import train
from training.evaluate import evaluate
from training.export import calibrated, export_run, held_out_logits
from training.layouts import Dataset, open_dataset
from training.learner import TRAINED_ON
from training.openvino_model import CalibrationImages
from training.run import Run
from training.synthetic import write_classification_set, write_segmentation_set

RECIPE = {
    "name": "small",
    "network": {"encoder": "resnet18"},
    "preprocess": {"working_side": 32},
    "augment": {"crop": [32, 32]},
    "optim": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
    "serving": {"batch_size": 3},
}


@pytest.fixture(scope="module", params=get_args(Task))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch; its data lie beside it in `data`."""
    root = tmp_path_factory.mktemp("export")
    write = write_segmentation_set if request.param == "segmentation" else write_classification_set
    write(root / "data", seed=0, num_train=4, num_val=4, side=32)
    recipe = Recipe.model_validate({**RECIPE, "task": request.param, "data": {"root": root / "data"}})
    return train(recipe, run_dir=root / "run")


@pytest.fixture(scope="module")
def exported(run: Path) -> Artifact:
    return export_run(run, run.parent / "artifact")


def test_the_artifact_knows_how_held_out_images_are_answered(exported: Artifact) -> None:
    found = exported.spec.reference
    assert found is not None and found.num_images == 4
    assert sum(found.class_shares) == pytest.approx(1)


def test_the_artifact_holds_the_runs_result(run: Path, exported: Artifact) -> None:
    checkpoint = Run(run).load()
    assert checkpoint is not None
    for name, tensor in exported.network.state_dict().items():
        assert torch.equal(tensor, checkpoint.averaged[name]), name
    stored = json.loads((run / "scores.json").read_text())["scores"]
    provenance = exported.spec.provenance
    assert {f"val_{name}": score for name, score in stored.items()}.items() <= provenance.scores.items()
    assert provenance.recipe == json.loads((run / "recipe.json").read_text())
    assert {f"val_{name}{suffix}" for name in ("ece", "nll", "brier") for suffix in ("", "_uncalibrated")} <= set(
        provenance.scores
    )
    assert exported.spec.serving.batch_size == 3


def test_the_example_is_the_first_val_image_and_comes_out_again(run: Path, exported: Artifact) -> None:
    artifact = load_artifact(exported.path)
    first = min((run.parent / "data").rglob("val/**/*.png"), key=lambda path: ("masks" in path.parts, path))
    with Image.open(first) as expected, Image.open(artifact.path / "example/input.png") as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert check_example(artifact, build_predictor(artifact.spec, TorchEngine(artifact.network))) > 0.99


def test_the_artifact_scores_what_the_run_reached(run: Path, exported: Artifact) -> None:
    again = evaluate(exported, run.parent / "data")
    stored = exported.spec.provenance.scores
    assert again.scores == pytest.approx({name: stored[f"val_{name}"] for name in again.scores}, abs=1e-3)


@pytest.fixture
def doubtful(tmp_path: Path, spec: ModelSpec) -> Dataset:
    """Masks drawn from what the toy says of their images' pixels, at temperature 2.5, with void; all of one size."""
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [entry.model_dump() for entry in spec.classes], "ignore_index": 9})
    )
    for index in range(4):
        logits_NK = _toy_logits(random_image(64, 48, seed=index), spec)
        mask_HW = torch.multinomial((logits_NK / 2.5).softmax(dim=1), 1).reshape(64, 48).to(torch.uint8)
        mask_HW[:2] = 9
        for kind, array in (("images", random_image(64, 48, seed=index)), ("masks", mask_HW.numpy())):
            for split in ("train", "val"):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / kind / split / f"{index}.png")
    return open_dataset(tmp_path, "segmentation")


def _toy_logits(image_HWC: NDArray[np.uint8], spec: ModelSpec) -> Tensor:
    """(N, K) of an image that has the working size."""
    logits_1KHW = ToyEngine()(normalise(to_tensor(image_HWC)[None], spec.preprocess))
    return logits_1KHW[0].flatten(start_dim=1).T


@pytest.mark.parametrize("factor", [1, 4])
def test_overconfident_logits_are_read_without_loss(doubtful: Dataset, spec: ModelSpec, factor: int) -> None:
    class Loud(ToyEngine):
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            return factor * super().__call__(images_BCHW)

    for index, (logits_NK, truth_N) in enumerate(held_out_logits(spec, Loud(), doubtful)):
        mask_N = torch.from_numpy(np.array(Image.open(doubtful.root / f"masks/val/{index}.png"))).flatten().long()
        expected_NK = factor * _toy_logits(random_image(64, 48, seed=index), spec)[mask_N != 9]
        assert len(truth_N) == 62 * 48
        for temperature in (0.5, 1, 5):
            found = probability_scores(logits_NK / temperature, truth_N)
            expected = probability_scores(expected_NK / temperature, mask_N[mask_N != 9])
            assert found.model_dump() == pytest.approx(expected.model_dump(), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(("shape", "level"), [((20, 40), 0), ((64, 48), 7)])
def test_a_mask_that_does_not_fit_any_more_is_named(
    doubtful: Dataset, spec: ModelSpec, shape: tuple[int, int], level: int
) -> None:
    Image.fromarray(np.full(shape, level, dtype=np.uint8)).save(doubtful.root / "masks/val/0.png")
    with pytest.raises(ValueError, match=r"expected .*masks/val/0.png to have its image's size"):
        list(held_out_logits(spec, ToyEngine(), doubtful))


def test_the_temperature_that_the_truth_was_drawn_at_is_found(doubtful: Dataset, spec: ModelSpec) -> None:
    found = calibrated(spec, ToyEngine(), doubtful)
    assert found.calibration.split == "val"
    assert found.calibration.temperature == pytest.approx(2.5, rel=0.05)
    scores = found.provenance.scores
    assert scores["val_ece"] < 0.03 < 0.1 < scores["val_ece_uncalibrated"]
    assert scores["val_nll"] < scores["val_nll_uncalibrated"]
    assert scores["val_brier"] < scores["val_brier_uncalibrated"]


def test_a_temperature_that_does_not_help_other_images_is_not_kept(
    doubtful: Dataset, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [(torch.tensor([[2.0, 0.0]] * 10), torch.tensor([wrong] + [0] * 9)) for wrong in (0, 1, 0, 1)]
    parts[1] = parts[3] = (parts[1][0], torch.ones(10, dtype=torch.int64))
    monkeypatch.setattr(export, "held_out_logits", lambda *_: iter(parts))
    found = calibrated(spec, ToyEngine(), doubtful)
    assert found.calibration == CalibrationSpec()
    assert found.provenance.scores["val_nll"] == found.provenance.scores["val_nll_uncalibrated"]
    assert "to lower the other half's negative log-likelihood, but it goes from 1.1269 to" in capsys.readouterr().err


def test_a_split_of_void_leaves_the_spec_as_it_is(doubtful: Dataset, spec: ModelSpec) -> None:
    for mask in doubtful.root.glob("masks/val/*.png"):
        Image.new("L", (48, 64), 9).save(mask)
    assert calibrated(spec, ToyEngine(), doubtful) == spec


def test_at_most_so_many_pixels_of_an_image_are_looked_at(
    doubtful: Dataset, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MOST_PIXELS", 50)
    parts = list(held_out_logits(spec, ToyEngine(), doubtful))
    assert [len(truth_N) for _, truth_N in parts] == [50] * 4
    torch.testing.assert_close(joined(parts), joined(list(held_out_logits(spec, ToyEngine(), doubtful))))


def test_a_labelled_image_gives_one_row(run: Path, exported: Artifact) -> None:
    spec = exported.spec
    dataset = open_dataset(run.parent / "data", spec.task)
    rows = [len(truth_N) for _, truth_N in held_out_logits(spec, TorchEngine(exported.network), dataset)]
    assert rows == [1 if spec.task == "classification" else 32 * 32] * 4


def test_without_calibration_the_temperature_is_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "artifact"), "--no-calibration"]) == 0
    artifact = load_artifact(tmp_path / "artifact")
    assert artifact.spec.calibration == CalibrationSpec(temperature=1.0, split=None)
    assert not any("ece" in name for name in artifact.spec.provenance.scores)
    assert capsys.readouterr().err == ""
    again = ["export", str(artifact.path), "--out", str(tmp_path / "again"), "--engine", "openvino"]
    assert main([*again, "--no-calibration"]) == 2
    assert "expected --no-calibration for a run, but" in capsys.readouterr().err


def test_without_its_data_set_a_run_is_exported_at_temperature_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parent / "data"
    data.rename(run.parent / "elsewhere")
    try:
        assert export_run(run, tmp_path / "artifact").spec.calibration.split is None
    finally:
        (run.parent / "elsewhere").rename(data)
    assert capsys.readouterr().err == (
        f"segserve: the temperature stays 1: expected the run's data set at {data} to fit it on, but there is none: "
        "export where it is\n"
    )


def test_another_data_set_in_its_place_is_not_fitted_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = run.parent / "data/classes.json"
    text = classes.read_text()
    classes.write_text(text + " ")
    try:
        assert export_run(run, tmp_path / "artifact").spec.calibration.temperature == 1
    finally:
        classes.write_text(text)
    assert "to fit it on, but it has changed: bring it back" in capsys.readouterr().err


def test_without_its_val_split_a_run_is_exported_at_temperature_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parent / "data"
    folders = [path for path in data.rglob("val") if path.is_dir()]
    for path in folders:
        path.rename(path.with_name("elsewhere"))
    try:
        spec = export_run(run, tmp_path / "artifact").spec
    finally:
        for path in folders:
            path.with_name("elsewhere").rename(path)
    assert spec.calibration.split is None and spec.reference is None
    assert f"the temperature stays 1: expected {data} to have images in split 'val', but it has" in (
        capsys.readouterr().err
    )


def test_an_artifact_is_replaced_but_nothing_else(run: Path, exported: Artifact) -> None:
    assert export_run(run, exported.path).digest == exported.digest
    with pytest.raises(ValueError, match="to be an artifact or not to exist, but it is something else"):
        export_run(run, run)
    assert Run(run).is_finished


def test_an_unfinished_run_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_bytes((run / "recipe.json").read_bytes())
    with pytest.raises(ValueError, match=r"expected a finished run, but .* is not: go on with `segserve train`"):
        export_run(tmp_path / "run", tmp_path / "artifact")
    with pytest.raises(ValueError, match=r"has no recipe.json: make one with `segserve train`"):
        export_run(tmp_path, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("run", ["classification"], indirect=True)  # masks: tests/test_engines_page.py
def test_an_engine_lies_beside_the_weights_with_its_certificate(
    run: Path, exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "artifact"), "--engine", "openvino"]) == 0
    artifact = load_artifact(tmp_path / "artifact")
    engine = artifact.spec.engine
    assert engine is not None
    assert engine.name == "openvino"
    assert f"openvino: {engine.certificate.sentence()}" in capsys.readouterr().out
    assert engine.certificate.num_images == 4
    assert engine.certificate.agreement > 0.99
    assert engine.certificate.max_probability_shift < 0.01
    assert artifact.spec.model_copy(update={"engine": None}) == exported.spec
    plain, found = files(exported.path), files(artifact.path)
    assert set(found) == {*plain, "engine/model.xml", "engine/model.bin", "example/labels-openvino.json"}
    assert all(found[name] == content for name, content in plain.items() if name != "spec.json")
    assert check_example(artifact, build_predictor(artifact.spec, build_engine(artifact, device="cpu"))) > 0.99
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    with (artifact.path / "engine/model.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=rf"expected .*model\.bin to have SHA-256 {engine.files['model.bin']}, but it"):
        load_artifact(artifact.path)
    (artifact.path / "engine/model.bin").unlink()
    with pytest.raises(ValueError, match=r"expected the artifact's model, but .*model\.bin is missing: export the run"):
        load_artifact(artifact.path)


@pytest.fixture
def varied(tmp_path: Path) -> Artifact:
    """A segmentation artifact whose answers vary from pixel to pixel, and which names a data set that is there."""
    data = tmp_path / "data"
    write_segmentation_set(data, seed=0, num_train=4, num_val=4, side=32)
    dataset = open_dataset(data, "segmentation")
    recipe = {**RECIPE, "task": "segmentation", "data": {"root": str(data)}}
    provenance = {"recipe": recipe, "data_digest": data_digest(dataset, TRAINED_ON)}
    spec = tiny_spec("segmentation")
    spec = spec.model_copy(
        update={"classes": dataset.classes, "provenance": spec.provenance.model_copy(update=provenance)}
    )
    return save_artifact(tmp_path / "plain", spec, lively_network(spec), example_HWC=random_image(32, 32))


def test_a_ruined_quantisation_is_refused_and_nothing_is_written(
    varied: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranges that are a thousand times too small cut nearly every activation off."""
    real = CalibrationImages.__iter__
    monkeypatch.setattr(CalibrationImages, "__iter__", lambda images: (image / 1000 for image in real(images)))
    before = files(tmp_path)
    given = [str(varied.path), "--out", str(tmp_path / "artifact"), "--engine", "openvino-int8"]
    assert main(["export", *given]) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segserve:")]
    expected = (
        r"segserve: expected openvino-int8 to lose at most 0\.5 points of miou .* on 4 images of val it loses .* take"
    )
    assert re.match(expected, sentence)
    assert files(tmp_path) == before


def test_an_artifact_has_torch_already(exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(exported.path), "--out", str(tmp_path / "artifact")]) == 2
    assert "expected a run, or --engine for the artifact" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "engine"), [("openvino", "openvino"), ("nncf", "openvino-int8")])
def test_what_an_engine_needs_is_named(
    package: str, engine: EngineName, exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == package else object())
    words = rf"expected the package {package} to build {engine}, but it is not installed: `pip install segserve\[open"
    with pytest.raises(ValueError, match=words):
        export.add_engine(exported, tmp_path / "artifact", engine=engine)
    assert list(tmp_path.iterdir()) == []
