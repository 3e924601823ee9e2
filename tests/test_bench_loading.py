import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from bench.loading import clock_of, main
from training.learner import Learner
from training.synthetic import write_segmentation_set

RECIPE = """
name = "small"
task = "segmentation"
data = {{ root = "{root}" }}
network = {{ encoder = "resnet18" }}
preprocess = {{ working_side = 32 }}
augment = {{ crop = [32, 32], scale = [0.8, 1.25], hflip = true, brightness = 0.2 }}
optim = {{ epochs = 1, batch_size = 2, learning_rate = 1e-3 }}
"""


def test_the_loader_takes_little_of_the_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even at the smallest size, where a step costs least; the target at the recipes' own sizes is 0.9."""
    write_segmentation_set(tmp_path / "set", seed=0, num_train=4, num_val=1, side=32)
    (tmp_path / "small.toml").write_text(RECIPE.format(root=tmp_path / "set"))
    out = tmp_path / "loading.md"
    assert main([str(tmp_path / "small.toml"), "--steps", "1", "--rounds", "3", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "4 training images, held in memory (0 MiB), augmented by cpu itself" in told
    (row,) = (line.split("|") for line in out.read_text().splitlines() if line.startswith("| small |"))
    bare, loaded, left, alone = (float(cell.replace(",", "")) for cell in row[4:8])
    assert left == pytest.approx(bare / loaded, abs=0.02)
    assert 0.7 < left < 1.4 and 0 < alone < bare


def test_what_worker_processes_load_is_timed_by_the_clock() -> None:
    """Their processor time is not this process's: the loader would seem to cost nothing."""
    for num_workers, clock in ((0, time.process_time), (2, time.perf_counter)):
        learner = SimpleNamespace(device=torch.device("cpu"), batches=SimpleNamespace(num_workers=num_workers))
        assert clock_of(cast(Learner, learner)) is clock


def test_no_data_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.toml").write_text(RECIPE.format(root=tmp_path / "set"))
    assert main([str(tmp_path / "small.toml")]) == 2
    assert "set is not a folder: correct its path" in capsys.readouterr().err
