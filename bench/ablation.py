"""What each loss, group of augmentations or the moving average is worth: one recipe, one change an arm, some seeds.

    python -m bench.ablation RECIPE --arms losses [--seeds 3] [--only ARM ...] [--set KEY=VALUE ...] --out FILE.md

Every arm has the recipe's number of steps. Runs go to runs/ablation (`--runs`) and are taken up again where they were.
Scores are those on val after the last step. A section is added to the file.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import conditions
from bench.results import figure
from bench.section import add_section
from segserve.spec import Task
from training.config import Recipe, load_recipe
from training.engine import NonFiniteLoss
from training.metrics import HEADLINE
from training.run import LOG
from training.seeds import SeedsReport, Spread, train_seeds
from training.stop import Stopped

RUNS = Path("runs/ablation")

Arms = Mapping[str, tuple[str, ...]]
"""What each arm changes in the recipe, as for `segserve train --set`; the others are compared with the first."""


def _terms(*terms: str) -> str:
    return f"loss.terms=[{', '.join(f'{{ {term} }}' for term in terms)}]"


CE, DICE = 'kind = "cross-entropy"', 'kind = "dice"'
PLAIN = "loss.class_weights=none"

LOSSES: Mapping[Task, Arms] = {
    "segmentation": {
        "ce": (_terms(CE), PLAIN),
        "ce-dice": (_terms(CE, DICE), PLAIN),
        "ce-dice-image": (_terms(CE, 'kind = "dice", per = "image"'), PLAIN),
        "ce-jaccard": (_terms(CE, 'kind = "jaccard"'), PLAIN),
        "ce-tversky": (_terms(CE, 'kind = "tversky"'), PLAIN),
        "ce-focal-tversky": (_terms(CE, 'kind = "tversky", gamma = 0.75'), PLAIN),
        "ce-lovasz": (_terms(CE, 'kind = "lovasz"'), PLAIN),
        "ce-dice-lovasz-late": (_terms(CE, DICE, 'kind = "lovasz", begin = 0.75'), PLAIN),
        "focal-dice": (_terms('kind = "focal"', DICE), PLAIN, "loss.label_smoothing=0"),
        "border-dice": (_terms('kind = "border"', DICE), PLAIN),
        "relaxation-dice": (_terms('kind = "relaxation"', DICE), PLAIN, "loss.label_smoothing=0"),
        "ce-dice-boundary": (_terms(CE, DICE, 'kind = "boundary", weight = 0.1, ramp = true'), PLAIN),
        "median-ce-dice": (_terms(CE, DICE), "loss.class_weights=median-frequency"),
        "sqrt-ce-dice": (_terms(CE, DICE), "loss.class_weights=inverse-sqrt"),
        "smooth-ce-dice": (_terms(CE, DICE), PLAIN, "loss.label_smoothing=0.1"),
    },
    "classification": {
        "ce": (_terms(CE), PLAIN, "loss.label_smoothing=0"),
        "smooth-ce": (_terms(CE), PLAIN, "loss.label_smoothing=0.1"),
        "focal": (_terms('kind = "focal"'), PLAIN, "loss.label_smoothing=0"),
        "median-ce": (_terms(CE), "loss.class_weights=median-frequency", "loss.label_smoothing=0"),
        "sqrt-ce": (_terms(CE), "loss.class_weights=inverse-sqrt", "loss.label_smoothing=0"),
    },
}

NO_TURNS = tuple(f"augment.{key}=false" for key in ("hflip", "vflip", "quarter_turns"))
NO_COLORS = tuple(f"augment.{key}=0" for key in ("brightness", "contrast", "saturation", "hue"))
NO_SCALE, NO_ROTATION, NO_BLUR = ("augment.scale=[1.0, 1.0]",), ("augment.rotation=0",), ("augment.blur=0",)

AUGMENT: Arms = {
    "all": (),
    "no-flips": NO_TURNS,
    "no-scale": NO_SCALE,
    "no-rotation": NO_ROTATION,
    "no-colors": NO_COLORS,
    "no-blur": NO_BLUR,
    "crop-only": (*NO_TURNS, *NO_SCALE, *NO_ROTATION, *NO_COLORS, *NO_BLUR),
}

EMA: Arms = {"ema": (), "no-ema": ("optim.ema_decay=0",)}

SHOWN = ("miou", "accuracy", "mean_recall", "boundary_iou_1px", "boundary_iou_3px", "boundary_f1", "ece")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the table."""

    name: str
    report: SeedsReport
    minutes: float
    """Of training, mean of the runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--arms", choices=("losses", "augment", "ema"), required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms, the first of all included")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N - 1; at least 2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    given = parser.parse_args(arguments)
    try:
        recipes = arms(given.recipe, given.overrides, group=given.arms, only=given.only)
        found = [trained(name, recipe, seeds=given.seeds, runs=given.runs) for name, recipe in recipes.items()]
    except ValueError as error:
        print(f"bench.ablation: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, Stopped) as error:
        print(f"bench.ablation: {error}", file=sys.stderr)
        return 1
    section = "\n\n".join([heading(given, recipes), table(found)]) + "\n"
    add_section(given.out, section, title="Ablations")
    return 0


def arms(path: Path, overrides: Sequence[str], *, group: str, only: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of the arms; those that change nothing of the first one are left out."""
    task = load_recipe(path, overrides).task
    chosen: Arms = {"losses": LOSSES[task], "augment": AUGMENT, "ema": EMA}[group]
    unknown = sorted(set(only) - set(chosen))
    if unknown:
        raise ValueError(f"expected arms of {', '.join(chosen)}, but got {', '.join(unknown)}: correct --only")
    recipes: dict[str, Recipe] = {}
    for name, changes in chosen.items():
        if recipes and only and name not in only:
            continue
        recipe = load_recipe(path, [*overrides, *changes])
        if all(recipe != other for other in recipes.values()):
            recipes[name] = recipe
    return recipes


def trained(name: str, recipe: Recipe, *, seeds: int, runs: Path) -> Arm:
    """Train an arm with each seed, or read what is there."""
    named = recipe.model_copy(update={"name": f"{recipe.name}-{name}"})
    report = train_seeds(named, seeds=range(seeds), runs_dir=runs)
    logs = [(runs / run / LOG).read_text().splitlines() for run in report.runs]
    seconds = [sum(json.loads(line)["seconds"] for line in log) for log in logs]
    return Arm(name=name, report=report, minutes=statistics.fmean(seconds) / 60)


def heading(given: argparse.Namespace, recipes: Mapping[str, Recipe]) -> str:
    first = next(iter(recipes.values()))
    changes = f", with {' '.join(given.overrides)}" if given.overrides else ""
    return (
        f"## {first.name}: {given.arms}, {first.optim.epochs} epochs{changes}\n\n"
        f"{conditions()}. "
        f"Val after the last step, {given.seeds} seeds, mean ± standard deviation; the gain is the mean of the "
        f"differences from {next(iter(recipes))} with the same seed, ± their standard deviation."
    )


def table(found: Sequence[Arm]) -> str:
    """Markdown, a line an arm."""
    scores = found[0].report.scores
    shown = [name for name in SHOWN if name in scores]
    headline = next(name for name in HEADLINE.values() if name in scores)
    lines = [
        f"| arm | gain in {headline} | {' | '.join(shown)} | minutes a run |",
        f"|---|---|{'---|' * len(shown)}---|",
    ]
    for arm in found:
        cells = [figure(arm.report.scores.get(name)) for name in shown]
        gain = "" if arm is found[0] else _gain(arm.report.scores[headline], scores[headline])
        lines.append(f"| {arm.name} | {gain} | {' | '.join(cells)} | {arm.minutes:.1f} |")
    return "\n".join(lines)


def _gain(spread: Spread, first: Spread) -> str:
    differences = [ours - theirs for ours, theirs in zip(spread.values, first.values, strict=True)]
    return f"{statistics.fmean(differences):+.4f} ± {statistics.stdev(differences):.4f}"


if __name__ == "__main__":
    sys.exit(main())
