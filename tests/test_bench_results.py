import json
from pathlib import Path

import pytest

from bench.results import figure, main
from training.config import load_recipe
from training.seeds import Spread, train_seeds
from training.synthetic import write_segmentation_set

RECIPE = Path(__file__).parents[1] / "training/recipes/isbi2012.toml"
TINY = (
    *("network.encoder=resnet18", "preprocess.working_side=32", "preprocess.overlap=0", "augment.crop=[32,32]"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=2"),
)


def test_a_recipe_with_two_seeds(tmp_path: Path) -> None:
    data, runs, out = tmp_path / "data", tmp_path / "runs", tmp_path / "results.md"
    write_segmentation_set(data, seed=0, num_train=2, num_val=1, side=32)
    recipe = load_recipe(RECIPE, [*TINY, f"data.root={data}"])
    report = train_seeds(recipe, seeds=(0, 1), runs_dir=runs)
    assert main([str(runs / "isbi2012-seeds.json"), "--out", str(out)]) == 0
    text = out.read_text()
    assert f"| isbi2012 | unet, resnet18 | {figure(report.scores['miou'])} |" in text
    assert figure(report.scores["ece"]) in text
    classes = json.loads((runs / "isbi2012-s0/scores.json").read_text())["classes"]
    assert all(f"| {entry['name']} | " in text for entry in classes)


def test_mean_and_spread() -> None:
    assert figure(Spread(mean=0.5, std=0.125, min=0.4, max=0.6, values=(0.4, 0.6))) == "0.5000 ± 0.1250"
    assert figure(None) == ""


def test_a_report_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none-seeds.json"), "--out", str(tmp_path / "out.md")]) == 2
    assert "none-seeds.json" in capsys.readouterr().err
