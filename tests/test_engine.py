import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import pytest
import torch
from torch import Tensor

from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.predictor import build_predictor
from tests.without_batch_norm import network_without_batch_norm
from training import engine, learner
from training.config import AugmentSettings, EvalSettings, OptimSettings, Recipe
from training.engine import NonFiniteLoss, learning_rate, train
from training.evaluate import outcomes, summarise
from training.export import export_run
from training.layouts import open_dataset
from training.learner import build_learner
from training.losses.objective import Objective
from training.losses.terms import LossSettings
from training.ranks import Ranks
from training.run import Run
from training.stop import Stopped
from training.synthetic import write_classification_set, write_segmentation_set

CPU = torch.device("cpu")
EPOCHS, STEPS_PER_EPOCH = 3, 2
LOSSES = {"segmentation": ("cross-entropy", "dice"), "classification": ("cross-entropy",)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_segmentation_set(root / "segmentation", seed=0, num_train=5, num_val=3, side=32)
    write_classification_set(root / "classification", seed=0, num_train=5, num_val=8, side=32)
    return root


def _recipe(data: Path, task: str = "segmentation", **optim: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "task": task,
            "data": {"root": data / task},
            "network": {"encoder": "mobilenet_v3_large"},
            "preprocess": {"working_side": 32},
            "augment": {"crop": [32, 32], "scale": [0.8, 1.25], "hflip": True, "brightness": 0.2},
            "loss": {"terms": [{"kind": kind} for kind in LOSSES[task]]},
            "optim": {"epochs": EPOCHS, "batch_size": 2, "learning_rate": 1e-3, "warmup_epochs": 1, **optim},
            "eval": {"every_epochs": 2},
        }
    )


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return train(_recipe(data), run_dir=tmp_path_factory.mktemp("runs") / "whole", device=CPU)


@pytest.fixture
def call_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Tensor], Tensor]], None]:
    """Put `change` between the loss and its gradient at one step of the trainings that follow (steps count from 0)."""

    def put(step: int, change: Callable[[Tensor], Tensor]) -> None:
        steps = iter(range(10**6))

        class ChangedObjective(Objective):
            def __call__(self, logits: Any, truths: Tensor, *, progress: float) -> Tensor:
                loss = super().__call__(logits, truths, progress=progress)
                return change(loss) if next(steps) == step else loss

        monkeypatch.setattr(learner, "Objective", ChangedObjective)

    return put


def _dies(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


# --- what a run leaves ---


def test_a_run_leaves_its_files(whole_run: Path) -> None:
    assert {path.name for path in whole_run.iterdir()} - {"report.html"} == {
        *("recipe.json", "log.jsonl", "checkpoint.pt", "scores.json", "classes.csv"),
        *("curves.png", "samples.png", "example.png"),
    }


def test_the_log_tells_each_epoch(whole_run: Path) -> None:
    entries = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert [sorted(entry["scores"]) for entry in entries] == [
        [],
        ["miou", "pixel_accuracy"],
        ["miou", "pixel_accuracy"],
    ]
    assert all(math.isfinite(entry["loss"]) and entry["learning_rate"] > 0 for entry in entries)


def test_the_scores_are_those_of_the_averaged_weights_on_the_services_path(whole_run: Path, data: Path) -> None:
    checkpoint, dataset = Run(whole_run).load(), open_dataset(data / "segmentation", "segmentation")
    assert checkpoint is not None
    network = build_network(checkpoint.spec.network, task="segmentation", num_classes=5)
    network.load_state_dict(checkpoint.averaged)
    predictor = build_predictor(checkpoint.spec, TorchEngine(network, device="cpu"))
    found = outcomes(predictor, dataset.split("val"), ignore_index=None)
    again = summarise((outcome.confusion_KK for outcome in found), dataset, split="val")
    stored = json.loads((whole_run / "scores.json").read_text())
    assert {name: stored["scores"][name] for name in again.scores} == pytest.approx(again.scores)
    assert checkpoint.history[-1].scores == pytest.approx(again.scores)


def test_classification_trains_too(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _recipe(data, "classification", epochs=1, warmup_epochs=0)
    recipe = recipe.model_copy(update={"eval": EvalSettings(keep="best-on-val")})
    train(recipe, run_dir=tmp_path / "run", device=CPU)
    assert sorted(json.loads((tmp_path / "run/scores.json").read_text())["scores"])[:2] == ["accuracy", "mean_recall"]
    told = capsys.readouterr()
    assert "epoch 1/1: loss" in told.err
    assert "val, 8 images, engine torch, tta none: accuracy" in told.out
    assert "epoch 1 was chosen by these val scores, which are therefore too good" in told.out


def test_the_objective_is_told_which_share_of_the_run_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Told(Objective):
        def __call__(self, logits: Any, truths: Tensor, *, progress: float) -> Tensor:
            told.append(progress)
            return super().__call__(logits, truths, progress=progress)

    monkeypatch.setattr(learner, "Objective", Told)
    train(_recipe(data, "classification"), run_dir=tmp_path, device=CPU)
    num_steps = EPOCHS * STEPS_PER_EPOCH
    assert told == [step / num_steps for step in range(num_steps)]


def test_a_few_images_can_be_learnt_by_heart(data: Path, tmp_path: Path) -> None:
    recipe = _recipe(data, "classification", epochs=8, batch_size=5)
    recipe = recipe.model_copy(
        update={"augment": AugmentSettings(crop=(32, 32)), "eval": EvalSettings(every_epochs=99)}
    )
    train(recipe, run_dir=tmp_path, device=CPU)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[0] > 1
    assert losses[-1] < 0.1


# --- interruption ---


APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload(["training.engine", "tests.test_engine"])
STOPPED = 3
Ends = tuple[int, Literal["killed", "killed while saving", "asked to stop"]]


def _train_apart(recipe: Recipe, run_dir: Path, ends: Ends | None) -> None:
    """Runs in a process of its own, which ends at a step (counted from 0 in this process) before its backward pass."""
    torch.set_num_threads(1)
    steps = itertools.count()

    def end(file: IO[bytes] | None = None) -> None:
        if file:
            file.write(b"half a check")
            file.flush()
        os.kill(os.getpid(), signal.SIGTERM if ends and ends[1] == "asked to stop" else signal.SIGKILL)

    class Ending(Objective):
        def __call__(self, logits: Any, truths: Tensor, *, progress: float) -> Tensor:
            if ends and next(steps) == ends[0]:
                if ends[1] == "killed while saving":
                    torch.save = lambda table, file: end(file)  # type: ignore[assignment]
                else:
                    end()
            return super().__call__(logits, truths, progress=progress)

    learner.Objective = Ending  # type: ignore[misc]
    engine._Saver.is_due = property(lambda saver: saver.learner.step % 2 == 0)  # type: ignore[method-assign, assignment]
    try:
        train(recipe, run_dir=run_dir, device=CPU)
    except Stopped:
        sys.exit(STOPPED)


def _exit_code(*arguments: Any) -> int | None:
    process = APART.Process(target=_train_apart, args=arguments)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    """With SIGKILL, at random steps: all that survives is what is on the disk, which may be some steps behind."""
    recipe = _recipe(data, "classification")
    recipe = recipe.model_copy(update={"eval": EvalSettings(every_epochs=1, keep="best-on-val")})
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    assert _exit_code(recipe, whole.path, None) == 0
    draw = random.Random(0).randrange
    # Each time two steps at most come onto the disk, of the six.
    ways: list[Ends] = [(draw(1, 3), "killed"), (draw(2), "killed while saving"), (draw(2), "asked to stop")]
    assert [_exit_code(recipe, killed.path, ends) for ends in ways] == [-signal.SIGKILL, -signal.SIGKILL, STOPPED]
    assert killed.load() is not None and not killed.is_finished
    assert _exit_code(recipe, killed.path, None) == 0
    _assert_same_bits(killed, whole)
    _assert_best_is_kept(whole, tmp_path / "artifact")


def test_worker_processes_leave_a_signal_to_their_group_to_the_training(data: Path, tmp_path: Path) -> None:
    """As of Ctrl-C, `timeout`, systemd and Slurm, while a batch is waited for."""
    recipe = _recipe(data, "classification", epochs=100)
    arguments = [sys.executable, "-c", WITH_WORKERS, recipe.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log.jsonl").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "worker process" in said
    assert "which is saved: the same command goes on from there" in said.splitlines()[-1]
    assert Run(tmp_path).load() is not None


WITH_WORKERS = """
import sys
import time
from pathlib import Path

import torch

from training import batches
from training.config import Recipe
from training.engine import train


class Slow(batches._AugmentedSamples):
    def __getitem__(self, key):
        time.sleep(0.2)
        return super().__getitem__(key)


batches.SHARE_OF_MEMORY = 0.0
batches._AugmentedSamples = Slow
train(Recipe.model_validate_json(sys.argv[1]), run_dir=Path(sys.argv[2]), device=torch.device("cpu"))
"""


def test_a_stop_while_the_last_epoch_is_scored_leaves_it_in_the_log(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_to_stop(*_: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"accuracy": 0.5}

    recipe = _recipe(data, "classification", epochs=2)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(engine, "_val_scores", asked_to_stop)
        train(recipe, run_dir=tmp_path, device=CPU)
    train(recipe, run_dir=tmp_path, device=CPU)
    assert Run(tmp_path).is_finished
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def _assert_best_is_kept(run: Run, artifact_dir: Path) -> None:
    checkpoint, scores = run.load(), json.loads((run.path / "scores.json").read_text())
    assert checkpoint is not None and checkpoint.best is not None
    best = max(entry.scores["accuracy"] for entry in checkpoint.history)
    assert (scores["scores"]["accuracy"], scores["selected_on"]) == (best, "val")
    artifact = export_run(run.path, artifact_dir, calibrate=False)
    assert artifact.spec.provenance.selected_on == "val"
    _assert_equal(artifact.network.state_dict(), dict(checkpoint.best))


def _assert_same_bits(found: Run, expected: Run) -> None:
    one, other = found.load(), expected.load()
    assert one is not None and other is not None and other.best is not None and one.best is not None
    for name in ("network", "averaged", "best"):
        _assert_equal(getattr(one, name), getattr(other, name))
    assert one.num_averaged == other.num_averaged
    for index, state in other.optimizer["state"].items():
        _assert_equal(one.optimizer["state"][index], state)
    logs = [(run.path / "log.jsonl").read_text().splitlines() for run in (found, expected)]
    entries = [[json.loads(line) | {"seconds": 0} for line in log] for log in logs]
    assert entries[0] == entries[1]
    assert (found.path / "scores.json").read_bytes() == (expected.path / "scores.json").read_bytes()


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def test_checkpoints_take_a_twentieth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)

    class SlowRun:
        def save(self, checkpoint: object) -> None:
            nonlocal now
            now += 3.0

    saver: Any = engine._Saver(Any, Any)  # type: ignore[arg-type]
    saver.learner, saver.run = SimpleNamespace(ranks=Ranks(), checkpoint=lambda: None), SlowRun()
    for first_due, begin in [(20.0, 0.0), (60.0, 23.0)]:
        now = begin + first_due - 0.1
        assert not saver.is_due
        now = begin + first_due
        assert saver.is_due
        saver.save()


def test_a_finished_run_is_left_as_it_is(data: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_run.iterdir()}
    assert train(_recipe(data), run_dir=whole_run) == whole_run
    assert "finished before, nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole_run.iterdir()} == before


def test_another_recipe_or_other_data_is_refused(
    data: Path, tmp_path: Path, call_at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    write_segmentation_set(tmp_path / "segmentation", seed=1, num_train=4, num_val=1, side=32)
    recipe = _recipe(tmp_path)
    call_at_step(STEPS_PER_EPOCH, _dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run_dir=tmp_path / "run", device=CPU)
    with pytest.raises(ValueError, match=r"but now optim.epochs = 4 \(was 3\): give the run another name"):
        train(_recipe(tmp_path, epochs=4), run_dir=tmp_path / "run")
    mask = tmp_path / "segmentation/masks/train/0000.png"
    mask.write_bytes((tmp_path / "segmentation/masks/train/0001.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"expected the training images that small began with, but those of .* have changed"
    ):
        train(recipe, run_dir=tmp_path / "run")


# --- parts of a batch ---


def _gradients(data: Path, monkeypatch: pytest.MonkeyPatch, **optim: Any) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the first batch, by a network without batch norm in float32."""
    monkeypatch.setattr(learner, "build_network", network_without_batch_norm)
    recipe = _recipe(data, batch_size=5, precision="float32", **optim)
    terms = LossSettings.model_validate({"class_weights": "median-frequency"})
    recipe = recipe.model_copy(
        update={"loss": terms, "augment": AugmentSettings(crop=(32, 32), scale=(0.3, 1.0), hflip=True)}
    )
    one = build_learner(recipe, open_dataset(data / "segmentation", "segmentation"), checkpoint=None, device=CPU)
    (batch,) = one.batches.batches(0)
    loss = engine._backward(one, *batch).item()
    return loss, [weight.grad.clone() for weight in one.network.parameters() if weight.grad is not None]


def test_parts_of_a_batch_add_up_to_its_gradient(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts have 3 and 2 images, and different shares of pixels that count, of classes with different weights."""
    whole_loss, whole = _gradients(data, monkeypatch)
    loss, parts = _gradients(data, monkeypatch, accumulate=2)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    scale = max(gradient.abs().max().item() for gradient in whole)
    assert len(whole) > 100 and scale > 1e-3
    for found, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


def test_averages_of_weights_without_a_gradient_do_not_stay_denormal(data: Path) -> None:
    """A head of zeros gives the layers before it no gradient; Intel's CPUs are slow with what AdamW then averages."""
    one = build_learner(_recipe(data), open_dataset(data / "segmentation", "segmentation"), checkpoint=None, device=CPU)
    batch, *_ = one.batches.batches(0)
    first = next(one.network.parameters())

    def step_behind_a_head_of_zeros() -> list[Tensor]:
        with torch.no_grad():
            for weight in one.network.get_submodule("head").parameters():
                weight.zero_()
        engine._step(one, *batch)
        return [one.optimizer.state[first][name] for name in ("exp_avg", "exp_avg_sq")]

    for average in step_behind_a_head_of_zeros():
        average.fill_(1e-39)
    assert not any(average.any() for average in step_behind_a_head_of_zeros())
    assert (torch.full((9,), 1e-39) * 1.0).all(), "the optimiser's step alone is computed so"


# --- what is refused ---


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_anything_is_written(
    data: Path, tmp_path: Path, call_at_step: Callable[..., None], value: float
) -> None:
    call_at_step(1, lambda loss: loss * value)
    with pytest.raises(NonFiniteLoss, match=r"at epoch 1, step 2 it is (nan|inf) .*: lower optim.learning_rate"):
        train(_recipe(data), run_dir=tmp_path / "run", device=CPU)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


def test_faulty_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "segmentation", seed=0, num_train=2, num_val=1, side=32)
    (tmp_path / "segmentation/masks/val/0000.png").unlink()
    with pytest.raises(ValueError, match=r"images/val/0000.png: expected a mask masks/val/0000.png, but there is none"):
        train(_recipe(tmp_path), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- the learning rate ---


def _rates(**settings: Any) -> list[float]:
    chosen = OptimSettings(batch_size=2, learning_rate=0.5, **settings)
    return [learning_rate(step, settings=chosen, steps_per_epoch=10) for step in range(10 * chosen.epochs)]


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    rates = _rates(epochs=5, warmup_epochs=1)
    assert rates[:10] == pytest.approx([0.5 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == max(rates) == 0.5
    assert rates[30] == pytest.approx(0.25)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.002


def test_without_warm_up_the_first_rate_is_the_highest() -> None:
    assert _rates(epochs=1)[0] == 0.5
