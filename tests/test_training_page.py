"""The commands of docs/training.md are executed here, on a tiny set; torchrun itself in `tests/test_ranks.py`."""

import json
import re
import shutil
from pathlib import Path

import pytest

import cli
from training.synthetic import write_segmentation_set

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/training.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
TORCHRUN = ".venv/bin/torchrun --nproc-per-node 2 "

TINY = """
name = "demo-segmentation"
task = "segmentation"
data = { root = "runs/demo/data/segmentation" }
network = { encoder = "mobilenet_v3_large" }
preprocess = { working_side = 32 }
augment = { crop = [32, 32] }
optim = { epochs = 1, batch_size = 4, learning_rate = 1e-3 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which the data set and the recipe are tiny; only the reader's own set has a test split."""
    write_segmentation_set(tmp_path / "runs/demo/data/segmentation", seed=0, num_train=4, num_val=1, side=32)
    write_segmentation_set(tmp_path / "data/cells", seed=1, num_train=1, num_val=1, side=32)
    for kind in ("images", "masks"):
        shutil.copytree(tmp_path / "data/cells" / kind / "val", tmp_path / "data/cells" / kind / "test")
    (tmp_path / "training/recipes").mkdir(parents=True)
    (tmp_path / "training/recipes/demo-segmentation.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *arguments = command.split()
    assert program == ".venv/bin/segserve"
    assert cli.main(arguments) == 0, command
    return capsys.readouterr().out


def test_the_pages_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, seeds, accumulate, torchrun, evaluate = COMMANDS
    assert torchrun.removeprefix(TORCHRUN) == f"{train} --set name=in-two"
    assert "runs/demo-segmentation: done" in _run(train, capsys)
    told = _run(seeds.replace("0,1,2", "0,1"), capsys)
    assert told.endswith("demo-segmentation, seeds 0, 1\n")
    assert json.loads((folder / "runs/demo-segmentation-seeds.json").read_text())["seeds"] == [0, 1]
    assert cli.main(["export", "runs/demo-segmentation", "--out", "artifacts/cells"]) == 0
    assert "the first evaluation on this test split" in _run(evaluate, capsys)
    assert "1 time(s) with this artifact" in _run(evaluate, capsys)
    assert (folder / "artifacts/test_evaluations.jsonl").is_file()
    # A run that began with another recipe is refused by name.
    assert cli.main(accumulate.replace("--set name=in-parts", "").split()[1:]) == 2
    assert "optim.accumulate = 2 (was 1)" in capsys.readouterr().err
    assert "runs/in-parts: done" in _run(accumulate, capsys)
