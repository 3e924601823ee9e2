"""Losses on logits: cross-entropy, and soft Dice over the classes that are present.

Dice as a loss: Milletari et al. 2016 (V-Net), https://arxiv.org/abs/1606.04797; here the denominator has no squares.

Dimensions: B batch, K classes, H, W.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.data import IGNORE


def segmentation_loss(
    logits_BKHW: Tensor, masks_BHW: Tensor, *, dice_weight: float, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy plus `dice_weight` times soft Dice.

    Args:
        logits_BKHW: float32, any values.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere.
        dice_weight: 0 leaves Dice out.
        label_smoothing: share of the target spread evenly over the classes (cross-entropy only), 0 to 1.

    Returns:
        A scalar; 0 with a zero gradient where no pixel is valid.
    """
    loss = cross_entropy(logits_BKHW, masks_BHW, label_smoothing=label_smoothing)
    if dice_weight:
        loss = loss + dice_weight * soft_dice(logits_BKHW, masks_BHW)
    return loss


def cross_entropy(logits_BK: Tensor, truth_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean of -log softmax(logits)[truth] over the valid elements, of masks and of labels alike.

    Args:
        logits_BK: float32 (B, K, H, W) or (B, K).
        truth_B: int64 (B, H, W) or (B,), class indices or `IGNORE`.
        label_smoothing: share of the target spread evenly over the classes, 0 to 1.

    Returns:
        A scalar, at least 0; 0 where nothing is valid (torch's own mean would be 0 / 0).
    """
    total = functional.cross_entropy(
        logits_BK, truth_B, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (truth_B != IGNORE).sum().clamp(min=1)


def soft_dice(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """1 minus the mean, over the classes present in the batch, of D_k = 2 sum(p_k g_k) / (sum(p_k) + sum(g_k)).

    p is softmax(logits), g the one-hot truth; the sums run over all valid pixels of the batch. A class without a valid
    pixel is removed from the mean: it would add a constant 1 whatever the network does.

    Args:
        logits_BKHW: float32, any values.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere.

    Returns:
        A scalar from 0 (perfect) to 1; 0 where no pixel is valid.
    """
    num_classes = logits_BKHW.shape[1]
    valid_B1HW = (masks_BHW != IGNORE)[:, None]
    truth_BHW = masks_BHW.where(valid_B1HW[:, 0], 0)
    probs_BKHW = logits_BKHW.softmax(dim=1) * valid_B1HW
    overlap_BHW = probs_BKHW.gather(1, truth_BHW[:, None])[:, 0]
    count_K = torch.bincount(masks_BHW[valid_B1HW[:, 0]], minlength=num_classes).to(probs_BKHW.dtype)
    overlap_K = probs_BKHW.new_zeros(num_classes).index_add(0, truth_BHW.flatten(), overlap_BHW.flatten())
    dice_K = 2 * overlap_K / (probs_BKHW.sum(dim=(0, 2, 3)) + count_K).clamp(min=1e-12)
    num_present = (count_K > 0).sum()
    return torch.where(num_present > 0, 1 - dice_K.where(count_K > 0, 0).sum() / num_present.clamp(min=1), 0)
