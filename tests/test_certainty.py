import dataclasses
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.prediction import ClassificationPrediction, SegmentationPrediction
from segserve.spec import Measure
from training.calibration import ProbabilityTally
from training.certainty import Certainty, ImageTally, PixelTally, certainty
from training.data import IGNORE
from training.risk_coverage import aurc_by

MEASURES: tuple[Measure, ...] = get_args(Measure)
Sampled = tuple[NDArray[np.uint8], SegmentationPrediction]


def _sampled(seed: int, *, size: tuple[int, int] = (20, 30)) -> Sampled:
    """A truth with void and a prediction whose maps have many ties."""
    rng = np.random.default_rng(seed)
    levels = np.array([0, 3, 100, 255], dtype=np.uint8)
    prediction = SegmentationPrediction(
        mask_HW=rng.integers(0, 3, size, dtype=np.uint8),
        confidence_HW=rng.integers(80, 256, size, dtype=np.uint8),
        uncertainty_HW={measure: rng.choice(levels, size) for measure in MEASURES},
        probs_KHW=None,
        mean_entropy=float(rng.random()),
        mutual_information=float(rng.random()),
        view_agreement=float(rng.random()),
        windows=1,
    )
    return rng.choice(np.array([0, 1, 2, IGNORE], dtype=np.uint8), size), prediction


def _label(probs: list[float], *, entropy: float = 0.0) -> ClassificationPrediction:
    return ClassificationPrediction(
        probs_K=np.array(probs, dtype=np.float32), mean_entropy=entropy, mutual_information=0.0, view_agreement=1.0
    )


def test_pixels_of_all_images_are_ranked_together() -> None:
    images, tally = [_sampled(0), _sampled(1, size=(7, 5))], PixelTally()
    for truth_HW, prediction in images:
        tally.add(truth_HW, prediction)
    areas = tally.risk_coverage()
    valid = [truth_HW != IGNORE for truth_HW, _ in images]
    wrong_N = np.concatenate([(t != p.mask_HW)[v] for (t, p), v in zip(images, valid, strict=True)])
    doubts = {"confidence": np.concatenate([255 - p.confidence_HW[v] for (_, p), v in zip(images, valid, strict=True)])}
    for measure in MEASURES:
        doubts[measure] = np.concatenate(
            [p.uncertainty_HW[measure][v] for (_, p), v in zip(images, valid, strict=True)]
        )
    assert areas.aurc == pytest.approx({name: aurc_by(doubt_N, wrong_N) for name, doubt_N in doubts.items()})
    assert areas.random == pytest.approx(wrong_N.mean())
    assert areas.best == pytest.approx(aurc_by(wrong_N, wrong_N))
    assert areas.excess["entropy"] == pytest.approx(areas.aurc["entropy"] - areas.best)


def test_images_are_ranked_by_their_scores() -> None:
    tally, risks = ImageTally(MEASURES), [0.1, 0.4, 0.05]
    predictions = [_sampled(seed)[1] for seed in range(3)]
    for prediction, risk in zip(predictions, risks, strict=True):
        tally.add(prediction, confidence=1 - risk, risk=risk)
    areas = tally.risk_coverage()
    assert areas.aurc == pytest.approx(
        {
            "confidence": areas.best,
            "entropy": aurc_by([entry.mean_entropy for entry in predictions], risks),
            "mutual-information": aurc_by([entry.mutual_information for entry in predictions], risks),
            "disagreement": aurc_by([1 - entry.view_agreement for entry in predictions], risks),
        }
    )
    assert areas.best == pytest.approx((0.05 + (0.05 + 0.1) / 2 + (0.05 + 0.1 + 0.4) / 3) / 3)


def test_labels_computed_by_hand() -> None:
    tally = ImageTally(("entropy",))
    for probs, entropy, risk in (([0.9, 0.1], 0.2, 0), ([0.6, 0.4], 0.9, 0), ([0.2, 0.8], 0.5, 1)):
        prediction = _label(probs, entropy=entropy)
        tally.add(prediction, confidence=float(prediction.probs_K.max()), risk=risk)
    found = certainty(tally)
    assert found is not None
    assert found.ece == pytest.approx((0.1 + 0.4 + 0.8) / 3, abs=1e-6)
    (areas,) = found.risk_coverage
    assert areas.aurc == pytest.approx({"confidence": (1 / 2 + 1 / 3) / 3, "entropy": (1 / 2 + 1 / 3) / 3})
    assert (areas.unit, areas.random, areas.best) == ("images", pytest.approx(1 / 3), pytest.approx(1 / 9))


def test_where_nothing_counts_there_are_no_figures() -> None:
    truth_HW, prediction = _sampled(0)
    pixels, images = PixelTally(), ImageTally(MEASURES)
    pixels.add(np.full_like(truth_HW, IGNORE), prediction)
    images.add(prediction, confidence=0.5, risk=0.0)
    assert certainty(pixels, images) is None


def test_the_table_has_a_line_an_order_and_a_column_a_unit() -> None:
    truth_HW, prediction = _sampled(0)
    pixels, images = PixelTally(), ImageTally(MEASURES)
    pixels.add(truth_HW, prediction)
    images.add(prediction, confidence=0.5, risk=0.25)
    found = certainty(pixels, images)
    assert found is not None
    lines = [line.split() for line in found.table().splitlines()]
    assert lines[0] == ["AURC", "pixels", "images"]
    assert [line[0] for line in lines[1:]] == ["confidence", *MEASURES, "random", "best"]
    assert lines[-1] == ["best", f"{found.risk_coverage[0].best:.5f}", "0.25000"]
    assert Certainty.model_validate_json(found.model_dump_json()) == found


def test_the_band_is_three_pixels_on_either_side_of_a_contour() -> None:
    truth_HW = np.repeat(np.array([[0] * 8 + [1] * 8], dtype=np.uint8), 5, axis=0)
    truth_HW[0, :8] = IGNORE
    _, sampled = _sampled(0)
    confidence_HW = np.full(truth_HW.shape, 255, dtype=np.uint8)
    confidence_HW[:, 4:12] = 102  # 0.4, and right: an error of 0.6 where the band is
    prediction = dataclasses.replace(sampled, mask_HW=truth_HW % IGNORE, confidence_HW=confidence_HW, uncertainty_HW={})
    pixels = PixelTally()
    pixels.add(truth_HW, prediction)
    assert pixels.boundary_L2.sum() == 5 * 3 + 4 * 3
    found = certainty(pixels)
    assert found is not None
    assert found.ece_boundary == pytest.approx(0.6)
    assert found.ece < 0.4


def test_without_contours_and_probabilities_there_are_fewer_figures() -> None:
    truth_HW, prediction = _sampled(0)
    pixels = PixelTally()
    pixels.add(np.zeros_like(truth_HW), prediction)
    found = certainty(pixels)
    assert found is not None
    assert list(found.figures()) == ["ece"]
    probabilities = ProbabilityTally(3)
    probabilities.add(np.array([[0.5, 0.2], [0.3, 0.8], [0.2, 0.0]]), np.array([0, 1], dtype=np.uint8))
    more = certainty(pixels, probabilities=probabilities)
    assert more is not None
    assert list(more.figures()) == ["ece", "classwise_ece", "nll", "brier"]
    assert more.classwise_ece == pytest.approx(np.mean(more.class_ece))
    assert more.nll == pytest.approx(-np.log([0.5, 0.8]).mean())


def test_the_curves_end_at_the_mean_risk() -> None:
    truth_HW, prediction = _sampled(0)
    pixels, images = PixelTally(), ImageTally(("entropy",))
    pixels.add(truth_HW, prediction)
    images.add(prediction, confidence=0.5, risk=0.25)
    for areas in (pixels.risk_coverage(), images.risk_coverage()):
        assert set(areas.curves) == set(areas.aurc)
        assert all(curve[-1] == pytest.approx(areas.random) for curve in areas.curves.values())
