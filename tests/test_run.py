import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from segserve.spec import ModelSpec
from training.config import Recipe
from training.run import THIRDS, Checkpoint, EpochLog, Run


def _checkpoint(spec: ModelSpec, *, epochs: int) -> Checkpoint:
    weights = {"weight": torch.arange(4.0), "num_batches_tracked": torch.tensor(epochs)}
    return Checkpoint(
        spec=spec,
        history=tuple(
            EpochLog(epoch=i + 1, loss=0.1 * i, learning_rate=1e-3, seconds=1.5, scores={"miou": 0.3})
            for i in range(epochs)
        ),
        losses=(0.25, 0.5),
        seconds=0.75,
        network=weights,
        averaged=weights,
        num_averaged=17,
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        best=None,
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, spec: ModelSpec) -> None:
    run, saved = Run(tmp_path), _checkpoint(spec, epochs=2)
    assert run.load() is None
    run.save(saved)
    loaded = run.load()
    assert loaded is not None
    assert (loaded.spec, loaded.history, loaded.num_averaged) == (saved.spec, saved.history, 17)
    assert (loaded.losses, loaded.seconds, loaded.best) == ((0.25, 0.5), 0.75, None)
    assert torch.equal(loaded.network["weight"], saved.network["weight"])
    assert loaded.optimizer["state"][0]["step"].item() == 3


@contextmanager
def small_disk(*, size: int) -> Iterator[None]:
    """No file can become larger: the system says so where a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_without_room_is_said_in_a_sentence_and_the_last_one_stays(
    tmp_path: Path, spec: ModelSpec
) -> None:
    run = Run(tmp_path)
    run.save(_checkpoint(spec, epochs=1))
    large = replace(_checkpoint(spec, epochs=2), network={"weight": torch.zeros(100_000)})
    with small_disk(size=50_000), pytest.raises(RuntimeError, match=r"expected room for .*checkpoint\.pt, but .*there"):
        run.save(large)
    found = run.load()
    assert found is not None and len(found.history) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_third_without_room_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with small_disk(size=50_000), pytest.raises(OSError, match="File too large"):
        Run(tmp_path).save_third(THIRDS[0], {"weight": torch.zeros(100_000)})
    assert list(tmp_path.iterdir()) == []


def test_the_result_is_the_last_average_or_the_best_where_there_is_one(spec: ModelSpec) -> None:
    saved, best = _checkpoint(spec, epochs=1), {"weight": torch.ones(4)}
    assert saved.result is saved.averaged
    assert replace(saved, best=best).result is best


def test_the_content_is_on_the_disk_before_the_name(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    replace_file, flush = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("flushed", os.fstat(file).st_ino)), flush(file)))
    monkeypatch.setattr(
        os, "replace", lambda old, new: (done.append(("named", old.stat().st_ino)), replace_file(old, new))
    )
    Run(tmp_path).save(_checkpoint(spec, epochs=1))
    content, folder = (tmp_path / "checkpoint.pt").stat().st_ino, tmp_path.stat().st_ino
    assert done == [("flushed", content), ("named", content), ("flushed", folder)]


def test_a_save_that_dies_leaves_the_last_checkpoint(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.save(_checkpoint(spec, epochs=1))

    def dies(table: object, file: IO[bytes]) -> None:
        file.write(b"half a check")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", dies)
        run.save(_checkpoint(spec, epochs=2))
    loaded = run.load()
    assert loaded is not None and len(loaded.history) == 1


def test_the_recipe_comes_back_and_itself_is_accepted(tmp_path: Path, recipe: Recipe) -> None:
    run = Run(tmp_path / "runs" / "small")
    run.check_recipe(recipe)
    run.begin(recipe)
    run.check_recipe(recipe)
    assert run.recipe() == recipe


def test_another_recipe_is_refused_by_its_keys(tmp_path: Path, recipe: Recipe) -> None:
    run = Run(tmp_path)
    run.begin(recipe)
    optim = recipe.optim.model_copy(update={"epochs": 5})
    other = recipe.model_copy(update={"optim": optim, "seed": 4})
    with pytest.raises(
        ValueError, match=r"but now optim.epochs = 5 \(was 3\), seed = 4 \(was 0\): give the run another"
    ):
        run.check_recipe(other)


def test_a_run_is_finished_when_it_has_scores(tmp_path: Path) -> None:
    assert not Run(tmp_path).is_finished
    Run(tmp_path).write("scores.json", "{}")
    assert Run(tmp_path).is_finished
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run, but .* has no recipe.json: make one with `segserve train`"):
        Run(tmp_path).recipe()


def test_the_log_is_a_line_an_epoch(tmp_path: Path, spec: ModelSpec) -> None:
    history = _checkpoint(spec, epochs=3).history
    Run(tmp_path).write_log(history)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert tuple(EpochLog.model_validate_json(line) for line in lines) == history


def test_a_recipe_from_before_a_key_came_is_the_same(tmp_path: Path, recipe: Recipe) -> None:
    table = recipe.model_dump(mode="json")
    del table["eval"]["keep_thirds"], table["pseudo"]
    Run(tmp_path).write("recipe.json", json.dumps(table))
    Run(tmp_path).check_recipe(recipe)


def test_thirds_come_back(tmp_path: Path) -> None:
    run, weights = Run(tmp_path), {"a": torch.rand(2, 3), "b": torch.tensor(7)}
    assert run.thirds() == []
    run.save_third(THIRDS[0], weights)
    (again,) = run.thirds()
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("keep", [0, 3000])
def test_a_checkpoint_that_was_cut_off_is_named(keep: int, tmp_path: Path, spec: ModelSpec) -> None:
    run = Run(tmp_path)
    run.save(_checkpoint(spec, epochs=2))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"expected .*checkpoint.pt to be a whole checkpoint, but it cannot be read"):
        run.load()


@pytest.mark.parametrize("content", [{"spec": "{}"}, {"history": []}, [1]])
def test_a_checkpoint_of_something_else_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"expected .*checkpoint.pt to be a whole checkpoint, but it cannot be read"):
        Run(tmp_path).load()


def test_a_recipe_that_was_emptied_is_named(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "recipe.json").touch()
    with pytest.raises(ValueError, match=r"recipe.json: expected JSON, but it cannot be read"):
        Run(tmp_path).check_recipe(recipe)


def test_a_run_is_one_trainings_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.held(), pytest.raises(ValueError, match="to be free, but another training is at work in it"), run.held():
        pass
    with run.held():
        pass


def test_what_fails_inside_is_not_taken_for_another_training(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), Run(tmp_path).held():
        raise BlockingIOError
