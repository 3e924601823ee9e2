import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segserve.artifact import Artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import ClassificationPrediction, SegmentationPrediction
from segserve.spec import Certificate
from tests.conftest import CERTIFICATE, random_image
from training.certificate import Comparison, EngineRefused, Timed, certify, refuse_losses
from training.evaluate import Outcome
from training.layouts import Dataset, Sample, open_dataset
from training.metrics import confusion_matrix

NOWHERE = Sample(image=Path("image"), truth=0)


def of_mask(mask: list[list[int]], truth: list[list[int]], sure: float) -> Outcome:
    """Two classes; the chosen one has the probability `sure`."""
    mask_HW, truth_HW = np.array(mask, dtype=np.uint8), np.array(truth, dtype=np.uint8)
    probs_KHW = np.where(np.arange(2)[:, None, None] == mask_HW, sure, 1 - sure).astype(np.float16)
    prediction = SegmentationPrediction(
        mask_HW=mask_HW,
        confidence_HW=mask_HW,
        uncertainty_HW={},
        probs_KHW=probs_KHW,
        mean_entropy=0,
        mutual_information=0,
        view_agreement=1,
        windows=1,
    )
    matrix = confusion_matrix(truth_HW, mask_HW, num_classes=2)
    return Outcome(
        sample=NOWHERE,
        image_HWC=np.zeros((2, 2, 3), dtype=np.uint8),
        truth=truth_HW,
        prediction=prediction,
        confusion_KK=matrix,
    )


def of_label(probs: list[float], truth: int) -> Outcome:
    probs_K: NDArray[np.float32] = np.array(probs, dtype=np.float32)
    prediction = ClassificationPrediction(probs_K=probs_K, mean_entropy=0, mutual_information=0, view_agreement=1)
    truth_1, predicted = np.asarray(truth, dtype=np.uint8), np.asarray(probs_K.argmax(), dtype=np.uint8)
    return Outcome(
        sample=NOWHERE,
        image_HWC=np.zeros((2, 2, 3), dtype=np.uint8),
        truth=truth_1,
        prediction=prediction,
        confusion_KK=confusion_matrix(truth_1, predicted, num_classes=len(probs)),
    )


def test_masks_by_hand() -> None:
    """Truth 4 + 4 pixels. Torch is right; the engine has one of class 1 wrong: IoU 4/5 and 3/4."""
    comparison = Comparison()
    truth = [[0, 0], [1, 1]]
    comparison.add(of_mask(truth, truth, 0.75), of_mask([[0, 0], [0, 1]], truth, 0.75))
    comparison.add(of_mask(truth, truth, 0.75), of_mask(truth, truth, 0.875))
    assert (comparison.same, comparison.count, comparison.shift) == (7, 8, 0.5)
    assert comparison.scores("segmentation") == (1.0, pytest.approx((4 / 5 + 3 / 4) / 2))


def test_void_counts_for_the_agreement_but_not_for_the_score() -> None:
    comparison = Comparison()
    truth = [[0, 255], [1, 1]]
    comparison.add(of_mask([[0, 0], [1, 1]], truth, 0.9), of_mask([[0, 1], [1, 1]], truth, 0.9))
    assert (comparison.same, comparison.count) == (3, 4)
    assert comparison.scores("segmentation") == (1.0, 1.0)


def test_labels_by_hand() -> None:
    comparison = Comparison()
    comparison.add(of_label([0.75, 0.25], 0), of_label([0.625, 0.375], 0))
    comparison.add(of_label([0.25, 0.75], 1), of_label([0.5, 0.5], 1))
    assert (comparison.same, comparison.count, comparison.shift) == (1, 2, 0.25)
    assert comparison.scores("classification") == (1.0, 0.5)


def certificate(*, engine_score: float, agreement: float) -> Certificate:
    return CERTIFICATE.model_copy(update={"engine_score": engine_score, "agreement": agreement})


@pytest.mark.parametrize(
    ("engine_score", "agreement", "passes"),
    [
        (0.7, 1.0, True),
        (0.71, 0.99, True),
        (0.6951, 0.995, True),
        (0.6949, 0.995, False),
        (0.7, 0.9899, False),
        (float("nan"), 1.0, False),
    ],
)
def test_half_a_point_and_one_pixel_of_a_hundred_are_the_most(
    engine_score: float, agreement: float, passes: bool
) -> None:
    found = certificate(engine_score=engine_score, agreement=agreement)
    if passes:
        refuse_losses(found, name="openvino-int8")
    else:
        with pytest.raises(EngineRefused, match="expected openvino-int8 to lose at most"):
            refuse_losses(found, name="openvino-int8")


def test_a_refusal_is_one_sentence_with_the_figures() -> None:
    with pytest.raises(EngineRefused) as caught:
        refuse_losses(certificate(engine_score=0.65, agreement=0.97), name="openvino-int8")
    assert str(caught.value) == (
        "expected openvino-int8 to lose at most 0.5 points of miou and to agree with torch on 99%, but on 2 images of "
        "val it loses 5.00 points (0.7000 to 0.6500) and agrees on 97.00%: take --engine openvino, in float32, or torch"
    )


@pytest.fixture
def dataset(tmp_path: Path, artifact: Artifact) -> Dataset:
    """Nine val images, more than are predicted at once."""
    classes = [entry.model_dump() for entry in artifact.spec.classes]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir(parents=True)
    for index in range(9):
        Image.fromarray(random_image(40, 60, seed=index)).save(tmp_path / f"images/val/{index}.png")
        Image.fromarray(random_image(40, 60, seed=index)[..., 0] % 4).save(tmp_path / f"masks/val/{index}.png")
    return open_dataset(tmp_path, "segmentation")


class Perturbed(TorchEngine):
    """Adds a constant to one class's logits."""

    name = "perturbed"

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        logits_BKHW = super().__call__(images_BCHW)
        logits_BKHW[:, 1] += 3
        return logits_BKHW


def test_the_same_network_loses_nothing(artifact: Artifact, dataset: Dataset) -> None:
    found = certify(artifact.spec, artifact.network, TorchEngine(artifact.network, precision="float32"), dataset)
    assert (found.split, found.num_images, found.score) == ("val", 9, "miou")
    assert found.torch_score == found.engine_score
    assert (found.agreement, found.max_probability_shift) == (1.0, 0.0)
    assert found.torch_images_per_second > 0 < found.engine_images_per_second
    assert f"torch {torch.__version__.partition('+')[0]}" in found.machine
    refuse_losses(found, name="openvino")


def test_another_network_is_refused(artifact: Artifact, dataset: Dataset) -> None:
    found = certify(artifact.spec, artifact.network, Perturbed(artifact.network, precision="float32"), dataset)
    assert found.agreement < 0.9
    assert found.max_probability_shift > 0.2
    with pytest.raises(EngineRefused, match="on 9 images of val it loses"):
        refuse_losses(found, name="openvino-int8")


def test_nothing_held_out_is_nothing_to_measure_on(artifact: Artifact, dataset: Dataset) -> None:
    empty = replace(dataset, splits={**dataset.splits, "val": ()})
    with pytest.raises(ValueError, match="to have images in split 'val'"):
        certify(artifact.spec, artifact.network, TorchEngine(artifact.network), empty)


def test_the_clock_counts_images_and_hands_logits_on(artifact: Artifact) -> None:
    timed = Timed(TorchEngine(artifact.network))
    images_BCHW = torch.randn(3, 3, 32, 32)
    assert torch.equal(timed(images_BCHW), TorchEngine(artifact.network)(images_BCHW))
    assert (timed.name, timed.device, len(timed.rates)) == ("torch", torch.device("cpu"), 1)
    assert timed.rates[0] > 0
