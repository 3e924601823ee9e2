"""How much of the bare training throughput is left with the loader: nothing may wait for data.

    python -m bench.loading RECIPE [--set KEY=VALUE ...] [--steps 3] [--rounds 5] [--out FILE.md]

Bare are forward pass, loss, backward pass and step of the optimiser on one batch that stays on the device. With the
loader each step has its own batch, as in training. Both go in turns, in one process; the ratio is that of the medians.
Costs on the CPU are processor time, which neighbours on the machine disturb least; on a GPU, and where worker processes
load, whose work is not this process's, time.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, repeat
from pathlib import Path

import torch
from torch import Tensor

from bench.machine import processor
from segserve.engines.torch_engine import best_device
from training.config import Recipe, load_recipe
from training.engine import _step as train_step
from training.layouts import open_dataset
from training.learner import Learner, build_learner

COLUMNS = "| recipe | batch | crop | bare, ms a step | with the loader | throughput left | loader alone, ms a sample |"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds a step."""

    bare: float
    loaded: float
    alone: float
    """Of the loader's batches, with no step between them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="a line is added to its table")
    given = parser.parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe, given.overrides)
        dataset = open_dataset(recipe.data.root, recipe.task, layout=recipe.data.layout)
        learner = build_learner(recipe, dataset, checkpoint=None, device=best_device())
    except ValueError as error:
        print(f"bench.loading: {error}", file=sys.stderr)
        return 2
    print(f"{learner.batches.place}; {machine(learner.device)}")
    line = row(recipe, learner, measured(learner, steps=given.steps, rounds=given.rounds))
    print(f"{COLUMNS}\n{line}")
    if given.out is not None:
        header = (
            ""
            if given.out.exists()
            else f"{machine(learner.device)}.\n\n{COLUMNS}\n|---|---:|---|---:|---:|---:|---:|\n"
        )
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a") as file:
            file.write(f"{header}{line}\n")
    return 0


def measured(learner: Learner, *, steps: int, rounds: int) -> Costs:
    """Medians over the turns, after one of each that does not count."""
    stream = chain.from_iterable(learner.batches.batches(epoch) for epoch in count())
    sources = {"bare": repeat(next(stream)), "loaded": stream}
    turns: dict[str, list[float]] = {"bare": [], "loaded": [], "alone": []}
    took = partial(_seconds, learner.device, clock_of(learner))
    for _ in range(rounds + 1):
        for kind, source in sources.items():
            turns[kind].append(took(partial(_train, learner, source, steps)) / steps)
        turns["alone"].append(took(partial(list, islice(stream, steps))) / steps)
    return Costs(**{kind: statistics.median(seconds[1:]) for kind, seconds in turns.items()})


def _train(learner: Learner, source: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for _ in range(steps):
        train_step(learner, *next(source))


def clock_of(learner: Learner) -> Callable[[], float]:
    """Of this process where it does everything itself."""
    is_alone = learner.device.type == "cpu" and learner.batches.num_workers == 0
    return time.process_time if is_alone else time.perf_counter


def _seconds(device: torch.device, clock: Callable[[], float], work: Callable[[], object]) -> float:
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def row(recipe: Recipe, learner: Learner, costs: Costs) -> str:
    """The table's line."""
    size, (height, width) = learner.batches.batch_size, recipe.augment.crop
    return (
        f"| {recipe.name} | {size} | {height} x {width} | {1000 * costs.bare:,.1f} | {1000 * costs.loaded:,.1f} "
        f"| {costs.bare / costs.loaded:.3f} | {1000 * costs.alone / size:.2f} |"
    )


def machine(device: torch.device) -> str:
    """Date, hardware, versions."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()}, {os.cpu_count()} cores, no GPU"
    )
    return f"{time.strftime('%Y-%m-%d')}, {name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
