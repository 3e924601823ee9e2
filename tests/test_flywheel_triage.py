import numpy as np
import pytest

from training.data import IGNORE
from training.flywheel.soft import SoftMask
from training.flywheel.triage import HeldOut, PixelRule, Selection, fit_thresholds


def held_out(*pairs: tuple[float, float]) -> list[HeldOut]:
    """Of (score, IoU)."""
    return [HeldOut(scores={"expected_iou": score, "confidence": 1 - score}, iou=iou) for score, iou in pairs]


TEN = held_out(
    *((0.1, 0.2), (0.2, 0.3), (0.3, 0.9), (0.4, 0.2), (0.5, 0.9)),
    *((0.6, 0.8), (0.7, 0.7), (0.8, 0.9), (0.9, 0.9), (1.0, 0.9)),
)


def test_thresholds_by_hand() -> None:
    """Good from 0.75 on. From 0.5 on 5 of 6 are good, from 0.8 on all, but these are only three."""
    found = fit_thresholds(TEN, Selection(precision=0.8, good_iou=0.75))
    assert (found.accept_from, found.num_accepted, found.num_accepted_good) == (0.5, 6, 5)
    assert (found.num_held_out, found.num_good) == (10, 6)
    assert found.relabel_below == 0.5, "of the four below it, one is good"
    assert [found.verdict(score) for score in (0.5, 0.49, 0.9)] == ["accept", "relabel", "accept"]
    assert found.sentence == (
        "masks are accepted where expected_iou is 0.5000 or more: so it is on 6 of 10 held-out images, of which 5 "
        "(83%, target 80%) are good; good is a mean IoU of 0.750 or more, as 6 of 10 are; below 0.5000 they are to be "
        "labelled anew"
    )
    assert found.auroc["expected_iou"] == pytest.approx(1 - found.auroc["confidence"])


def test_what_is_not_reached_is_not_accepted() -> None:
    found = fit_thresholds(TEN, Selection(precision=0.99, good_iou=0.75))
    assert found.accept_from is None and found.num_accepted == 0
    assert found.verdict(1.0) == "review"
    assert found.sentence.startswith("nothing is accepted: on 10 held-out images no value of expected_iou leaves 5")


def test_between_the_thresholds_a_person_looks() -> None:
    found = fit_thresholds(TEN, Selection(precision=0.8, good_iou=0.25))
    assert (found.accept_from, found.relabel_below) == (0.1, None) or found.relabel_below == 0.1
    strict = fit_thresholds(TEN, Selection(precision=0.83, good_iou=0.75))
    assert strict.verdict(0.45) == "relabel"


def test_good_is_by_itself_what_three_of_four_reach() -> None:
    found = fit_thresholds(TEN, Selection(precision=0.0))
    assert (found.good_iou, found.num_good) == (0.3, 8)
    assert found.accept_from == 0 and found.verdict(0.0) == "accept", "a precision of 0 takes everything"


def test_too_few_images_or_an_unknown_score_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 8 held-out labelled images .* but got 5"):
        fit_thresholds(TEN[:5], Selection())
    with pytest.raises(ValueError, match=r"expected one of the scores .*stability needs --run"):
        fit_thresholds(TEN, Selection(score="stability"))


def soft(*, scale: float = 1.0) -> SoftMask:
    """Two halves; one pixel is unlikely, another one is disputed."""
    classes_HW = np.repeat([[0] * 6 + [1] * 6], 8, axis=0).astype(np.uint8)
    probs_HW = np.full((8, 12), 200, dtype=np.uint8)
    disagreement_HW = np.zeros((8, 12), dtype=np.uint8)
    probs_HW[0, 0], disagreement_HW[7, 11] = 100, 128
    return SoftMask(
        classes_THW=classes_HW[None],
        probs_THW=probs_HW[None],
        information_HW=disagreement_HW,
        disagreement_HW=disagreement_HW,
        scale=scale,
    )


@pytest.mark.parametrize(
    ("border", "scale", "reach"), [(0.0, 1.0, 0), (1.0, 1.0, 1), (2.0, 1.0, 2), (1.0, 3.0, 3), (1.0, 0.2, 1)]
)
def test_pixels_that_are_not_trained_on(border: float, scale: float, reach: int) -> None:
    expected_HW = soft().mask_HW.copy()
    expected_HW[:, 6 - reach : 6 + reach] = IGNORE
    expected_HW[0, 0] = expected_HW[7, 11] = IGNORE
    assert (PixelRule(border=border).trainable(soft(scale=scale)) == expected_HW).all()
