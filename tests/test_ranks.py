import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.without_batch_norm import network_without_batch_norm
from training import learner
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
augment = { crop = [32, 32], scale = [0.5, 1.0] }
optim = { epochs = 2, batch_size = 4, learning_rate = 1e-3, accumulate = ACCUMULATE, precision = "float32" }
loss = { class_weights = "inverse-sqrt" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_segmentation_set(tmp_path / "data", seed=0, num_train=9, num_val=1, side=32)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("ACCUMULATE", "1"))
    return tmp_path


def _train_by_torchrun(folder: Path, recipe: Path) -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.without_batch_norm", str(recipe), "exact"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_do_what_one_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _train_by_torchrun(folder, folder / "recipe.toml")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(learner, "build_network", network_without_batch_norm)
    train(load_recipe(folder / "recipe.toml"), run_dir=folder / "alone", device=CPU)
    alone, shared = Run(folder / "alone").load(), Run(folder / "exact").load()
    assert alone is not None and shared is not None
    assert [entry.loss for entry in shared.history] == pytest.approx([entry.loss for entry in alone.history], rel=1e-4)
    for name, expected in alone.network.items():
        torch.testing.assert_close(shared.network[name], expected, rtol=0, atol=1e-4, msg=name)
    # The real network: one process writes and tells.
    run = folder / "runs/shared"
    assert Run(run).is_finished
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert told.count("epoch 2/2") == 2  # once a run


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
    (folder / "recipe.toml").write_text(RECIPE.replace("ACCUMULATE", "3"))
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"at least 6 samples, .* optim.accumulate = 3, but it has 4: raise"):
        train(load_recipe(folder / "recipe.toml"), run_dir=folder / "run", device=CPU)
