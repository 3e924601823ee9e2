"""A run is the folder a training writes: its recipe, its log, its last checkpoint and, at the end, what it reached.

`scores.json` is written last, so that a run which has it is finished.
"""

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from segserve.settings import Settings, explain
from segserve.spec import ModelSpec
from segserve.whole import replacing
from training.alone import alone
from training.config import Recipe

RECIPE, LOG, CHECKPOINT, SCORES = "recipe.json", "log.jsonl", "checkpoint.pt", "scores.json"
THIRDS = ("third-1.safetensors", "third-2.safetensors")
CLASSES, CURVES, SAMPLES, EXAMPLE = "classes.csv", "curves.png", "samples.png", "example.png"


class EpochLog(Settings):
    """One line of the log."""

    epoch: int
    """Counts from 1."""
    loss: float
    """Mean over the epoch's steps."""
    learning_rate: float
    """Of the epoch's last step."""
    seconds: float
    """Of the training alone."""
    scores: dict[str, float] = Field(default_factory=dict)
    """On the val split, in the epochs that were scored."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped."""

    spec: ModelSpec
    history: tuple[EpochLog, ...]
    """One entry for each epoch done."""
    losses: tuple[float, ...]
    """Those of the steps done of the epoch after them."""
    seconds: float
    """What these steps took."""
    network: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    """The moving average of the weights and buffers."""
    num_averaged: int
    optimizer: Mapping[str, Any]
    best: Mapping[str, Tensor] | None
    """The average that scored best on val, where the recipe asks for it."""

    @property
    def result(self) -> Mapping[str, Tensor]:
        """What the run is for: the average after the last step, or the best one where the recipe asks for it."""
        return self.averaged if self.best is None else self.best


@dataclass(frozen=True)
class Run:
    """One run's folder, which need not exist yet."""

    path: Path

    @property
    def is_finished(self) -> bool:
        return (self.path / SCORES).is_file()

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse, by a ValueError that names the keys, to go on with a recipe other than the one the run began with."""
        path = self.path / RECIPE
        if not path.is_file():
            return
        began, given = _flat(_as_known_now(path)), _flat(recipe.model_dump(mode="json"))
        changed = [
            f"{key} = {given.get(key)!r} (was {began.get(key)!r})"
            for key in sorted(began.keys() | given.keys())
            if began.get(key) != given.get(key)
        ]
        if changed:
            raise ValueError(
                f"expected the recipe that {self.path} began with, but now {', '.join(changed)}: "
                "give the run another name, or delete its folder to begin again"
            )

    def begin(self, recipe: Recipe) -> None:
        """Make the folder and write the recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(RECIPE, recipe.model_dump_json(indent=1) + "\n")

    def held(self) -> AbstractContextManager[None]:
        """Inside, the folder, which must exist, is this training's alone; a ValueError where another one holds it."""
        return alone(self.path, work="training", otherwise="stop it, or give this run another name")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        with self._replacing(name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)

    def write_log(self, history: Sequence[EpochLog]) -> None:
        """One JSON line an epoch."""
        self.write(LOG, "".join(entry.model_dump_json() + "\n" for entry in history))

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the last checkpoint; an interruption leaves that one in place."""
        table = {
            **vars(checkpoint),
            "spec": checkpoint.spec.model_dump_json(),
            "history": [entry.model_dump_json() for entry in checkpoint.history],
        }
        with self._replacing(CHECKPOINT) as temporary:
            self._save(table, temporary)

    def _save(self, table: Mapping[str, Any], temporary: Path) -> None:
        """As torch.save, which hides what the system says of a full disk behind words of its own."""
        try:
            with temporary.open("wb") as file:
                torch.save(table, file)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise RuntimeError(
                f"expected room for {self.path / CHECKPOINT}, but got: {cause.strerror}; make room there, and give the "
                "same command again: the last checkpoint is as it was"
            ) from error

    def save_third(self, name: str, averaged: Mapping[str, Tensor]) -> None:
        """Keep the moving average as it is after a third of the epochs, in one of `THIRDS`."""
        self.write(name, save({key: tensor.detach().cpu().contiguous() for key, tensor in averaged.items()}))

    def thirds(self) -> list[dict[str, Tensor]]:
        """The moving averages that were kept after one and two thirds of the epochs, as the recipe asks for."""
        return [load_file(self.path / name) for name in THIRDS if (self.path / name).is_file()]

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Only once the content is on the disk itself, so that a power cut leaves the old file or the new one."""
        with replacing(self.path / name) as temporary:
            yield temporary
            _flush(temporary)
        _flush(self.path)

    def load(self) -> Checkpoint | None:
        """The last checkpoint, on the CPU; None where there is none yet. No pickled code is run."""
        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        try:
            table = torch.load(path, map_location="cpu", weights_only=True)
            table["spec"] = ModelSpec.model_validate_json(table["spec"])
            table["history"] = tuple(EpochLog.model_validate_json(line) for line in table["history"])
            return Checkpoint(**table)
        except (EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValidationError) as error:
            raise ValueError(
                f"expected {path} to be a whole checkpoint, but it cannot be read ({error!r}): bring it back, or "
                "delete it to begin again"
            ) from error

    def recipe(self) -> Recipe:
        """The recipe the run began with."""
        path = self.path / RECIPE
        try:
            return Recipe.model_validate_json(path.read_bytes())
        except OSError:
            raise ValueError(
                f"expected a run, but {self.path} has no {RECIPE}: make one with `segserve train`"
            ) from None
        except ValidationError as error:
            raise ValueError(f"{path}: {explain(error)}") from None


def _as_known_now(path: Path) -> dict[str, Any]:
    """A recipe with the keys that have come since it was written, if it can be read as one still."""
    text = path.read_text()
    try:
        return Recipe.model_validate_json(text).model_dump(mode="json")
    except ValidationError as error:
        if any(detail["type"] == "json_invalid" for detail in error.errors()):
            raise ValueError(f"{path}: {explain(error)}") from None
        table: dict[str, Any] = json.loads(text)
        return table


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves(table, ""))


def _leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
