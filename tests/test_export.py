import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from segserve.artifact import check_example, load_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import build_predictor
from segserve.spec import Task
from training.config import Recipe
from training.engine import train
from training.evaluate import evaluate
from training.export import export_run
from training.run import Run
from training.synthetic import write_classification_set, write_segmentation_set


@pytest.fixture(scope="module", params=get_args(Task))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch; its data lie beside it in `data`."""
    root = tmp_path_factory.mktemp("export")
    write = write_segmentation_set if request.param == "segmentation" else write_classification_set
    write(root / "data", seed=0, num_train=4, num_val=4, side=32)
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "task": request.param,
            "data": {"root": root / "data"},
            "network": {"encoder": "resnet18"},
            "preprocess": {"working_side": 32},
            "augment": {"crop": [32, 32]},
            "optim": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
            "serving": {"batch_size": 3},
        }
    )
    return train(recipe, run_dir=root / "run")


def test_the_artifact_holds_the_runs_result(run: Path, tmp_path: Path) -> None:
    artifact = export_run(run, tmp_path / "artifact")
    checkpoint = Run(run).load()
    assert checkpoint is not None
    for name, tensor in artifact.network.state_dict().items():
        assert torch.equal(tensor, checkpoint.averaged[name]), name
    stored = json.loads((run / "scores.json").read_text())["scores"]
    provenance = artifact.spec.provenance
    assert provenance.scores == {f"val_{name}": score for name, score in stored.items()}
    assert provenance.recipe == json.loads((run / "recipe.json").read_text())
    assert artifact.spec.serving.batch_size == 3


def test_the_example_is_the_first_val_image_and_comes_out_again(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    first = min((run.parent / "data").rglob("val/**/*.png"), key=lambda path: ("masks" in path.parts, path))
    with Image.open(first) as expected, Image.open(tmp_path / "artifact/example/input.png") as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert check_example(artifact, build_predictor(artifact.spec, TorchEngine(artifact.network))) > 0.99


def test_the_artifact_scores_what_the_run_reached(run: Path, tmp_path: Path) -> None:
    artifact = export_run(run, tmp_path / "artifact")
    again = evaluate(artifact, run.parent / "data")
    assert {f"val_{name}": score for name, score in again.scores.items()} == pytest.approx(
        artifact.spec.provenance.scores
    )


def test_the_data_set_is_not_needed(run: Path, tmp_path: Path) -> None:
    data = run.parent / "data"
    data.rename(run.parent / "elsewhere")
    try:
        assert export_run(run, tmp_path / "artifact").spec.name == "small"
    finally:
        (run.parent / "elsewhere").rename(data)


def test_an_artifact_is_replaced_but_nothing_else(run: Path, tmp_path: Path) -> None:
    first = export_run(run, tmp_path / "artifact")
    assert export_run(run, tmp_path / "artifact").digest == first.digest
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
