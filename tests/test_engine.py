import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.predictor import build_predictor
from training import engine, learner
from training.config import AugmentSettings, EvalSettings, OptimSettings, Recipe
from training.engine import NonFiniteLoss, learning_rate, train
from training.evaluate import outcomes, summarise
from training.layouts import open_dataset
from training.losses.objective import Objective
from training.run import Run
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
            "network": {"encoder": "resnet18"},
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
    assert {path.name for path in whole_run.iterdir()} == {
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
    assert stored["scores"] == pytest.approx(again.scores)
    assert checkpoint.history[-1].scores == pytest.approx(again.scores)


def test_classification_trains_too(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(_recipe(data, "classification", epochs=1, warmup_epochs=0), run_dir=tmp_path / "run", device=CPU)
    assert sorted(json.loads((tmp_path / "run/scores.json").read_text())["scores"]) == ["accuracy", "mean_recall"]
    told = capsys.readouterr()
    assert "epoch 1/1: loss" in told.err
    assert "val, 8 images, tta none: accuracy" in told.out


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


@pytest.mark.parametrize("step", [1, 2 * STEPS_PER_EPOCH + 1], ids=["in the first epoch", "in the third epoch"])
def test_an_interrupted_run_ends_with_the_same_bits(
    data: Path,
    tmp_path: Path,
    whole_run: Path,
    step: int,
    call_at_step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process dies between a step's forward and backward pass; all that survives is what is on the disk."""
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    call_at_step(step, _dies)
    with pytest.raises(KeyboardInterrupt):
        train(_recipe(data), run_dir=tmp_path, device=CPU)
    assert not Run(tmp_path).is_finished
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever the new process drew before
    train(_recipe(data), run_dir=tmp_path, device=CPU)
    resumed, whole = Run(tmp_path).load(), Run(whole_run).load()
    assert resumed is not None and whole is not None
    for name in ("network", "averaged"):
        _assert_same_bits(getattr(resumed, name), getattr(whole, name))
    assert resumed.num_averaged == whole.num_averaged == EPOCHS * STEPS_PER_EPOCH
    for index, state in whole.optimizer["state"].items():
        _assert_same_bits(resumed.optimizer["state"][index], state)
    assert [entry.model_dump(exclude={"seconds"}) for entry in resumed.history] == [
        entry.model_dump(exclude={"seconds"}) for entry in whole.history
    ]


def _assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


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
