"""The same recipe with several seeds: what its scores are worth shows in their spread."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from segserve.engines.torch_engine import best_device
from segserve.settings import Settings
from training.config import Recipe
from training.engine import train
from training.evaluation import Evaluation
from training.ranks import device_of_rank, joined_ranks
from training.run import SCORES, Run


class Spread(Settings):
    """One score over the seeds."""

    mean: float
    std: float
    """Standard deviation of a sample (divided by the number of seeds less 1)."""
    min: float
    max: float
    values: tuple[float, ...]
    """In the order of the seeds."""


class SeedsReport(Settings):
    """What the runs of a recipe score on val."""

    name: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    scores: dict[str, Spread]
    """Those that every run has."""

    def table(self) -> str:
        """A line a score."""
        width = max(map(len, self.scores))
        lines = [f"{'val':{width}}  {'mean':>7}  {'std':>7}  {'min':>7}  {'max':>7}"]
        for name, spread in self.scores.items():
            figures = (spread.mean, spread.std, spread.min, spread.max)
            lines.append(f"{name:{width}}  " + "  ".join(f"{figure:7.4f}" for figure in figures))
        return "\n".join([*lines, f"{self.name}, seeds {', '.join(map(str, self.seeds))}"])


def train_seeds(recipe: Recipe, *, seeds: Sequence[int], runs_dir: Path) -> SeedsReport:
    """Train `NAME-s0`, `NAME-s1` and so on, one after another, and write `NAME-seeds.json` beside them.

    Interrupted, it goes on where it was; runs that are finished are only read.

    Args:
        recipe: its own seed plays no part.
        seeds: at least two that differ.
        runs_dir: the folder of the runs.

    Raises:
        ValueError: the seeds are not such, or as of `training.engine.train`.
        NonFiniteLoss, Stopped: as of `training.engine.train`.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        given = ",".join(map(str, seeds))
        raise ValueError(f"expected at least two seeds that differ, 0 or more, but got {given}: give for example 0,1,2")
    names = [f"{recipe.name}-s{seed}" for seed in seeds]
    with joined_ranks(device_of_rank(best_device())) as ranks:
        for seed, name in zip(seeds, names, strict=True):
            train(recipe.model_copy(update={"seed": seed, "name": name}), run_dir=runs_dir / name)
        found = [Evaluation.model_validate_json((runs_dir / name / SCORES).read_bytes()).figures for name in names]
    report = SeedsReport(name=recipe.name, seeds=tuple(seeds), runs=tuple(names), scores=spreads(found))
    if ranks.is_first:
        Run(runs_dir).write(f"{recipe.name}-seeds.json", report.model_dump_json(indent=1) + "\n")
    return report


def spreads(found: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Mean and spread of each score that all of them have; there are at least two."""
    shared = [name for name in found[0] if all(name in scores for scores in found)]
    values = {name: tuple(scores[name] for scores in found) for name in shared}
    return {
        name: Spread(mean=statistics.fmean(of), std=statistics.stdev(of), min=min(of), max=max(of), values=of)
        for name, of in values.items()
    }
