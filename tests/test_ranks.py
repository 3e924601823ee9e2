import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.without_batch_norm import train_an_epoch
from training.config import load_recipe
from training.engine import train
from training.ranks import Ranks, device_of_rank, joined_ranks, unshared
from training.run import Run
from training.synthetic import write_segmentation_set

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

RECIPE = """
name = "shared"
task = "segmentation"
data = { root = "data" }
network = { encoder = "mobilenet_v3_large" }
preprocess = { working_side = 32 }
augment = { crop = [32, 32], scale = [0.3, 1.0] }
optim = { epochs = 2, batch_size = 8, learning_rate = 1e-3, accumulate = ACCUMULATE, precision = "float32" }
loss = { class_weights = "inverse-sqrt" }
"""

NESTED = """
import time
from pathlib import Path
import torch
from training.ranks import joined_ranks

with joined_ranks(torch.device("cpu")):
    with joined_ranks(torch.device("cpu")) as ranks:
        if ranks.is_first:
            time.sleep(1)
            Path("scores.json").write_text("{}")
    Path(f"read{ranks.rank}").write_text(Path("scores.json").read_text())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_segmentation_set(tmp_path / "data", seed=0, num_train=17, num_val=1, side=32)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("ACCUMULATE", "1"))
    return tmp_path


def _by_torchrun(folder: Path, *program: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*torchrun, *program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_processes_do_what_one_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two steps of two parts a process; the parts have different shares of pixels that count.

    Gradients are compared, not weights: AdamW divides each by its own size, so that one that is only rounding counts.
    """
    (folder / "recipe.toml").write_text(RECIPE.replace("ACCUMULATE", "2"))
    done = _by_torchrun(folder, "-m", "tests.without_batch_norm", "recipe.toml")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    losses, gradients = train_an_epoch(load_recipe(folder / "recipe.toml"), Ranks())
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for rank in range(2):
        shared_losses, shared = torch.load(folder / f"rank{rank}.pt")
        assert shared_losses == pytest.approx(losses, rel=1e-5)
        assert shared.keys() == gradients.keys()
        for name, expected in gradients.items():
            torch.testing.assert_close(shared[name], expected, rtol=1e-3, atol=1e-4 * largest, msg=name)

    # Then the real network, by the command: one process writes and tells.
    run = folder / "runs/shared"
    assert Run(run).is_finished
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert done.stderr.count("epoch 2/2") == 1
    assert done.stdout.count("val, 1 images") == done.stdout.count("runs/shared: done; next: ") == 1


def test_what_the_first_process_wrote_is_there_when_a_training_among_several_ends(tmp_path: Path) -> None:
    """With `--seeds` the other processes looked for the last run's scores while the first one still wrote them."""
    (tmp_path / "nested.py").write_text(NESTED)
    done = _by_torchrun(tmp_path, "nested.py")
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"read{rank}").read_text() == "{}" for rank in range(2))


def test_alone_there_is_nothing_to_share() -> None:
    network = torch.nn.Linear(1, 1)
    with joined_ranks(CPU) as ranks:
        assert ranks == Ranks() and ranks.is_first
        assert ranks.replica(network, CPU) is network
        assert ranks.sum(torch.tensor(3.0)).item() == 3
        assert ranks.any(True, CPU) and not ranks.any(False, CPU)
    with unshared(network):
        pass
    assert device_of_rank(CPU) == CPU


def test_a_batch_too_small_for_its_parts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recipe.toml").write_text(RECIPE.replace("ACCUMULATE", "5"))
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"at least 10 samples, .* optim.accumulate = 5, but it has 8: raise"):
        train(load_recipe(folder / "recipe.toml"), run_dir=folder / "run", device=CPU)
