"""What pseudo-labels are worth: hide most labels of a set, let the loop make them up, and compare with the truth.

    python -m bench.flywheel RECIPE --budget 1/8 --draws 3 --out FILE.md [--rounds 2] [--clips 8] [--set KEY=VALUE ...]

Of the training images each draw takes a few to fit the thresholds on (`--held-out`; no arm is trained on them) and the
budget as labelled ones; the truth of the others is hidden. Arms, each with the same number of optimiser steps:
supervised (the labelled ones alone), self-training (every mask is taken as it is), the loop, the loop with a simulated
reviewer (who looks at what round 1 does not accept, lets good masks pass and buys the truth of the others), and all
labels. Scores are those on val after the last step, by which nothing is chosen. Everything lies in runs/flywheel and is
taken up again where it was. A section is added to the file, and a plot beside it.
"""

import argparse
import math
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from bench.hidden import Draw, Judged, draw_labels, judged, seen_by_reviewer
from bench.machine import conditions
from bench.section import add_section
from segserve.spec import Plan
from training.config import Recipe, load_recipe
from training.engine import NonFiniteLoss, train
from training.evaluation import Evaluation
from training.flywheel.loop import SELECTION, Loop, pseudo_of, run_loop, without_selection
from training.flywheel.progress import Step, result_of
from training.flywheel.round import Round
from training.flywheel.scores import ScoreName
from training.flywheel.triage import PixelRule, Selection
from training.flywheel.views import trained_plan
from training.layouts import Dataset, open_dataset
from training.metrics import mean_of_known
from training.run import SCORES
from training.stop import Stopped

RUNS = Path("runs/flywheel")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one draw came to."""

    supervised: float
    plain: list[float]
    """Of self-training, by round."""
    loop: list[float]
    """By round; fewer where it stopped."""
    chosen: float
    """Of the loop's result."""
    reviewed: float | None
    everything: float
    rounds: list[Judged]
    looked_at: int
    bought: int
    num_labelled: int


def closure(results: Sequence[Result], scores: Sequence[float]) -> float:
    """Share of the gap between supervised and all labels that scores close; NaN where there is none.

    Of the sums over the draws: one draw with a small gap would rule the mean of the draws' shares.
    """
    supervised = sum(result.supervised for result in results)
    gap = sum(result.everything for result in results) - supervised
    return (sum(scores) - supervised) / gap if gap > 0 else math.nan


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, print, write; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe, overrides=given.overrides)
        if given.draws < 1:
            raise ValueError(f"expected at least one draw, but got {given.draws}: give --draws 1 or more")
        results = [_run(given, recipe, number) for number in range(given.draws)]
    except ValueError as error:
        print(f"bench.flywheel: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, Stopped) as error:
        print(f"bench.flywheel: {error}", file=sys.stderr)
        return 1
    section = (
        "\n\n".join([_heading(given, recipe, results), scores_table(results), rounds_table(results), _targets(results)])
        + "\n"
    )
    plot = given.out.with_suffix(f".{recipe.name}-{_name(given.budget)}.png")
    add_section(given.out, f"{section}\n![mean IoU on val by round]({plot.name})\n", title="The flywheel")
    _plot(plot, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.flywheel", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--budget", type=Fraction, default=Fraction(1, 8), help="labelled share of the training images")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="0 to N - 1")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=20, metavar="N", help="images the thresholds are fitted on")
    parser.add_argument(
        "--clips", type=int, default=1, metavar="N", help="draw runs of N images that follow one another"
    )
    parser.add_argument("--tta", choices=get_args(Plan), help="default: the recipe's own views")
    parser.add_argument("--score", choices=get_args(ScoreName), default=SELECTION.score)
    parser.add_argument("--precision", type=float, default=Selection().precision)
    parser.add_argument("--good-iou", type=float, metavar="IOU")
    parser.add_argument(
        "--border", type=float, default=PixelRule().border, metavar="PIXELS", help="beside borders that are left out"
    )
    parser.add_argument("--skip", nargs="+", choices=("plain", "reviewer"), default=[], help="arms, to save time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    return parser


def _name(budget: Fraction) -> str:
    return f"{budget.numerator}of{budget.denominator}"


# --- one draw ---


def _run(given: argparse.Namespace, recipe: Recipe, number: int) -> Result:
    kind = _name(given.budget) + (f"-clips{given.clips}" if given.clips > 1 else "")
    folder = given.runs / f"{recipe.name}-{kind}" / f"draw-{number}"
    source = open_dataset(recipe.data.root, recipe.task, layout=recipe.data.layout)
    draw = draw_labels(source, folder, budget=given.budget, num_held_out=given.held_out, clip=given.clips, seed=number)
    steps = max(1, len(draw.everything.split("train")) // recipe.optim.batch_size)
    optim = recipe.optim.model_copy(update={"steps_per_epoch": steps})
    recipe = recipe.model_copy(update={"optim": optim, "seed": number})
    loop = Loop(
        recipe=_on(recipe, draw.labelled),
        images=draw.hidden,
        held_out=draw.held_out,
        selection=Selection(score=given.score, precision=given.precision, good_iou=given.good_iou),
        pixels=PixelRule(border=given.border),
        plan=_plan(given, recipe),
    )
    found = run_loop(loop, folder / "loop", rounds=given.rounds)
    plain: list[Step] = []
    if "plain" not in given.skip:
        _share(folder / "loop/model-0", folder / "plain/model-0")
        plain = run_loop(without_selection(loop), folder / "plain", rounds=given.rounds)
    train(_on(recipe, draw.everything).model_copy(update={"pseudo": None}), run_dir=folder / "all")
    reviewed, looked_at, bought = (None, 0, 0) if "reviewer" in given.skip else _reviewed(folder, draw, recipe)
    return Result(
        supervised=_val(folder / "loop/model-0/run"),
        plain=[step.scores["miou"] for step in plain[1:]],
        loop=[step.scores["miou"] for step in found[1:]],
        chosen=result_of(found).scores["miou"],
        reviewed=reviewed,
        everything=_val(folder / "all"),
        rounds=[judged(step, draw.truths) for step in found],
        looked_at=looked_at,
        bought=bought,
        num_labelled=len(draw.labelled.split("train")),
    )


def _plan(given: argparse.Namespace, recipe: Recipe) -> Plan:
    return given.tta or trained_plan(recipe.augment)


def _on(recipe: Recipe, dataset: Dataset) -> Recipe:
    data = recipe.data.model_copy(update={"root": dataset.root, "layout": "folder"})
    return recipe.model_copy(update={"data": data})


def _share(there: Path, here: Path) -> None:
    """The same model under another name: both loops begin with it."""
    here.parent.mkdir(parents=True, exist_ok=True)
    if not here.is_symlink():
        here.symlink_to(there.resolve())


def _val(run: Path) -> float:
    return Evaluation.model_validate_json((run / SCORES).read_bytes()).scores["miou"]


def _reviewed(folder: Path, draw: Draw, recipe: Recipe) -> tuple[float, int, int]:
    """Val score after a person saw what round 1 did not accept; how many images that were, and how many were bought."""
    target = folder / "reviewed/round-1"
    if not target.is_dir():
        temporary = target.with_name(".round-1")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder / "loop/round-1", temporary)
        seen = Round(temporary)
        seen.rewrite([seen_by_reviewer(seen, entry, draw.truths) for entry in seen.entries().values()])
        temporary.rename(target)
    entries = Round(target).entries().values()
    changes = {"pseudo": pseudo_of(recipe, target), "name": f"{recipe.name}-reviewed"}
    recipe = _on(recipe, draw.labelled).model_copy(update=changes)
    train(recipe, run_dir=folder / "reviewed/run")
    looked_at = [entry for entry in entries if entry.decided_by == "simulated"]
    return _val(folder / "reviewed/run"), len(looked_at), sum(entry.source == "person" for entry in looked_at)


# --- the section ---


def _heading(given: argparse.Namespace, recipe: Recipe, results: Sequence[Result]) -> str:
    first = results[0]
    changes = f" with {' '.join(given.overrides)}" if given.overrides else ""
    clips = f" in clips of {given.clips}" if given.clips > 1 else ""
    return (
        f"## {recipe.name}, {given.budget} of the labels\n\n{conditions()}; recipe {given.recipe.name}{changes}. "
        f"Of each of {given.draws} draws{clips}: {first.num_labelled} labelled, {first.rounds[0].num_images} hidden, "
        f"{given.held_out} held-out images for the thresholds, that no arm is trained on. Views: "
        f"{_plan(given, recipe)}; selected by {given.score}, for a precision of {given.precision:g}; "
        f"{given.border:g} pixels beside borders are left out. All arms have the same number of steps. "
        "Mean IoU on val after the last step."
    )


def scores_table(results: Sequence[Result]) -> str:
    """A line an arm: its val score in every draw, and how much of the gap it closes."""
    arms: dict[str, list[float | None]] = {"supervised": [result.supervised for result in results]}
    for index in range(max(len(result.plain) for result in results)):
        arms[f"self-training without selection, round {index + 1}"] = [_at(result.plain, index) for result in results]
    for index in range(max(len(result.loop) for result in results)):
        arms[f"the loop, round {index + 1}"] = [_at(result.loop, index) for result in results]
    arms["the loop, its result"] = [result.chosen for result in results]
    if all(result.reviewed is not None for result in results):
        arms["the loop, round 1 with a reviewer"] = [result.reviewed for result in results]
    arms["all labels"] = [result.everything for result in results]
    head = ["arm", *(f"draw {number}" for number in range(len(results))), "mean", "gap closed"]
    lines = [_row(head), "|---" * len(head) + "|"]
    for name, scores in arms.items():
        known = [score for score in scores if score is not None]
        mean = statistics.fmean(known) if known else math.nan
        closed = closure([result for result, score in zip(results, scores, strict=True) if score is not None], known)
        cells = ["stopped" if score is None else f"{score:.4f}" for score in scores]
        lines.append(_row([name, *cells, f"{mean:.4f}", f"{closed:+.0%}"]))
    return "\n".join(lines)


def _at(scores: Sequence[float], index: int) -> float | None:
    return scores[index] if index < len(scores) else None


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rounds_table(results: Sequence[Result]) -> str:
    """Means over the draws: what was accepted and how good it is, then the area of every score."""
    head = (
        "round",
        "accepted",
        "precision",
        "all masks that are good",
        "mIoU of the accepted",
        "mIoU of all",
        "right of the pixels trained on",
    )
    lines = [_row(head), "|---" * len(head) + "|"]
    areas = []
    for index in range(max(len(result.rounds) for result in results)):
        judged = [result.rounds[index] for result in results if index < len(result.rounds)]
        figures = [
            _mean([getattr(each, name) for each in judged])
            for name in ("precision", "base_rate", "accepted_miou", "miou", "trained_accuracy")
        ]
        share = _mean([each.num_accepted / each.num_images for each in judged])
        lines.append(_row([str(index + 1), f"{share:.0%}", *(f"{figure:.4f}" for figure in figures)]))
        areas.append({name: _mean([each.auroc[name] for each in judged]) for name in judged[0].auroc})
    names = list(areas[0])
    table = [_row(["AUROC of", *names]), "|---" * (1 + len(names)) + "|"]
    table += [
        _row([f"round {index + 1}", *(f"{each[name]:.3f}" for name in names)]) for index, each in enumerate(areas)
    ]
    return "\n".join([*lines, "", *table])


def _mean(values: Sequence[float]) -> float:
    return mean_of_known(np.array(values, dtype=np.float64))


def _targets(results: Sequence[Result]) -> str:
    closed = closure(results, [result.chosen for result in results])
    below = sum(result.chosen < result.supervised for result in results)
    bought = statistics.fmean(result.bought for result in results)
    looked_at = statistics.fmean(result.looked_at for result in results)
    labelled = statistics.fmean(result.num_labelled for result in results)
    reviewer = (
        f" The reviewer looks at {looked_at:.1f} images and buys the labels of {bought:.1f}, after {labelled:.0f} that "
        "were there."
    )
    return (
        f"The loop's result closes {closed:.0%} of the gap (target 50 %), and is below supervised in {below} of "
        f"{len(results)} draws (target 0).{reviewer if all(each.reviewed is not None for each in results) else ''}"
    )


def _plot(path: Path, results: Sequence[Result]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    arms = [("the loop", "#1f5f9e", [result.loop for result in results])]
    if any(result.plain for result in results):
        arms.append(("self-training without selection", "#b4530a", [result.plain for result in results]))
    for name, color, curves in arms:
        for number, (result, curve) in enumerate(zip(results, curves, strict=True)):
            points = [result.supervised, *curve]
            axes.plot(range(len(points)), points, "o-", color=color, alpha=0.75, label=name if number == 0 else None)
    mean = statistics.fmean(result.everything for result in results)
    axes.axhline(mean, color="#4d5563", linestyle="--", label="all labels, mean")
    most = max(len(curve) for each in results for curve in (each.plain, each.loop))
    axes.set(xlabel="round", ylabel="mean IoU on val", xticks=range(1 + most))
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
