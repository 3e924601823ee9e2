import math

import pytest
import torch
from torch import Tensor

from training.data import IGNORE
from training.losses import cross_entropy, segmentation_loss, soft_dice


def _example(*, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 5, 6) and masks (2, 5, 6) in which one class is absent and some pixels do not count."""
    generator = torch.Generator().manual_seed(seed)
    logits_BKHW = torch.randn(2, classes, 5, 6, generator=generator)
    masks_BHW = torch.randint(classes - 1, (2, 5, 6), generator=generator)
    masks_BHW[torch.rand(2, 5, 6, generator=generator) < 0.2] = IGNORE
    return logits_BKHW, masks_BHW


def _slow_terms(logits_BKHW: Tensor, masks_BHW: Tensor) -> tuple[float, float]:
    """Cross-entropy and soft Dice, pixel by pixel in plain Python."""
    num_classes = logits_BKHW.shape[1]
    total, valid = 0.0, 0
    overlap, mass, count = ([0.0] * num_classes for _ in range(3))
    for b, y, x in torch.cartesian_prod(*(torch.arange(size) for size in masks_BHW.shape)).tolist():
        truth = int(masks_BHW[b, y, x])
        if truth == IGNORE:
            continue
        exps = [math.exp(value) for value in logits_BKHW[b, :, y, x].tolist()]
        probs = [value / sum(exps) for value in exps]
        total, valid = total - math.log(probs[truth]), valid + 1
        overlap[truth] += probs[truth]
        count[truth] += 1
        mass = [m + p for m, p in zip(mass, probs, strict=True)]
    present = [k for k in range(num_classes) if count[k]]
    dice = [2 * overlap[k] / (mass[k] + count[k]) for k in present]
    return total / valid, 1 - sum(dice) / len(present)


@pytest.mark.parametrize("seed", range(3))
def test_both_terms_equal_the_slow_version(seed: int) -> None:
    logits_BKHW, masks_BHW = _example(seed=seed)
    slow_entropy, slow_dice = _slow_terms(logits_BKHW, masks_BHW)
    assert cross_entropy(logits_BKHW, masks_BHW).item() == pytest.approx(slow_entropy, rel=1e-5)
    assert soft_dice(logits_BKHW, masks_BHW).item() == pytest.approx(slow_dice, rel=1e-5)
    both = segmentation_loss(logits_BKHW, masks_BHW, dice_weight=0.5)
    assert both.item() == pytest.approx(slow_entropy + 0.5 * slow_dice, rel=1e-5)


def test_dice_by_hand() -> None:
    # One row of three pixels: 0, 1, not counted. Probabilities of class 0: 3/4, 1/4, anything.
    logits_BKHW = torch.tensor([[3.0, 1.0, 7.0], [1.0, 3.0, 2.0]]).log()[None, :, None]
    masks_BHW = torch.tensor([[[0, 1, IGNORE]]])
    assert soft_dice(logits_BKHW, masks_BHW).item() == pytest.approx(1 - 2 * 0.75 / (1 + 1))


def test_absent_classes_are_not_in_the_mean() -> None:
    masks_BHW = torch.tensor([[[0, 1]]])
    logits_BKHW = torch.full((1, 5, 1, 2), -50.0)
    logits_BKHW[0, 0, 0, 0] = logits_BKHW[0, 1, 0, 1] = 50.0
    assert soft_dice(logits_BKHW, masks_BHW).item() == pytest.approx(0, abs=1e-6)


def test_false_positives_of_an_absent_class_still_cost() -> None:
    masks_BHW = torch.zeros(1, 1, 2, dtype=torch.long)
    logits_BKHW = torch.zeros(1, 3, 1, 2)
    logits_BKHW[0, 2, 0, 1] = 20.0
    assert soft_dice(logits_BKHW, masks_BHW).item() > 0.5


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    assert cross_entropy(torch.zeros(2, 7), torch.tensor([0, 6])).item() == pytest.approx(math.log(7))


def test_label_smoothing_is_the_mean_over_classes() -> None:
    logits_BK, truth_B = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, IGNORE])
    logs_BK = logits_BK.log_softmax(dim=1)[:3]
    hard, soft = -logs_BK.diagonal().mean(), -logs_BK.mean(dim=1).mean()
    smoothed = cross_entropy(logits_BK, truth_B, label_smoothing=0.2)
    assert smoothed.item() == pytest.approx((0.8 * hard + 0.2 * soft).item(), rel=1e-5)


def test_nothing_valid_is_zero_with_a_zero_gradient() -> None:
    logits_BKHW = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits_BKHW, torch.full((1, 2, 2), IGNORE), dice_weight=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits_BKHW.grad is not None and torch.equal(logits_BKHW.grad, torch.zeros_like(logits_BKHW))


def test_ignored_pixels_have_no_gradient() -> None:
    logits_BKHW, masks_BHW = _example()
    logits_BKHW.requires_grad_()
    segmentation_loss(logits_BKHW, masks_BHW, dice_weight=1.0).backward()  # type: ignore[no-untyped-call]
    assert logits_BKHW.grad is not None
    moves_BHW = logits_BKHW.grad.abs().sum(dim=1) > 0
    assert torch.equal(moves_BHW, masks_BHW != IGNORE)


def test_gradients_agree_with_finite_differences() -> None:
    logits_BKHW, masks_BHW = _example()
    logits_BKHW = logits_BKHW.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(x, masks_BHW, dice_weight=0.7, label_smoothing=0.1), (logits_BKHW,)
    )
