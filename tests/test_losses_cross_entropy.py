import math

import pytest
import torch
from segmentation_models_pytorch.losses import FocalLoss
from torch import Tensor
from torch.nn import functional

from tests.masks_and_logits import example, valid_pixels
from training.data import IGNORE
from training.losses.cross_entropy import class_counts, class_weights, cross_entropy, focal

WEIGHTS_K = torch.tensor([0.5, 2.0, 1.0, 3.0])


def _slow(logits_BKHW: Tensor, masks_BHW: Tensor, weights_K: Tensor, gamma: float) -> float:
    """Focal loss pixel by pixel; cross-entropy at gamma 0."""
    total = weight = 0.0
    for _, _, _, truth, probs in valid_pixels(logits_BKHW, masks_BHW):
        total -= float(weights_K[truth]) * (1 - probs[truth]) ** gamma * math.log(probs[truth])
        weight += float(weights_K[truth])
    return total / weight


# --- cross-entropy ---


@pytest.mark.parametrize("weights_K", [torch.ones(4), WEIGHTS_K], ids=["plain", "weighted"])
def test_cross_entropy_equals_the_slow_version_and_torch(weights_K: Tensor) -> None:
    logits_BKHW, masks_BHW = example()
    found = cross_entropy(logits_BKHW, masks_BHW, class_weights_K=weights_K).item()
    assert found == pytest.approx(_slow(logits_BKHW, masks_BHW, weights_K, 0), rel=1e-5)
    torchs = functional.cross_entropy(logits_BKHW, masks_BHW, weight=weights_K, ignore_index=IGNORE)
    assert found == pytest.approx(torchs.item(), rel=1e-5)


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    assert cross_entropy(torch.zeros(2, 7), torch.tensor([0, 6])).item() == pytest.approx(math.log(7))


def test_weighted_by_hand() -> None:
    """-ln(3/4) with weight 3 and -ln(1/2) with weight 1, divided by 4, not by 2."""
    logits_BK = torch.tensor([[3.0, 1.0], [1.0, 1.0], [5.0, 9.0]]).log()
    loss = cross_entropy(logits_BK, torch.tensor([0, 1, IGNORE]), class_weights_K=torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)


def test_label_smoothing_is_the_mean_over_classes() -> None:
    logits_BK, truth_B = torch.randn(4, 3), torch.tensor([0, 1, 2, IGNORE])
    logs_BK = logits_BK.log_softmax(dim=1)[:3]
    hard, soft = -logs_BK.diagonal().mean(), -logs_BK.mean(dim=1).mean()
    smoothed = cross_entropy(logits_BK, truth_B, label_smoothing=0.2)
    assert smoothed.item() == pytest.approx((0.8 * hard + 0.2 * soft).item(), rel=1e-5)


def test_extra_weights_are_added_to_those_of_the_classes() -> None:
    logits_BKHW, masks_BHW = example()
    extra_BHW = torch.rand(masks_BHW.shape)
    expected_BHW = (WEIGHTS_K[masks_BHW.where(masks_BHW != IGNORE, 0)] + extra_BHW) * (masks_BHW != IGNORE)
    losses_BHW = functional.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORE, reduction="none")
    found = cross_entropy(logits_BKHW, masks_BHW, class_weights_K=WEIGHTS_K, extra_B=extra_BHW)
    assert found.item() == pytest.approx(((expected_BHW * losses_BHW).sum() / expected_BHW.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("weights_K", [None, WEIGHTS_K], ids=["plain", "weighted"])
@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_shares_of_one_class_are_its_label(loss, weights_K: Tensor | None) -> None:  # type: ignore[no-untyped-def]
    logits_BK, labels_B = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 1])
    shares_BK = functional.one_hot(labels_B, 4).float()
    hard, soft = (loss(logits_BK, truth, class_weights_K=weights_K).item() for truth in (labels_B, shares_BK))
    assert soft == pytest.approx(hard, rel=1e-5)


def test_mixed_labels_by_hand() -> None:
    """Probabilities 3/4, 1/4; shares 0.6, 0.4."""
    logits_BK, shares_BK = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[0.6, 0.4]])
    assert cross_entropy(logits_BK, shares_BK).item() == pytest.approx(0.6 * math.log(4 / 3) + 0.4 * math.log(4))
    expected = 0.6 * 0.25**2 * math.log(4 / 3) + 0.4 * 0.75**2 * math.log(4)
    assert focal(logits_BK, shares_BK, gamma=2).item() == pytest.approx(expected)
    smoothed = cross_entropy(logits_BK, shares_BK, label_smoothing=0.5)
    assert smoothed.item() == pytest.approx(0.55 * math.log(4 / 3) + 0.45 * math.log(4))


# --- focal ---


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_the_slow_version(gamma: float) -> None:
    logits_BKHW, masks_BHW = example()
    found = focal(logits_BKHW, masks_BHW, gamma=gamma, class_weights_K=WEIGHTS_K)
    assert found.item() == pytest.approx(_slow(logits_BKHW, masks_BHW, WEIGHTS_K, gamma), rel=1e-5)


def test_focal_has_a_finite_slope_where_the_network_is_certain() -> None:
    logits_BK = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal(logits_BK, torch.tensor([0]), gamma=0.5).backward()  # type: ignore[no-untyped-call]
    assert logits_BK.grad is not None and logits_BK.grad.isfinite().all()


def test_two_classes_are_smps_binary_focal_loss() -> None:
    """Softmax of two classes is the sigmoid of their difference: there, both say the same."""
    logits_BKHW, masks_BHW = example(classes=3)
    logits_BKHW, masks_BHW = logits_BKHW[:, :2], masks_BHW.where(masks_BHW != IGNORE, 0)
    theirs = FocalLoss("binary", gamma=2.0)(logits_BKHW[:, 1:] - logits_BKHW[:, :1], masks_BHW[:, None])
    assert focal(logits_BKHW, masks_BHW, gamma=2.0).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_constant_on_all_logits_changes_nothing_here_but_does_in_smps_multiclass_focal_loss() -> None:
    """A rival's defect: one sigmoid a class, though the answer is the largest softmax, which such a constant leaves."""
    logits_BKHW, masks_BHW = example()
    theirs = FocalLoss("multiclass", gamma=2.0, ignore_index=IGNORE)
    assert focal(logits_BKHW + 3, masks_BHW).item() == pytest.approx(focal(logits_BKHW, masks_BHW).item(), rel=1e-5)
    assert theirs(logits_BKHW + 3, masks_BHW) > 1.5 * theirs(logits_BKHW, masks_BHW)


# --- weights of classes ---

COUNTS_NK1 = torch.tensor([[90, 10, 0, 0, 0], [40, 20, 20, 0, 20]])
"""Two images of 100 pixels, of which the second has 20 void ones; the third class is in that one only, the
fourth in none."""


def test_class_counts() -> None:
    masks = [torch.tensor([[0, 1], [1, IGNORE]], dtype=torch.uint8), torch.tensor([[2, 2]], dtype=torch.uint8)]
    assert class_counts(masks, num_classes=3).tolist() == [[1, 2, 0, 1], [0, 0, 2, 0]]
    labels = [torch.tensor(2, dtype=torch.uint8), torch.tensor(0, dtype=torch.uint8)]
    assert class_counts(labels, num_classes=3).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_median_frequency_by_hand() -> None:
    """Frequencies 130/200, 30/200 and, of the second image alone, 20/100; the median is 1/5."""
    weights_K = class_weights("median-frequency", COUNTS_NK1)
    assert weights_K.tolist() == pytest.approx([0.2 * 200 / 130, 4 / 3, 1, 0])
    roots_K = class_weights("inverse-sqrt", COUNTS_NK1)
    assert roots_K.tolist() == pytest.approx([math.sqrt(0.2 * 200 / 130), math.sqrt(4 / 3), 1, 0])
