import json
from pathlib import Path

import pytest

from bench.ablation import AUGMENT, LOSSES, Arm, arms, main, table
from training.seeds import SeedsReport, spreads
from training.stop import Stopped
from training.synthetic import write_segmentation_set

RECIPES = Path(__file__).parents[1] / "training/recipes"
TINY = (
    *("network.encoder=resnet18", "preprocess.working_side=32", "augment.crop=[32,32]", "augment.scale=[1,1]"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=2", "loss.terms=[{kind='cross-entropy'}]"),
)


@pytest.mark.parametrize("recipe", ["wbc", "isbi2012", "camvid", "clothing", "wbc-cells"])
def test_every_arm_of_losses_is_a_recipe_of_its_own(recipe: str) -> None:
    found = arms(RECIPES / f"{recipe}.toml", [], group="losses", only=[])
    assert list(found) == list(LOSSES[next(iter(found.values())).task])


def test_arms_that_change_nothing_are_left_out() -> None:
    found = arms(RECIPES / "wbc.toml", ["augment.rotation=0", "augment.blur=0"], group="augment", only=[])
    assert list(found) == [name for name in AUGMENT if name not in ("no-rotation", "no-blur")]


def test_the_first_arm_is_always_there_to_compare_with() -> None:
    assert list(arms(RECIPES / "wbc.toml", [], group="losses", only=["ce-lovasz"])) == ["ce", "ce-lovasz"]


def test_an_unknown_arm_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(RECIPES / "wbc.toml"), "--arms", "ema", "--only", "swa", "--out", str(tmp_path / "a.md")]
    assert main(arguments) == 2
    assert "expected arms of ema, no-ema, but got swa: correct --only" in capsys.readouterr().err


def test_a_training_that_is_stopped_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped("stopped after step 3")

    monkeypatch.setattr("bench.ablation.train_seeds", stopped)
    assert main([str(RECIPES / "wbc.toml"), "--arms", "ema", "--out", str(tmp_path / "a.md")]) == 1
    assert capsys.readouterr().err == "bench.ablation: stopped after step 3\n"


def test_an_arm_with_two_seeds(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "data", seed=0, num_train=2, num_val=1, side=32)
    overrides = [f"data.root={tmp_path / 'data'}", *TINY]
    out, runs = tmp_path / "ablation.md", tmp_path / "runs"
    arguments = [
        *(str(RECIPES / "wbc.toml"), "--arms", "ema", "--only", "ema", "--seeds", "2"),
        *("--runs", str(runs), "--out", str(out)),
        *(part for override in overrides for part in ("--set", override)),
    ]
    assert main(arguments) == 0
    title, *_, head, _, line = out.read_text().strip().splitlines()
    assert title == "# Ablations"
    assert head.startswith("| arm | gain in miou | miou | boundary_iou_1px")
    scores = [json.loads((runs / f"wbc-ema-s{seed}/scores.json").read_text())["scores"] for seed in (0, 1)]
    assert line.startswith(f"| ema |  | {(scores[0]['miou'] + scores[1]['miou']) / 2:.4f} ± ")


def test_the_gain_is_that_of_the_same_seeds() -> None:
    """Differences 0.1 and 0.3: 0.2, and a standard deviation of sqrt(2) / 10."""
    found = []
    for name, values in {"ce": (0.5, 0.6), "ce-dice": (0.6, 0.9)}.items():
        scores = spreads([{"miou": value, "ece": 0.25} for value in values])
        report = SeedsReport(name=name, seeds=(0, 1), runs=("s0", "s1"), scores=scores)
        found.append(Arm(name=name, report=report, minutes=2))
    assert table(found).splitlines() == [
        "| arm | gain in miou | miou | ece | minutes a run |",
        "|---|---|---|---|---|",
        "| ce |  | 0.5500 ± 0.0707 | 0.2500 ± 0.0000 | 2.0 |",
        "| ce-dice | +0.2000 ± 0.1414 | 0.7500 ± 0.2121 | 0.2500 ± 0.0000 | 2.0 |",
    ]
