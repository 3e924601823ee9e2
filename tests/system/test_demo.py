"""`make demo` as the contract has it."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.system.conftest import Demo

pytestmark = pytest.mark.system

FILES = ("input.png", "mask.png", "overlay.png", "mask.json", "labels.json", "metrics.txt", "report.json")


def test_leaves_the_files_of_the_contract(demo: Demo) -> None:
    assert [name for name in FILES if not (demo.folder / name).is_file()] == []


def test_segmentation_is_learnt(demo: Demo) -> None:
    assert demo.report["scores"]["demo-segmentation"]["miou"] >= 0.75


def test_classification_is_learnt(demo: Demo) -> None:
    assert demo.report["scores"]["demo-classification"]["accuracy"] >= 0.75  # chance is 0.25


def test_takes_at_most_ten_minutes(demo: Demo) -> None:
    assert demo.report["seconds"]["total"] <= 600


def test_mask_has_the_size_of_the_input_and_is_mostly_right(demo: Demo) -> None:
    mask_HW = np.asarray(Image.open(demo.folder / "mask.png"))
    name = min((demo.folder / "data/segmentation/masks/val").iterdir())
    truth_HW = np.asarray(Image.open(name))
    assert mask_HW.shape == truth_HW.shape
    assert (mask_HW == truth_HW).mean() > 0.9


def test_labels_are_sorted_probabilities_of_all_classes(demo: Demo) -> None:
    labels = json.loads((demo.folder / "labels.json").read_text())["labels"]
    probabilities = [label["probability"] for label in labels]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert probabilities == sorted(probabilities, reverse=True)
    assert {label["name"] for label in labels} == {"cell", "washer", "fibre", "star"}
