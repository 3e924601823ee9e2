"""The loop with a real, tiny training: ends before the first round, goes on after a review, and leaves a report."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from cli import main
from tests.conftest import random_image
from tests.rounds import files_of, held_out_set
from training.flywheel.progress import Step
from training.flywheel.round import Round
from training.run import Run
from training.synthetic import write_segmentation_set

PAGE = (Path(__file__).resolve().parents[1] / "docs/flywheel.md").read_text()
RECIPE = """
name = "cells"
task = "segmentation"
data.root = "set"
network.encoder = "mobilenet_v3_small"
preprocess.working_side = 32
augment.crop = [32, 32]
optim = { epochs = 1, batch_size = 2, learning_rate = 1e-3, steps_per_epoch = 1 }
pseudo = { round = "unused", cutout = 0.25 }
"""


def test_a_loop_goes_on_after_a_review(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_segmentation_set(tmp_path / "set", seed=0, num_train=2, num_val=8, side=32)
    (tmp_path / "data/unlabelled").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(random_image(32, 32, seed=index)).save(tmp_path / f"data/unlabelled/{index}.png")
    (tmp_path / "data/unlabelled/val.png").write_bytes((tmp_path / "set/images/val/0003.png").read_bytes())
    (tmp_path / "cells.toml").write_text(RECIPE)
    (line,) = re.findall(r"^\.venv/bin/segserve (loop .*) --rounds 2$", PAGE, flags=re.MULTILINE)
    command = [*line.split(), "--tta", "none", "--precision", "0", "--least-churn", "0"]
    assert main([*command, "--rounds", "0", "--most-drift", "1"]) == 0
    out = tmp_path / "runs/cells-loop"
    told = "round-1: 1 image(s) get no mask, among them data/unlabelled/val.png: expected an image that is not held out"
    assert told in capsys.readouterr().err
    first = Round(out / "round-1")
    assert sorted(first.entries()) == ["0", "1", "2", "val"]
    decisions = {
        "round": 1,
        "artifact": first.order.artifact,
        "decisions": {"0": "reject", "1": "accept", "2": "accept"},
    }
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    assert main(["apply-review", str(first.path), "decisions.json"]) == 0
    capsys.readouterr()
    assert main([*command, "--rounds", "1", "--most-drift", "1"]) == 0
    assert "loop.html: the result is model" in capsys.readouterr().out
    steps = [Step.model_validate_json(line) for line in (out / "loop.jsonl").read_text().splitlines()]
    assert [(step.number, step.num_pseudo, step.num_images) for step in steps] == [(0, 0, 4), (1, 2, 4)]
    assert steps[0].churn is None and steps[1].churn is not None
    for step in steps:  # the held-out images are val here
        assert step.held_out_miou == pytest.approx(step.scores["miou_i"], abs=1e-3)
    recipes = [Run(out / f"model-{number}/run").recipe() for number in (0, 1)]
    assert recipes[0].pseudo is None
    assert recipes[1].pseudo is not None and recipes[1].pseudo.cutout == 0.25
    assert recipes[1].pseudo.round == Path("runs/cells-loop/round-1")
    second = Round(out / "round-2").order
    assert second.number == 2 and second.thresholds.good_iou == first.order.thresholds.good_iou
    assert "2 of 4" in (out / "loop.html").read_text() or "3 of 4" in (out / "loop.html").read_text()
    before = files_of(out)
    (tmp_path / "decisions.json").write_text(json.dumps(decisions | {"decisions": {"1": "reject"}}))
    assert main(["apply-review", str(first.path), "decisions.json"]) == 0
    capsys.readouterr()
    assert main([*command, "--rounds", "2", "--most-drift", "1"]) == 2
    told = "expected runs/cells-loop/round-1 as runs/cells-loop/model-1 was trained on it, but its accepted masks have"
    assert told in capsys.readouterr().err
    late = [name for name, content in files_of(out).items() if content != before.get(name)]
    assert all(name.startswith("round-1/") for name in late), "nothing that is told of the models has changed"


def test_what_the_first_round_needs_is_looked_at_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_segmentation_set(tmp_path / "set", seed=0, num_train=2, num_val=7, side=32)
    held_out_set(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cells.toml").write_text(RECIPE)
    command = ["loop", "cells.toml", "--tta", "none"]
    for arguments, sentence in (
        (["nowhere"], "expected a folder of images, but nowhere is none"),
        (["empty"], "expected a folder of images, but empty has none"),
        (["set/images/train", "--out", "set/images/train/a"], "expected a place outside of set/images/train, where a"),
        (["set/images/train"], "expected at least 8 held-out labelled images to fit the thresholds on, but got 7"),
        (["set/images/train", "--split", "test"], "to have images in split 'test'"),
        (["set/images/train", "--held-out", "other"], "expected held-out images with the classes ['background', "),
    ):
        assert main([*command, *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_only_masks_have_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("split,stem,label\nval,a,b\nval,c,d\n")
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "cells.toml").write_text(
        RECIPE.replace("segmentation", "classification").replace("pseudo", "# pseudo").replace('"set"', f'"{tmp_path}"')
    )
    assert main(["loop", str(tmp_path / "cells.toml"), str(tmp_path)]) == 2
    assert "expected a recipe for segmentation, but cells is for classification" in capsys.readouterr().err
