"""What recipes score on val with several seeds, and what they cost, in one table.

    segserve train RECIPE --seeds 0,1,2
    python -m bench.results runs/wbc-seeds.json runs/clothing-seeds.json --out FILE.md

Reads what the training wrote and trains nothing. Under the table, that of each recipe's classes. A section is added to
the file.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import conditions
from bench.section import add_section
from training.config import Recipe
from training.evaluation import Evaluation
from training.run import LOG, SCORES, Run
from training.seeds import SeedsReport, Spread, spreads

SHOWN = {
    "miou": "mIoU",
    "accuracy": "accuracy",
    "top5_accuracy": "top-5",
    "boundary_iou_3px": "Boundary IoU, 3 px",
    "boundary_f1": "boundary F1",
    "rand_error": "Rand error",
    "ece": "calibration error",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One recipe, trained with several seeds."""

    recipe: Recipe
    report: SeedsReport
    evaluations: tuple[Evaluation, ...]
    """In the order of the seeds."""
    minutes: float
    """Of one training, the mean."""

    @property
    def first(self) -> Evaluation:
        return self.evaluations[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.results", description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", metavar="NAME-seeds.json", help="from segserve train --seeds")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    given = parser.parse_args(arguments)
    try:
        results = [read(path) for path in given.reports]
    except (ValueError, OSError) as error:
        print(f"bench.results: {error}", file=sys.stderr)
        return 2
    section = "\n\n".join([heading(results), table(results), *map(class_table, results)]) + "\n"
    add_section(given.out, section, title="Recipes")
    return 0


def read(path: Path) -> Result:
    """A recipe's report and the runs beside it."""
    report = SeedsReport.model_validate_json(path.read_bytes())
    runs = [path.parent / name for name in report.runs]
    seconds = [sum(json.loads(line)["seconds"] for line in (run / LOG).read_text().splitlines()) for run in runs]
    return Result(
        recipe=Run(runs[0]).recipe(),
        report=report,
        evaluations=tuple(Evaluation.model_validate_json((run / SCORES).read_bytes()) for run in runs),
        minutes=statistics.fmean(seconds) / 60,
    )


def heading(results: Sequence[Result]) -> str:
    seeds = sorted({len(result.report.seeds) for result in results})
    return (
        f"## {', '.join(result.report.name for result in results)}\n\n"
        f"{conditions()}. "
        f"Val after the last step, {' or '.join(map(str, seeds))} seeds, mean ± standard deviation."
    )


def table(results: Sequence[Result]) -> str:
    """A line a recipe."""
    shown = [name for name in SHOWN if any(name in result.report.scores for result in results)]
    titles = [*(SHOWN[name] for name in shown), "epochs", "minutes a run"]
    lines = [f"| recipe | network | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    return "\n".join([*lines, *(_line(result, shown) for result in results)])


def _line(result: Result, shown: Sequence[str]) -> str:
    recipe, scores = result.recipe, result.report.scores
    cells = [result.report.name, f"{recipe.network.architecture_for(recipe.task)}, {recipe.network.encoder}"]
    cells += [figure(scores.get(name)) for name in shown]
    cells += [str(recipe.optim.epochs), f"{result.minutes:.1f}"]
    return f"| {' | '.join(cells)} |"


def figure(spread: Spread | None) -> str:
    """Mean and standard deviation; nothing where there is no such score."""
    return "" if spread is None else f"{spread.mean:.4f} ± {spread.std:.4f}"


def class_table(result: Result) -> str:
    """A line a class of one recipe."""
    total = sum(entry.count for entry in result.first.classes)
    measure, unit = ("IoU", "pixels") if result.recipe.task == "segmentation" else ("recall", "images")
    lines = [f"| {result.report.name} | {measure} | of the {unit} |", "|---|---|---:|"]
    return "\n".join([*lines, *_class_lines(result, total)])


def _class_lines(result: Result, total: int) -> Iterator[str]:
    for index, entry in enumerate(result.first.classes):
        found = [evaluation.classes[index].score for evaluation in result.evaluations]
        known = [score for score in found if score is not None]
        cell = figure(spreads([{"score": score} for score in known])["score"]) if known else "none in the split"
        yield f"| {entry.name} | {cell} | {100 * entry.count / total:.2f} % |"


if __name__ == "__main__":
    sys.exit(main())
