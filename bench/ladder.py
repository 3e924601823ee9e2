"""One recipe, many networks: what each scores, weighs and costs, in one table.

    python -m bench.ladder RECIPE.toml --encoders resnet50,resnext50_32x4d,resnet34,mobilenet_v3_large --out FILE.md
    python -m bench.ladder RECIPE.toml --architectures unet,fcn,deeplabv3 --out FILE.md
    python -m bench.ladder RECIPE.toml --networks alexnet,vgg16,googlenet,resnet50 --out FILE.md

Each network is trained, exported and scored on the val split, once a seed; runs lie in runs/ladder/NAME/, and a second
call goes on where the first one stopped. Adds a section to the file. Milliseconds are those of the predictor with one
image on one thread of the CPU, from the decoded image to the answer, the median over images of val.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.limit import network_operations
from bench.machine import conditions
from bench.section import add_section
from segserve.artifact import Artifact, load_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import build_predictor
from segserve.preprocess import STRIDE, aligned, working_size
from segserve.spec import ModelSpec
from training.config import Recipe, load_recipe
from training.data import read_image
from training.engine import NonFiniteLoss, train
from training.evaluate import evaluate
from training.evaluation import Evaluation
from training.export import export_run
from training.layouts import Dataset, open_dataset
from training.metrics import HEADLINE
from training.run import LOG, EpochLog
from training.stop import Stopped

RUNS = Path("runs/ladder")
TIMED_IMAGES = 20
WARM_UP = 2
SHOWN = ("boundary_iou_1px", "boundary_iou_3px", "boundary_iou_2pct", "boundary_f1", "top5_accuracy")
"""Scores beside the headline, of those the evaluation has."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One network, trained once."""

    recipe: Recipe
    artifact: Artifact
    evaluation: Evaluation
    minutes: float
    """Of the training alone."""
    milliseconds: float
    gigaflops: float
    """Of one forward pass for the first image of val."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.artifact.network.parameters())

    @property
    def megabytes(self) -> float:
        return sum(file.stat().st_size for file in self.artifact.path.rglob("*") if file.is_file()) / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, measure, print, write; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        ladder = [[climbed(recipe, root=given.runs) for recipe in seeds] for seeds in recipes(given)]
    except ValueError as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, Stopped) as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 1
    section = "\n\n".join([heading(ladder[0], given), table(ladder)]) + "\n"
    add_section(given.out, section, title="One recipe, many networks")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ladder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--encoders", "--networks", metavar="A,B", help="values of network.encoder")
    names.add_argument("--architectures", metavar="A,B", help="values of network.architecture")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="trainings of each, from the recipe's seed up"
    )
    parser.add_argument("--teacher", type=Path, metavar="ARTIFACT", help="distil it into each of them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help=f"of the runs ({RUNS})")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    return parser


def recipes(given: argparse.Namespace) -> list[list[Recipe]]:
    """For each network, in order, its recipe with each seed; every one is checked before the first is trained.

    Raises:
        ValueError: a recipe is wrong, or there is to be no seed.
    """
    if given.seeds < 1:
        raise ValueError(
            f"expected at least one training of each network, but got {given.seeds}: give --seeds 1 or more"
        )
    key, names = ("encoder", given.encoders) if given.encoders else ("architecture", given.architectures)
    base = load_recipe(given.recipe, given.set)
    taught = [f"distillation.teacher={given.teacher}"] if given.teacher else []
    suffix = "-distilled" if given.teacher else ""
    return [
        [
            load_recipe(
                given.recipe,
                [
                    *given.set,
                    *taught,
                    f"network.{key}={name}",
                    f"seed={seed}",
                    f"name={base.name}-{name}{suffix}-{seed}",
                ],
            )
            for seed in range(base.seed, base.seed + given.seeds)
        ]
        for name in names.split(",")
    ]


def climbed(recipe: Recipe, *, root: Path) -> Rung:
    """Train, export and score one network, or take up what is there, and measure it."""
    run_dir, path = root / recipe.name, root / recipe.name / "artifact"
    train(recipe, run_dir=run_dir)
    artifact = load_artifact(path) if path.is_dir() else export_run(run_dir, path)
    dataset = open_dataset(recipe.data.root, recipe.task, layout=recipe.data.layout)
    log = [EpochLog.model_validate_json(line) for line in (run_dir / LOG).read_text().splitlines()]
    return Rung(
        recipe=recipe,
        artifact=artifact,
        evaluation=evaluate(artifact, recipe.data.root, layout=recipe.data.layout),
        minutes=sum(entry.seconds for entry in log) / 60,
        milliseconds=milliseconds(artifact, dataset),
        gigaflops=network_operations(artifact.network.cpu(), _first_image(artifact.spec, dataset)) / 1e9,
    )


def milliseconds(artifact: Artifact, dataset: Dataset) -> float:
    """Of one image on one thread of the CPU, from decoded image to answer; the median over some of val."""
    predictor = build_predictor(artifact.spec, TorchEngine(artifact.network, device="cpu"))
    queries = [Query(image_HWC=read_image(sample.image)) for sample in dataset.split("val")[:TIMED_IMAGES]]
    took = []
    with one_thread():
        for query in [*queries[:1] * WARM_UP, *queries]:
            start = time.perf_counter()
            predictor.predict([query])
            took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took[WARM_UP:])


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_image(spec: ModelSpec, dataset: Dataset) -> Tensor:
    """Of val, at the size at which the network sees it, without its content: (1, 3, H, W)."""
    height, width, _ = read_image(dataset.split("val")[0].image).shape
    size = working_size((height, width), spec.preprocess)
    return torch.zeros(1, 3, *(aligned(size, STRIDE) if spec.task == "segmentation" else size))


def heading(seeds: Sequence[Rung], given: argparse.Namespace) -> str:
    """What was trained on what, when and where."""
    recipe, evaluation = seeds[0].recipe, seeds[0].evaluation
    changes = f" with {' '.join(given.set)}" if given.set else ""
    place = "a GPU" if torch.cuda.is_available() else "the CPU"
    spread = f"; {len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else ""
    return (
        f"## {recipe.data.root.name}: {evaluation.split}, {evaluation.num_images} images, "
        f"{recipe.optim.epochs} epochs\n\n"
        f"{conditions()}; "
        f"recipe {given.recipe.name}{changes}, trained on {place}{spread}."
    )


def table(ladder: Sequence[Sequence[Rung]]) -> str:
    """A line a network; of several seeds the mean and the standard deviation."""
    names = columns(ladder[0][0])
    header = ["network", *names, "M parameters", "MB", "GFLOP", "ms", "minutes of training"]
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    return "\n".join([*lines, *(_line(seeds, names) for seeds in ladder)])


def columns(rung: Rung) -> list[str]:
    """The scores that are shown: the headline, those of outlines and of further guesses, and the calibration error."""
    shown = (HEADLINE[rung.recipe.task], *SHOWN, "ece")
    return [name for name in shown if name in rung.evaluation.figures]


def _line(seeds: Sequence[Rung], names: Sequence[str]) -> str:
    first = seeds[0]
    cells = (
        _name(first),
        *(_spread([rung.evaluation.figures[name] for rung in seeds]) for name in names),
        f"{first.num_parameters / 1e6:.2f}",
        f"{first.megabytes:.1f}",
        f"{first.gigaflops:.2f}",
        f"{statistics.median(rung.milliseconds for rung in seeds):.1f}",
        f"{statistics.mean(rung.minutes for rung in seeds):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _name(rung: Rung) -> str:
    network = rung.artifact.spec.network
    shown = network.encoder if network.architecture == "classifier" else f"{network.architecture}, {network.encoder}"
    return shown if rung.recipe.distillation is None else f"{shown}, distilled"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    sys.exit(main())
