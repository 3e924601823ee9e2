"""docs/datasets.md is true: its table of findings, and its commands about sets of one mask a split."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from cli import main
from training.lint.findings import Kind
from training.lint.inspection import inspect

PAGE = (Path(__file__).resolve().parents[1] / "docs/datasets.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
CODINGS = {
    "cells": np.array([0, 1, 255], dtype=np.uint8),
    "colors": np.array([(0, 0, 0), (228, 87, 86), (0, 0, 0)], dtype=np.uint8),
    "jpegs": np.array([(0, 0, 0), (228, 87, 86), (20, 200, 200)], dtype=np.uint8),
    "grays": np.array([0, 255, 9], dtype=np.uint8),
}


def commands(section: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", SECTIONS[section], flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the page's data sets; the commands are run there."""
    (example,) = re.findall(r"```json\n(.*?)```", SECTIONS["The folder layout"], flags=re.DOTALL)
    rng = np.random.default_rng(0)
    mask_HW = np.zeros((32, 48), dtype=np.uint8)
    mask_HW[8:24, 16:32], mask_HW[:8, :16] = 1, 2
    for name, coding in CODINGS.items():
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (tmp_path / "data" / name / kind / split).mkdir(parents=True)
            image = Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
            image.save(tmp_path / f"data/{name}/images/{split}/a.png")
            path = tmp_path / f"data/{name}/masks/{split}/a.{'jpg' if name == 'jpegs' else 'png'}"
            Image.fromarray(coding[mask_HW]).save(path)
        (tmp_path / f"data/{name}/classes.json").write_text(json.dumps(json.loads(example)))
    (tmp_path / "data/grays/labels.csv").write_text("split,stem,label\ntrain,a,cell\nval,a,cell\n")
    (tmp_path / "data/more-colors.txt").write_text("20 200 200 void\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/segserve"
    return main(arguments)


def test_the_table_has_every_kind_of_finding() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (error|warning)", SECTIONS["Lint"], flags=re.MULTILINE)
    assert [kind for kind, _ in rows] == list(get_args(Kind))


def test_lint(folder: Path) -> None:
    (command,) = commands("Lint")
    assert run(command) == 0
    assert (folder / "lint.html").is_file() and (folder / "lint.json").is_file()


def test_convert(folder: Path) -> None:
    lines = commands("Convert")
    assert len(lines) == 5
    for command in lines:
        assert run(command) == 0, command
        out = Path(shlex.split(command)[3])
        assert inspect(out, "segmentation").of("error") == []
        for split in ("train", "val"):
            mask_HW = np.asarray(Image.open(out / f"masks/{split}/a.png"))
            assert mask_HW[16, 24] == 1 and mask_HW[28, 40] == 0
            assert mask_HW[4, 8] == (255 if "jpegs" in command else 0)
