import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rounds import CLASSES, made_round
from training.data import IGNORE
from training.flywheel.loop_page import loop_page
from training.flywheel.progress import (
    Step,
    StopRule,
    accepted_shares,
    class_shares,
    distance,
    mean_churn,
    reason_to_stop,
    result_of,
    write_steps,
)
from training.flywheel.soft import SoftMask


def step(number: int, **changes: Any) -> Step:
    usual: dict[str, Any] = {
        "number": number,
        "run": "r",
        "artifact": f"a{number}",
        "labels": "l",
        "scores": {"miou": 0.5},
        "num_pseudo": 3,
        "num_accepted": 4,
        "num_images": 8,
        "held_out_ious": (0.5, 0.7),
        "good_share": 0.7,
        "precision": 0.9,
        "churn": 0.1 if number else None,
        "drift": 0.05,
        "shares": (0.2,) * 5,
        "sentence": "so & so",
    }
    return Step(**{**usual, **changes})


def test_shares_and_their_distance_by_hand() -> None:
    masks = [np.array([[0, 0, 1, IGNORE]], dtype=np.uint8), np.array([[2]], dtype=np.uint8)]
    shares_K = class_shares(masks, num_classes=3)
    assert shares_K.tolist() == [0.5, 0.25, 0.25]
    assert distance(shares_K, np.array([0.25, 0.25, 0.5])) == 0.25
    assert distance(class_shares([], num_classes=3), shares_K) == 0


def test_shares_of_a_round_are_those_of_its_whole_accepted_masks(tmp_path: Path) -> None:
    found, _ = made_round(tmp_path / "round", count=8)
    masks = [
        SoftMask.read(found.soft(entry.name)).mask_HW for entry in found.entries().values() if entry.verdict == "accept"
    ]
    expected = [np.mean([(mask_HW == k).mean() for mask_HW in masks]) for k in range(5)]
    assert accepted_shares(found) == pytest.approx(expected)
    assert mean_churn(found) is None


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({}, None),
        ({"num_accepted": 0}, "round 3 accepts nothing: label some of its images"),
        ({"drift": 0.21}, r"the classes' shares of round 3 are 0.210 away from the labelled ones \(at most 0.2\)"),
        ({"good_share": 0.69}, "69% of the held-out masks are good, after 80%"),
        ({"good_share": 0.71}, None),
        ({"good_share": 0.7}, None),
        ({"churn": 0.009}, r"the masks changed by 0.0090 \(at least 0.01\)"),
        ({"churn": None}, None),
    ],
)
def test_reasons_to_stop(last: dict[str, Any], words: str | None) -> None:
    found = reason_to_stop([step(0), step(1, good_share=0.8), step(2, **{"good_share": 0.75, **last})], StopRule())
    assert found is None if words is None else re.match(words, str(found))


@pytest.mark.parametrize(
    ("ious", "expected"),
    [
        ([(0.6, 0.8, 0.7), (0.5, 0.7, 0.6)], 0),
        ([(0.7, 0.6, 0.7), (0.6, 0.8, 0.7)], 0),  # worse by 0.033, give or take 0.088
        ([(0.5, 0.8, 0.6), (0.6, 0.8, 0.7), (0.6, 0.8, 0.7)], 1),  # by 0.067, give or take 0.033
        ([(0.5, 0.5, 0.5), (0.6, 0.8, 0.7), (0.7, 0.8, 0.8)], 2),
    ],
)
def test_the_result_is_the_first_within_a_standard_error_of_the_best(
    ious: list[tuple[float, ...]], expected: int
) -> None:
    assert result_of([step(number, held_out_ious=each) for number, each in enumerate(ious)]).number == expected


def test_steps_come_back(tmp_path: Path) -> None:
    write_steps(tmp_path / "loop.jsonl", [step(0), step(1)])
    assert [Step.model_validate_json(line) for line in (tmp_path / "loop.jsonl").read_text().splitlines()] == [
        step(0),
        step(1),
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_tells_every_round(count: int) -> None:
    steps = [step(number, scores={"miou": 0.5 + number / 10}) for number in range(count)]
    text = loop_page(steps, classes=CLASSES, result=steps[-1], reason="a < b", name="n<m")
    assert "n&lt;m" in text and "The loop stopped: a &lt; b." in text and "so &amp; so" in text
    assert text.count("<svg role") == 4
    assert all(f"{0.5 + number / 10:.4f}" in text for number in range(count))
    assert "http" not in text and "<script" not in text
