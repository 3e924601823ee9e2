import numpy as np
import pytest

from training.lint.shares import counts, median_frequency_weights, void_share
from training.lint.survey import Look, MaskFacts


def _look(truth: dict[int, int] | int) -> Look:
    """Of a mask given as pixels by value, or of a label."""
    if isinstance(truth, dict):
        truth_of: MaskFacts | int = MaskFacts(
            name="masks/train/a.png",
            format="PNG",
            mode="L",
            size=(1, sum(truth.values())),
            has_colors=False,
            values_V=np.array(list(truth)),
            counts_V=np.array(list(truth.values())),
            colors_V=None,
        )
    else:
        truth_of = truth
    return Look(split="train", name="images/train/a.png", stem="a", image=None, truth=truth_of, faults=())


MASKS = [_look({0: 60, 1: 30, 255: 10}), _look({0: 80, 2: 20}), _look({0: 100})]


def test_counts_are_by_class_and_of_all_else() -> None:
    assert counts(MASKS, 4).tolist() == [[60, 30, 0, 0, 10], [80, 0, 20, 0, 0], [100, 0, 0, 0, 0]]
    assert counts([_look(2), _look(0)], 3).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert counts([], 2).shape == (0, 3)


def test_a_class_that_is_void_counts_as_all_else() -> None:
    assert counts(MASKS[:2], 2, ignore_index=0).tolist() == [[0, 30, 70], [0, 0, 100]]


def test_median_frequency_by_hand() -> None:
    """Frequencies: 240 of 300 pixels, 30 of the 100 where class 1 is, 20 of 100; their median is 0.3."""
    assert median_frequency_weights(counts(MASKS, 4)) == [
        pytest.approx(0.3 / 0.8),
        pytest.approx(1),
        pytest.approx(0.3 / 0.2),
        None,
    ]


def test_median_frequency_of_labels_by_hand() -> None:
    labels = [_look(index) for index in [0] * 6 + [1] * 3 + [2] * 2]
    assert median_frequency_weights(counts(labels, 4)) == [pytest.approx(3 / 6), 1.0, pytest.approx(3 / 2), None]


def test_nothing_has_no_weights() -> None:
    assert median_frequency_weights(counts([], 2)) == [None, None]


def test_void_is_what_is_of_no_class() -> None:
    assert void_share(counts(MASKS, 4)) == pytest.approx(10 / 300)
    assert void_share(counts([], 4)) == 0
