"""The commands of docs/flywheel.md are executed here, on a tiny set; the loop's in `tests/test_flywheel_loop.py`."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from cli import main
from handlers.settings import read_doubtful
from segserve.api import Request
from segserve.artifact import Artifact, load_artifact, save_artifact
from segserve.doubtful import DoubtfulSettings
from segserve.doubtful_store import DoubtfulStore
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import build_predictor
from segserve.service import Service
from tests.conftest import CLASSES, random_image
from training.flywheel.round import Round
from training.flywheel.scores import ScoreName
from training.lint.inspection import check_dataset

PAGE = (Path(__file__).resolve().parents[1] / "docs/flywheel.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
RECIPE = """
name = "cells"
task = "segmentation"
data.root = "set"
network.encoder = "mobilenet_v3_small"
preprocess.working_side = 32
augment.crop = [32, 32]
optim = { epochs = 1, batch_size = 2, learning_rate = 1e-3 }
"""


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds what the page speaks of; the commands are run there."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 8)):
        for kind in ("images", "masks"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        for index in range(count):
            image_HWC = random_image(32, 40, seed=index + 10 * (split == "val"))
            Image.fromarray(image_HWC).save(f"set/images/{split}/{index}.png")
            mask_HW = np.kron(rng.integers(0, 4, (4, 5)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(mask_HW).save(f"set/masks/{split}/{index}.png")
    classes = [{"id": entry.id, "name": entry.name} for entry in CLASSES]
    Path("set/classes.json").write_text(json.dumps({"classes": classes}))
    Path("cells.toml").write_text(RECIPE)
    Path("data/unlabelled").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(random_image(32, 40, seed=100 + index)).save(f"data/unlabelled/{index}.png")
    recipe = {"name": "cells", "task": "segmentation", "data": {"root": "set"}, "preprocess": {"working_side": 32}}
    recipe |= {"augment": {"crop": [32, 32]}, "optim": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}}
    provenance = artifact.spec.provenance.model_copy(update={"recipe": recipe})
    spec = artifact.spec.model_copy(update={"provenance": provenance})
    save_artifact(tmp_path / "artifacts/cells", spec, artifact.network, example_HWC=random_image(32, 40))
    return tmp_path


def run(command: str) -> int:
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/segserve"
    return main(arguments)


def test_a_round_from_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label, review, to_cvat, to_label_studio, back, train, loop, _, bench = COMMANDS
    assert loop.startswith(".venv/bin/segserve loop") and bench.startswith(".venv/bin/python -m bench.flywheel")
    assert run(".venv/bin/segserve train cells.toml") == 0  # from which a reader has artifacts/cells
    assert run(label) == 0
    assert "next: open runs/round-1/review.html" in capsys.readouterr().out
    found = Round(folder / "runs/round-1")
    decisions = {"0": "work", "1": "reject", "2": "accept"}
    table = {"round": 1, "artifact": found.order.artifact, "decisions": decisions}
    Path("decisions.json").write_text(json.dumps(table))
    assert [run(command) for command in (review, to_cvat, to_label_studio, back)] == [0, 0, 0, 0]
    assert "1 masks taken over as labelled" in capsys.readouterr().out
    entries = found.entries()
    assert [entries[name].source for name in "012"] == ["person", "model", "model"]
    assert [entries[name].verdict for name in "012"] == ["accept", "relabel", "accept"]
    assert check_dataset(found.path, "segmentation") == []
    assert run(train) == 0
    assert "4 training images" in capsys.readouterr().err


def test_what_a_service_was_not_sure_of_becomes_a_round(folder: Path) -> None:
    """Under the names by which it was kept."""
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    Path("doubtful.toml").write_text(shown)
    settings = read_doubtful(Path("doubtful.toml"))
    assert settings == DoubtfulSettings(folder=Path("doubtful"))
    artifact = load_artifact(folder / "artifacts/cells")
    service = Service(
        artifact, build_predictor(artifact.spec, TorchEngine(artifact.network)), name="cells", version="1"
    )
    service.doubtful = DoubtfulStore(settings, artifact.spec, service.model)
    for path in sorted(Path("data/unlabelled").iterdir()):
        service.handle([Request(headers={}, fields={"body": path.read_bytes()})])
        service.doubtful.flush()
    assert run(COMMANDS[-2]) == 0
    kept = sorted(path.stem for path in Path("doubtful/cells/images").iterdir())
    assert len(kept) == 3 and sorted(Round(folder / "runs/round-2").entries()) == kept


def test_the_table_has_every_score() -> None:
    (rows,) = re.findall(r"\| score \|.*?\n(?=\n)", PAGE, flags=re.DOTALL)
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows.splitlines()))
    assert sorted(named) == sorted(get_args(ScoreName))


def test_the_figures_are_the_codes() -> None:
    defaults = {
        "--precision": "0.9",
        "--border": "2",
        "--least-churn": "0.01",
        "--most-drop": "0.1",
        "--most-drift": "0.2",
    }
    for option, value in defaults.items():
        assert re.search(rf"`{option}` \({re.escape(value)}", PAGE), option
