import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional

from tests.masks_and_logits import example, valid_pixels
from training.data import IGNORE
from training.losses.overlap import soft_dice, soft_jaccard, soft_tversky
from training.losses.terms import Per


def _slow(logits_BKHW: Tensor, masks_BHW: Tensor, *, alpha: float, beta: float, gamma: float, per: Per) -> float:
    """Tversky pixel by pixel."""
    if per == "image":
        images = zip(logits_BKHW.split(1), masks_BHW.split(1), strict=True)
        kept = [pair for pair in images if (pair[1] != IGNORE).any()]
        return sum(_slow(*pair, alpha=alpha, beta=beta, gamma=gamma, per="batch") for pair in kept) / len(kept)
    true, wrong, missed = ([0.0] * logits_BKHW.shape[1] for _ in range(3))
    present = set()
    for _, _, _, truth, probs in valid_pixels(logits_BKHW, masks_BHW):
        present.add(truth)
        true[truth] += probs[truth]
        missed[truth] += 1 - probs[truth]
        for k, prob in enumerate(probs):
            wrong[k] += prob if k != truth else 0
    losses = [1 - true[k] / (true[k] + alpha * wrong[k] + beta * missed[k]) for k in present]
    return sum(loss**gamma for loss in losses) / len(losses)


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(0.5, 0.5, 1), (1, 1, 1), (0.3, 0.7, 0.75), (0, 1, 2)])
def test_tversky_equals_the_slow_version(alpha: float, beta: float, gamma: float, per: Per) -> None:
    logits_BKHW, masks_BHW = example()
    masks_BHW[1][masks_BHW[1] == 0] = 1  # so that the images have different classes
    found = soft_tversky(logits_BKHW, masks_BHW, alpha=alpha, beta=beta, gamma=gamma, per=per)
    slow = _slow(logits_BKHW, masks_BHW, alpha=alpha, beta=beta, gamma=gamma, per=per)
    assert found.item() == pytest.approx(slow, rel=1e-5)


def test_images_without_a_valid_pixel_are_not_in_the_mean_per_image() -> None:
    logits_BKHW, masks_BHW = example()
    masks_BHW[1] = IGNORE
    alone = soft_dice(logits_BKHW[:1], masks_BHW[:1], per="image")
    assert soft_dice(logits_BKHW, masks_BHW, per="image").item() == pytest.approx(alone.item())


def test_by_hand() -> None:
    # One row of three pixels: 0, 1, not counted. Probabilities of class 0: 3/4, 1/4, anything.
    logits_BKHW = torch.tensor([[3.0, 1.0, 7.0], [1.0, 3.0, 2.0]]).log()[None, :, None]
    masks_BHW = torch.tensor([[[0, 1, IGNORE]]])
    assert soft_dice(logits_BKHW, masks_BHW).item() == pytest.approx(1 - 2 * 0.75 / (1 + 1))
    assert soft_jaccard(logits_BKHW, masks_BHW).item() == pytest.approx(1 - 0.75 / 1.25)
    tversky = soft_tversky(logits_BKHW, masks_BHW, alpha=0.2, beta=0.6, gamma=2)
    assert tversky.item() == pytest.approx((0.2 / 0.95) ** 2)


def test_jaccard_is_the_jaccard_metric_loss_on_masks_of_indices() -> None:
    """1 - (|p + g| - |p - g|) / (|p + g| + |p - g|), of each class, Wang et al. 2023."""
    logits_BKHW, masks_BHW = example()
    masks_BHW = masks_BHW.where(masks_BHW != IGNORE, 0)
    probs_KN = logits_BKHW.softmax(dim=1).transpose(0, 1).flatten(1)[:3]
    truth_KN = functional.one_hot(masks_BHW, 3).permute(3, 0, 1, 2).flatten(1)
    total_K, apart_K = (probs_KN + truth_KN).sum(dim=1), (probs_KN - truth_KN).abs().sum(dim=1)
    metric = (1 - (total_K - apart_K) / (total_K + apart_K)).mean()
    assert soft_jaccard(logits_BKHW, masks_BHW).item() == pytest.approx(metric.item(), rel=1e-5)


def test_false_positives_of_an_absent_class_still_cost() -> None:
    masks_BHW = torch.zeros(1, 1, 2, dtype=torch.long)
    logits_BKHW = torch.zeros(1, 3, 1, 2)
    logits_BKHW[0, 2, 0, 1] = 20.0
    assert soft_dice(logits_BKHW, masks_BHW).item() > 0.5


def test_the_slope_is_finite_where_the_network_is_right() -> None:
    logits_BKHW = torch.tensor([200.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    loss = soft_tversky(logits_BKHW, torch.zeros(1, 1, 1, dtype=torch.long), alpha=0.3, beta=0.7, gamma=0.75)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() < 1e-4
    assert logits_BKHW.grad is not None and logits_BKHW.grad.isfinite().all()


# --- segmentation_models_pytorch, where it is right and where it is not ---


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (soft_dice, DiceLoss("multiclass")),
        (soft_jaccard, JaccardLoss("multiclass")),
        (lambda z, y: soft_tversky(z, y, alpha=0.3, beta=0.7), TverskyLoss("multiclass", alpha=0.3, beta=0.7)),
    ],
    ids=["dice", "jaccard", "tversky"],
)
def test_all_classes_present_and_valid_is_smps_loss(ours, theirs) -> None:  # type: ignore[no-untyped-def]
    logits_BKHW, masks_BHW = example()
    logits_BKHW, masks_BHW = logits_BKHW[:, :3], masks_BHW.where(masks_BHW != IGNORE, 0)
    assert set(masks_BHW.unique().tolist()) == {0, 1, 2}
    assert ours(logits_BKHW, masks_BHW).item() == pytest.approx(theirs(logits_BKHW, masks_BHW).item(), rel=1e-5)


def test_an_absent_class_leaves_the_divisor_here_but_not_in_smp() -> None:
    """A rival's defect: half of four classes are absent, so smp halves the loss of a network that is all wrong."""
    masks_BHW = torch.tensor([[[0, 1]]])
    logits_BKHW = torch.full((1, 4, 1, 2), -50.0)
    logits_BKHW[0, 1, 0, 0] = logits_BKHW[0, 0, 0, 1] = 50.0
    for ours, theirs in [(soft_dice, DiceLoss), (soft_jaccard, JaccardLoss)]:
        assert ours(logits_BKHW, masks_BHW).item() == pytest.approx(1)
        assert theirs("multiclass")(logits_BKHW, masks_BHW).item() == pytest.approx(0.5)


def test_the_power_is_taken_before_the_mean_here_but_after_it_in_smp() -> None:
    """A rival's defect: of two classes with losses a and b it takes ((a + b) / 2)^2, not (a^2 + b^2) / 2."""
    # Truth 0, 0, 1; probabilities of class 0: 1, 1/2, 0.
    logits_BKHW = torch.tensor([[50.0, 0.0, -50.0], [-50.0, 0.0, 50.0]])[None, :, None]
    masks_BHW = torch.tensor([[[0, 0, 1]]])
    losses = [1 - 1.5 / (1.5 + 0.5 * 0.5), 1 - 1 / (1 + 0.5 * 0.5)]
    found = soft_tversky(logits_BKHW, masks_BHW, alpha=0.5, beta=0.5, gamma=2)
    assert found.item() == pytest.approx(sum(loss**2 for loss in losses) / 2)
    theirs = TverskyLoss("multiclass", alpha=0.5, beta=0.5, gamma=2)(logits_BKHW, masks_BHW)
    assert theirs.item() == pytest.approx((sum(losses) / 2) ** 2)
    assert found.item() != pytest.approx(theirs.item(), rel=0.01)
