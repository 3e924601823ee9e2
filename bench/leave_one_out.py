"""Leave one group out: how a recipe does on drives, patients or sites that it was not trained on.

    python -m bench.leave_one_out RECIPE --group REGEX [--set KEY=VALUE ...] --out FILE.md

The train split alone is used. What REGEX finds in a training image's name is its group; once for each group, the
recipe is trained on the others and scored on this one. `--group '^[^_]+'` takes the name up to the first underscore.
Runs go to runs/leave-one-out (`--runs`), each beside its data set of links, and are taken up again where they were. A
section is added to the file.
"""

import argparse
import re
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.machine import conditions
from bench.section import add_section
from training.config import Recipe, load_recipe
from training.engine import NonFiniteLoss, train
from training.evaluation import Evaluation
from training.layouts import CLASSES, Sample, open_dataset
from training.run import SCORES
from training.stop import Stopped

RUNS = Path("runs/leave-one-out")
Groups = Mapping[str, Sequence[Sample]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.leave_one_out", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--group", required=True, metavar="REGEX", help="what it finds in an image's name is its group")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    given = parser.parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe, given.overrides)
        found = dict(evaluations(recipe, given.group, runs=given.runs))
    except ValueError as error:
        print(f"bench.leave_one_out: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, Stopped) as error:
        print(f"bench.leave_one_out: {error}", file=sys.stderr)
        return 1
    section = "\n\n".join([heading(recipe, given), table(found)]) + "\n"
    add_section(given.out, section, title="Leave one group out")
    return 0


def evaluations(recipe: Recipe, pattern: str, *, runs: Path) -> list[tuple[str, Evaluation]]:
    """Each group, and the scores on it of a training on the others."""
    if recipe.task != "segmentation" or recipe.data.layout != "folder":
        raise ValueError(
            f"expected a segmentation recipe with layout folder, but {recipe.name} has {recipe.task} and "
            f"{recipe.data.layout}: convert the data set"
        )
    dataset = open_dataset(recipe.data.root, recipe.task)
    groups = grouped(dataset.split("train"), pattern)
    found = []
    for group in groups:
        run = runs / f"{recipe.name}-without-{group}"
        data = run.with_name(f"{run.name}-data")
        link(groups, held_out=group, classes=recipe.data.root / CLASSES, root=data)
        settings = recipe.data.model_copy(update={"root": data})
        train(recipe.model_copy(update={"name": run.name, "data": settings}), run_dir=run)
        found.append((group, Evaluation.model_validate_json((run / SCORES).read_bytes())))
    return found


def grouped(samples: Sequence[Sample], pattern: str) -> Groups:
    """The samples by what the pattern finds in their names, in the order of the groups' names."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression, but {pattern!r} is none ({error}): correct --group") from None
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        match = compiled.search(sample.image.stem)
        if match is None or not match.group():
            raise ValueError(f"expected {pattern!r} to find a group in each name, but not in {sample.image.name}")
        groups[match.group()].append(sample)
    if len(groups) < 2:
        raise ValueError(f"expected at least two groups, but {pattern!r} finds {', '.join(groups)} in every name")
    return dict(sorted(groups.items()))


def link(groups: Groups, *, held_out: str, classes: Path, root: Path) -> None:
    """A data set of links: val is one group, train the others.

    Raises:
        ValueError: there is one already, of other images.
    """
    links = dict(_links(groups, held_out=held_out))
    if root.is_dir():
        if {path.relative_to(root): path.resolve() for path in root.glob("*/*/*")} != links:
            raise ValueError(
                f"expected {root} to link to the images that {held_out} is left out of, but it links to others: give "
                "other --runs, or delete it and the run beside it"
            )
        return
    temporary = root.with_name(f".{root.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for place, path in links.items():
        target = temporary / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    shutil.copyfile(classes, temporary / CLASSES)
    temporary.rename(root)


def _links(groups: Groups, *, held_out: str) -> Iterator[tuple[Path, Path]]:
    """Each file's place in the data set, and where it is."""
    for group, samples in groups.items():
        split = "val" if group == held_out else "train"
        for sample in samples:
            for kind, path in zip(("images", "masks"), sample.files, strict=True):
                yield Path(kind, split, path.name), path.resolve()


def heading(recipe: Recipe, given: argparse.Namespace) -> str:
    changes = f", with {' '.join(given.overrides)}" if given.overrides else ""
    return (
        f"## {recipe.name}: each group of {given.group!r} left out, {recipe.optim.epochs} epochs{changes}\n\n"
        f"{conditions()}. "
        f"Trained on the other groups of the train split, after the last step."
    )


def table(found: Mapping[str, Evaluation]) -> str:
    """A line a group, and the mean; a column a class."""
    first = next(iter(found.values()))
    names = [entry.name for entry in first.classes]
    lines = [f"| left out | images | mIoU | {' | '.join(names)} |", f"|---|---:|---:|{'---:|' * len(names)}"]
    for group, evaluation in found.items():
        cells = [_cell(entry.score) for entry in evaluation.classes]
        lines.append(f"| {group} | {evaluation.num_images} | {evaluation.scores['miou']:.4f} | {' | '.join(cells)} |")
    columns = [[evaluation.classes[index].score for evaluation in found.values()] for index in range(len(names))]
    means = [_mean([score for score in column if score is not None]) for column in columns]
    miou = statistics.fmean(evaluation.scores["miou"] for evaluation in found.values())
    return "\n".join([*lines, f"| mean | | {miou:.4f} | {' | '.join(map(_cell, means))} |"])


def _mean(scores: Sequence[float]) -> float | None:
    return statistics.fmean(scores) if scores else None


def _cell(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    sys.exit(main())
