from pathlib import Path

import numpy as np

from segserve.prediction import SegmentationPrediction
from segserve.spec import ModelSpec
from training.data import IGNORE
from training.evaluate import Outcome
from training.layouts import Sample
from training.metrics import confusion_matrix
from training.pictures import ERROR_COLOR, VOID_COLOR, error_map, paint


def test_a_mask_is_painted_in_its_classes_colours(spec: ModelSpec) -> None:
    painted = paint(np.array([[0, 3, IGNORE]], dtype=np.uint8), spec.classes)
    assert [tuple(pixel) for pixel in painted[0].tolist()] == [
        spec.classes[0].color,
        spec.classes[3].color,
        VOID_COLOR,
    ]


def test_the_error_map_marks_what_is_wrong_and_what_does_not_count() -> None:
    truth, predicted = np.array([[0, 1, IGNORE]], dtype=np.uint8), np.array([[0, 2, 2]], dtype=np.uint8)
    prediction = SegmentationPrediction(
        mask_HW=predicted,
        confidence_HW=predicted,
        uncertainty_HW={},
        probs_KHW=None,
        mean_entropy=0.1,
        mutual_information=0.0,
        view_agreement=1.0,
        windows=1,
    )
    outcome = Outcome(
        sample=Sample(image=Path("a.png"), truth=0),
        image_HWC=np.full((1, 3, 3), 128, dtype=np.uint8),
        truth=truth,
        prediction=prediction,
        confusion_KK=confusion_matrix(truth, predicted, num_classes=3),
    )
    map_HWC = error_map(outcome)
    assert map_HWC.dtype == np.uint8
    assert tuple(map_HWC[0, 1]) == ERROR_COLOR
    assert tuple(map_HWC[0, 2]) == VOID_COLOR
    assert len(set(map_HWC[0, 0])) == 1
