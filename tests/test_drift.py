import numpy as np
import pytest
from prometheus_client import REGISTRY

from segserve import metrics
from segserve.drift import BINS, AnswerCounter, bin_of, summary
from segserve.prediction import ClassificationPrediction, Prediction, SegmentationPrediction
from segserve.spec import ModelSpec, ReferenceSpec

REFERENCE = ReferenceSpec(
    split="val", num_images=4, class_shares=(0.1, 0.2, 0.3, 0.4), confidence_shares={"0.5": 0.25, "1": 0.75}
)


def mask(confidence: int = 102) -> SegmentationPrediction:
    """Two pixels of class 0, one of class 1, three of class 3."""
    return SegmentationPrediction(
        mask_HW=np.array([[0, 0, 1], [3, 3, 3]], dtype=np.uint8),
        confidence_HW=np.full((2, 3), confidence, dtype=np.uint8),
        uncertainty_HW={},
        probs_KHW=None,
        mean_entropy=0.0,
        mutual_information=0.0,
        view_agreement=1.0,
        windows=1,
    )


def label() -> ClassificationPrediction:
    probs_K = np.array([0.1, 0.05, 0.75, 0.1], dtype=np.float32)
    return ClassificationPrediction(probs_K=probs_K, mean_entropy=0.0, mutual_information=0.0, view_agreement=1.0)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


@pytest.mark.parametrize(
    ("prediction", "counts_K", "confidence"), [(mask(), [2, 1, 0, 3], 0.4), (label(), [0, 0, 1, 0], 0.75)]
)
def test_an_answer_in_short(prediction: Prediction, counts_K: list[int], confidence: float) -> None:
    counted = summary(prediction, num_classes=4)
    assert counted.counts_K == counts_K
    assert counted.confidence == pytest.approx(confidence)


def test_bins_are_those_of_the_histogram() -> None:
    assert len(BINS) == len(metrics.SHARES) and BINS[0] == "0.5" and BINS[-1] == "1"
    assert [bin_of(share) for share in (0.0, 0.5, 0.51, 0.999, 1.0, 1.0000001)] == ["0.5", "0.5", "0.6", "1", "1", "1"]


def test_before_the_first_answer_all_is_zero(spec: ModelSpec) -> None:
    AnswerCounter(spec, name="fresh", version="1.0")
    for entry in spec.class_names:
        assert value("segserve_class_pixels_total", model="fresh", version="1.0", **{"class": entry}) == 0
    for entry in BINS:
        assert value("segserve_confidence_images_total", model="fresh", version="1.0", bin=entry) == 0
    assert value("segserve_reference_class_share", model="fresh", version="1.0", **{"class": "sky"}) is None


def test_answers_are_counted(spec: ModelSpec) -> None:
    counter = AnswerCounter(spec.model_copy(update={"reference": REFERENCE}), name="counted", version="1.0")
    counter.count(mask())
    counter.count(mask(confidence=255))
    pixels = [
        value("segserve_class_pixels_total", model="counted", version="1.0", **{"class": name})
        for name in spec.class_names
    ]
    assert pixels == [4, 2, 0, 6]
    assert value("segserve_confidence_images_total", model="counted", version="1.0", bin="0.5") == 1
    assert value("segserve_confidence_images_total", model="counted", version="1.0", bin="1") == 1
    assert value("segserve_confidence_sum", model="counted") == pytest.approx(1.4)
    assert value("segserve_reference_class_share", model="counted", version="1.0", **{"class": "car"}) == 0.4
    assert value("segserve_reference_confidence_share", model="counted", version="1.0", bin="1") == 0.75


def test_labels_are_counted_by_image(labels_spec: ModelSpec) -> None:
    AnswerCounter(labels_spec, name="labelled", version="1.0").count(label())
    assert value("segserve_class_images_total", model="labelled", version="1.0", **{"class": "tree"}) == 1
    assert value("segserve_class_pixels_total", model="labelled", version="1.0", **{"class": "tree"}) is None


def test_a_reference_of_other_classes_is_refused(spec: ModelSpec) -> None:
    other = REFERENCE.model_copy(update={"class_shares": (0.5, 0.5)})
    with pytest.raises(ValueError, match=r"expected reference\.class_shares of 4 classes, but got 2"):
        ModelSpec.model_validate({**spec.model_dump(), "reference": other.model_dump()})
