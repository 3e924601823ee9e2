import json
import math
from pathlib import Path
from typing import Any

import pytest

from training import seeds
from training.config import Recipe
from training.evaluation import Evaluation
from training.run import Run
from training.seeds import spreads, train_seeds


def _evaluation(miou: float) -> str:
    return Evaluation(
        task="segmentation",
        split="val",
        num_images=1,
        tta="none",
        aggregate="mean",
        scores={"miou": miou},
        classes=(),
    ).model_dump_json()


def test_spreads_are_those_of_samples_and_of_scores_that_all_have() -> None:
    found = spreads([{"miou": 0.5, "ece": 0.1}, {"miou": 0.9, "ece": 0.1, "other": 1.0}, {"ece": 0.1, "miou": 0.7}])
    assert list(found) == ["miou", "ece"]
    miou = found["miou"]
    assert (miou.mean, miou.std, miou.min, miou.max) == pytest.approx((0.7, 0.2, 0.5, 0.9))
    assert miou.values == (0.5, 0.9, 0.7)
    assert found["ece"].std == pytest.approx(0, abs=1e-12)
    (two,) = spreads([{"miou": 1.0}, {"miou": 2.0}]).values()
    assert two.std == pytest.approx(math.sqrt(0.5))


def test_each_seed_has_a_run_and_the_report_is_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run does is tested with the engine; here it only leaves its scores, by its seed."""
    trained: list[Any] = []

    def train(given: Recipe, *, run_dir: Path) -> Path:
        trained.append((given.name, given.seed, run_dir.name))
        Run(run_dir).begin(given)
        Run(run_dir).write("scores.json", _evaluation(given.seed / 10))
        return run_dir

    monkeypatch.setattr(seeds, "train", train)
    report = train_seeds(recipe, seeds=(2, 5), runs_dir=tmp_path)
    assert trained == [("small-s2", 2, "small-s2"), ("small-s5", 5, "small-s5")]
    stored = json.loads((tmp_path / "small-seeds.json").read_text())
    assert (stored["seeds"], stored["runs"]) == ([2, 5], ["small-s2", "small-s5"])
    assert stored["scores"]["miou"]["values"] == [0.2, 0.5]
    assert report.table().splitlines() == [
        "val      mean      std      min      max",
        "miou   0.3500   0.2121   0.2000   0.5000",
        "small, seeds 2, 5",
    ]


@pytest.mark.parametrize("given", [(3,), (1, 1), (-1, 2)])
def test_other_seeds_are_refused(recipe: Recipe, tmp_path: Path, given: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected at least two seeds that differ, 0 or more, but got .*: give for"):
        train_seeds(recipe, seeds=given, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
