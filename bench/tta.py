"""What each plan and aggregator of test-time augmentation gains on a labelled split, and what it costs.

    python -m bench.tta ARTIFACT DATASET [--split val] --out FILE.md

Adds a section to the file. Costs are processor time, which neighbours on the machine disturb least, so that a figure is
of use on a machine without a GPU only.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bench.machine import conditions
from bench.section import add_section
from segserve.artifact import load_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Prediction, Query
from segserve.predictor import Predictor, build_predictor
from segserve.spec import Aggregate, Plan
from segserve.tta import PLANS
from training.certainty import RiskCoverage
from training.data import IGNORE
from training.evaluate import Outcome, assess, measures_of, outcomes
from training.evaluation import Evaluation
from training.layouts import Dataset, open_dataset
from training.metrics import HEADLINE

WAYS: tuple[tuple[Plan, Aggregate], ...] = (
    ("none", "mean"),
    *((plan, aggregate) for plan, aggregate in product(get_args(Plan), get_args(Aggregate)) if plan != "none"),
)


@dataclass
class Timed:
    """A predictor that is given one image at a time, and the processor seconds of each."""

    predictor: Predictor
    seconds: list[float] = field(default_factory=list)

    @property
    def spec(self) -> object:
        return self.predictor.spec

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        predictions: list[Prediction] = []
        for query in queries:
            start = time.process_time()
            predictions += self.predictor.predict([query])
            self.seconds.append(time.process_time() - start)
        return predictions


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one way came to on the whole split."""

    evaluation: Evaluation
    seconds: list[float]
    """Of each image."""
    is_right_N: NDArray[np.bool_]
    """Of each pixel or label that counts."""

    @property
    def headline(self) -> float:
        return self.evaluation.scores[HEADLINE[self.evaluation.task]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.tta", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    given = parser.parse_args(arguments)
    try:
        artifact = load_artifact(given.artifact)
        dataset = open_dataset(given.dataset, artifact.spec.task)
        dataset.split(given.split)
    except ValueError as error:
        print(f"bench.tta: {error}", file=sys.stderr)
        return 2
    predictor = build_predictor(artifact.spec, TorchEngine(artifact.network))
    predictor.predict([Query(image_HWC=np.zeros((64, 64, 3), dtype=np.uint8))])
    results = [measured(predictor, dataset, given.split, *way) for way in tqdm(WAYS, unit="way", disable=None)]
    section = "\n\n".join([heading(artifact.spec.name, results[0]), gains(results), orders(results)]) + "\n"
    add_section(given.out, section, title="Test-time augmentation: gain and cost")
    return 0


def measured(predictor: Predictor, dataset: Dataset, split: str, tta: Plan, aggregate: Aggregate) -> Result:
    """Predict the split in one way."""
    timed, is_right = Timed(predictor), list[NDArray[np.bool_]]()
    found = outcomes(
        timed,  # type: ignore[arg-type]
        dataset.split(split),
        ignore_index=dataset.ignore_index,
        tta=tta,
        aggregate=aggregate,
        maps=measures_of(tta),
    )
    evaluation = assess(
        _noted(found, is_right), dataset, spec=predictor.spec, split=split, tta=tta, aggregate=aggregate
    )
    return Result(evaluation=evaluation, seconds=timed.seconds, is_right_N=np.concatenate(is_right))


def _noted(found: Iterable[Outcome], is_right: list[NDArray[np.bool_]]) -> Iterator[Outcome]:
    for outcome in found:
        is_right.append((outcome.predicted == outcome.truth)[outcome.truth != IGNORE].ravel())
        yield outcome


def heading(name: str, plain: Result) -> str:
    evaluation = plain.evaluation
    return (
        f"## {name}: {evaluation.split}, {evaluation.num_images} images, temperature {evaluation.temperature:.3g}\n\n"
        f"{conditions()}, {torch.get_num_threads()} thread(s)."
    )


def gains(results: Sequence[Result]) -> str:
    """A line a way: its score against the first one's, and the cost."""
    plain = results[0]
    unit = "pixels" if plain.evaluation.task == "segmentation" else "images"
    score = HEADLINE[plain.evaluation.task]
    columns = f"plan | aggregate | views | {score} | points gained | {unit} corrected | corrupted | ECE | AURC, entropy"
    header = [f"| {columns} | CPU s/image | cost |", f"|---|---|{'---:|' * 9}"]
    return "\n".join([*header, *(_gain(result, plain) for result in results)])


def _gain(result: Result, plain: Result) -> str:
    evaluation = result.evaluation
    corrected = (result.is_right_N & ~plain.is_right_N).sum()
    corrupted = (plain.is_right_N & ~result.is_right_N).sum()
    cost = statistics.median(now / before for now, before in zip(result.seconds, plain.seconds, strict=True))
    assert evaluation.certainty is not None
    cells = (
        evaluation.tta,
        evaluation.aggregate if evaluation.tta != "none" else "",
        len(PLANS[evaluation.tta]),
        f"{result.headline:.4f}",
        f"{100 * (result.headline - plain.headline):+.2f}",
        f"{corrected:,}",
        f"{corrupted:,}",
        f"{evaluation.certainty.ece:.4f}",
        f"{evaluation.certainty.risk_coverage[0].aurc['entropy']:.5f}",
        f"{statistics.median(result.seconds):.3f}",
        f"{cost:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def orders(results: Sequence[Result]) -> str:
    """A line a plan and unit, aggregated by the mean: the area by each measure, between random order and the best."""
    header = [
        "| AURC of | plan | random | confidence | entropy | mutual information | disagreement | best |",
        f"|---|---|{'---:|' * 6}",
    ]
    lines = [
        _order(result.evaluation.tta, areas)
        for result in results
        if result.evaluation.aggregate == "mean" and result.evaluation.certainty is not None
        for areas in result.evaluation.certainty.risk_coverage
    ]
    return "\n".join([*header, *sorted(lines, key=lambda line: line.startswith("| images"))])


def _order(tta: Plan, areas: RiskCoverage) -> str:
    by_doubt = [areas.aurc.get(doubt) for doubt in ("confidence", "entropy", "mutual-information", "disagreement")]
    cells = ["-" if area is None else f"{area:.5f}" for area in (areas.random, *by_doubt, areas.best)]
    return f"| {areas.unit} | {tta} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
