import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.flywheel import Result, closure, main, rounds_table, scores_table
from bench.hidden import Judged, draw_labels
from segserve.spec import ClassSpec
from training.layouts import open_dataset
from training.synthetic import write_segmentation_set

RECIPE = Path(__file__).parents[1] / "training/recipes/demo-segmentation.toml"
TINY = (
    *("network.encoder=mobilenet_v3_small", "preprocess.working_side=32", "augment.crop=[32,32]"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=8"),
)
CHANGED_PSEUDO = ("pseudo.round=any", "pseudo.recolor=0")
"""What only trainings with pseudo-labels take: the others have no round, and do not look for this one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_segmentation_set(root, seed=0, num_train=16, num_val=2, side=32)
    return root


def test_a_tiny_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "flywheel.md"
    arguments = [
        *(str(RECIPE), "--budget", "1/8", "--draws", "1", "--rounds", "1", "--held-out", "8", "--tta", "none"),
        *("--precision", "0.1", "--skip", "plain", "--runs", str(tmp_path / "runs"), "--out", str(out)),
        *(part for change in (*TINY, f"data.root={data}", *CHANGED_PSEUDO) for part in ("--set", change)),
    ]
    assert main(arguments) == 0
    text = out.read_text()
    assert "2 labelled, 6 hidden, 8 held-out images" in text
    table = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in text.splitlines() if row.startswith("|")}
    assert list(table)[:2] == ["arm", "---"]
    for arm in ("supervised", "the loop, its result", "the loop, round 1 with a reviewer", "all labels"):
        assert 0 <= float(table[arm][0]) <= 1
    assert table["all labels"][-1].strip() in ("+100%", "+nan%"), "after one step there may be no gap"
    assert {"expected_iou", "stability"} <= {cell.strip() for cell in table["AUROC of"]}
    assert list(tmp_path.glob("flywheel.*.png"))
    truth = tmp_path / "runs/demo-segmentation-1of8/draw-0/reviewed/round-1"
    assert (truth / "manifest.jsonl").is_file() and not (truth.parent / ".round-1").exists()


def test_the_table_by_hand() -> None:
    """Gaps of 0.2 and 0.4; the loop closes 0.1 of the first (half) and, where it stopped, nothing of the second."""
    judged = Judged(
        num_images=8,
        num_accepted=4,
        precision=0.75,
        base_rate=0.5,
        accepted_miou=0.8,
        miou=0.6,
        trained_accuracy=0.99,
        auroc={"expected_iou": 0.9},
    )
    shared = {"reviewed": None, "rounds": [judged], "looked_at": 0, "bought": 0, "num_labelled": 3}
    results = [
        Result(supervised=0.5, plain=[0.4], loop=[0.6], chosen=0.6, everything=0.7, **shared),  # type: ignore[arg-type]
        Result(supervised=0.3, plain=[0.5], loop=[], chosen=0.3, everything=0.7, **shared),  # type: ignore[arg-type]
    ]
    assert scores_table(results).splitlines() == [
        "| arm | draw 0 | draw 1 | mean | gap closed |",
        "|---|---|---|---|---|",
        "| supervised | 0.5000 | 0.3000 | 0.4000 | +0% |",
        "| self-training without selection, round 1 | 0.4000 | 0.5000 | 0.4500 | +17% |",
        "| the loop, round 1 | 0.6000 | stopped | 0.6000 | +50% |",
        "| the loop, its result | 0.6000 | 0.3000 | 0.4500 | +17% |",
        "| all labels | 0.7000 | 0.7000 | 0.7000 | +100% |",
    ]
    assert math.isnan(closure(results[:0], [])), "no gap"
    assert "| 1 | 50% | 0.7500 | 0.5000 | 0.8000 | 0.6000 | 0.9900 |" in rounds_table(results)
    assert "| round 1 | 0.900 |" in rounds_table(results)


def test_draws_divide_the_images_and_say_the_truth(data: Path, tmp_path: Path) -> None:
    source = open_dataset(data, "segmentation")
    draw = draw_labels(source, tmp_path, budget=Fraction(1, 4), num_held_out=3, clip=2, seed=1)
    names = [
        {sample.image.name for sample in draw.labelled.split("train")},
        {sample.image.name for sample in draw.held_out.split("val")},
        {path.name for path in draw.hidden.iterdir()},
    ]
    assert [len(each) for each in names] == [4, 3, 9]
    assert set.union(*names) == {sample.image.name for sample in source.split("train")}
    assert {sample.image.name for sample in draw.everything.split("train")} == names[0] | names[2]
    for name, truth_HW in draw.truths.items():
        assert (np.asarray(Image.open(data / f"masks/train/{name}.png")) == truth_HW).all()
    assert all(isinstance(entry, ClassSpec) for entry in draw.labelled.classes)
    again = draw_labels(source, tmp_path / "2", budget=Fraction(1, 4), num_held_out=3, clip=2, seed=1)
    assert again.truths.keys() == draw.truths.keys()
    other = draw_labels(source, tmp_path / "3", budget=Fraction(1, 4), num_held_out=3, clip=2, seed=2)
    assert other.truths.keys() != draw.truths.keys()


def test_no_draw_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECIPE), "--draws", "0", "--out", str(tmp_path / "a.md")]) == 2
    assert "expected at least one draw, but got 0" in capsys.readouterr().err


def test_another_draw_in_the_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    source = open_dataset(data, "segmentation")
    first = draw_labels(source, tmp_path, budget=Fraction(1, 4), num_held_out=3, seed=1)
    again = draw_labels(source, tmp_path, budget=Fraction(1, 4), num_held_out=3, seed=1)
    assert again.truths.keys() == first.truths.keys()
    with pytest.raises(ValueError, match=r"train to have images of this draw, but it has others, .+\.(jpg|png) among"):
        draw_labels(source, tmp_path, budget=Fraction(1, 4), num_held_out=2, seed=1)


def test_images_of_one_name_in_several_folders_are_refused(data: Path, tmp_path: Path) -> None:
    """They would be one, with the truth of another."""
    source = open_dataset(data, "segmentation")
    for split in ("train", "val"):
        first, *others = source.split(split)
        double = replace(first, image=data / "more" / first.image.name)
        with pytest.raises(ValueError, match=rf"several in {split} of .* are called {first.image.stem}: rename them"):
            draw_labels(
                replace(source, splits={**source.splits, split: (first, double, *others)}),
                tmp_path,
                budget=Fraction(1, 4),
                num_held_out=3,
                seed=1,
            )


def test_a_budget_that_hides_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a budget that leaves some of 16 images hidden, but 8 labelled and 8"
    ):
        draw_labels(open_dataset(data, "segmentation"), tmp_path, budget=Fraction(1, 2), num_held_out=8, seed=0)
