"""Losses of regions, on softmax probabilities: Dice, Jaccard (IoU) and Tversky.

- Dice: Milletari et al. 2016 (V-Net), https://arxiv.org/abs/1606.04797; here the denominator has no squares.
- Jaccard: Rahman and Wang 2016, https://doi.org/10.1007/978-3-319-50835-1_22. On masks of class indices, as here, it
  equals the Jaccard metric loss of Wang et al. 2023, https://arxiv.org/abs/2302.05666.
- Tversky: Salehi et al. 2017, https://arxiv.org/abs/1706.05721
- Focal Tversky: Abraham and Khan 2018, https://arxiv.org/abs/1810.07842; the power is taken for each class, and the
  mean after it.

p is softmax(logits), g the one-hot truth; for each class k, overlap = sum(p_k g_k), mass = sum(p_k), count = sum(g_k)
over the valid pixels of the batch, or of each image. The mean goes over the classes that are present, that is have a
valid pixel (there): an absent class would add a constant 1 whatever the network does. What is taken for it wrongly is
missing elsewhere, and costs there. Per image, the mean over the classes of each image comes first, then that over the
images.

Dimensions: B batch, K classes, H, W, G groups (1, or the images).
"""

import torch
from torch import Tensor

from training.data import IGNORE
from training.losses.cross_entropy import full_precision
from training.losses.terms import Per


def soft_dice(logits_BKHW: Tensor, masks_BHW: Tensor, *, per: Per = "batch") -> Tensor:
    """1 minus the mean, over the classes present, of 2 overlap / (mass + count): `soft_tversky` with 1/2, 1/2."""
    return soft_tversky(logits_BKHW, masks_BHW, alpha=0.5, beta=0.5, per=per)


def soft_jaccard(logits_BKHW: Tensor, masks_BHW: Tensor, *, per: Per = "batch") -> Tensor:
    """1 minus the mean, over the classes present, of overlap / (mass + count - overlap): `soft_tversky` with 1, 1."""
    return soft_tversky(logits_BKHW, masks_BHW, alpha=1.0, beta=1.0, per=per)


def soft_tversky(
    logits_BKHW: Tensor, masks_BHW: Tensor, *, alpha: float, beta: float, gamma: float = 1.0, per: Per = "batch"
) -> Tensor:
    """Mean over the classes present of (1 - T_k)^gamma, T = TP / (TP + alpha FP + beta FN).

    TP = overlap, FP = mass - overlap, FN = count - overlap.

    Args:
        logits_BKHW: any values; half precision is raised to float32.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere.
        alpha: at least 0, the price of pixels found wrongly.
        beta: above 0, the price of pixels missed.
        gamma: above 0. The paper writes 1 / gamma for it: its best value, 4/3, is 0.75 here.
        per: batch, or image.

    Returns:
        A scalar from 0 (perfect) to 1; 0 with a zero gradient where no pixel is valid.
    """
    overlap_GK, mass_GK, count_GK = _sums(logits_BKHW, masks_BHW, per)
    wrong_GK = alpha * (mass_GK - overlap_GK) + beta * (count_GK - overlap_GK)
    loss_GK = wrong_GK / (overlap_GK + wrong_GK).clamp(min=1e-12)
    if gamma != 1:
        loss_GK = loss_GK.clamp(min=1e-7) ** gamma  # a power below 1 has no slope at 0
    return mean_over_present(loss_GK, count_GK > 0)


def mean_over_present(loss_GK: Tensor, present_GK: Tensor) -> Tensor:
    """The mean over the groups that have a class present, of each group's mean over its classes present; or 0."""
    loss_G = loss_GK.where(present_GK, 0).sum(dim=1) / present_GK.sum(dim=1).clamp(min=1)
    return loss_G.sum() / present_GK.any(dim=1).sum().clamp(min=1)


def one_hot(masks_BHW: Tensor, num_classes: int) -> Tensor:
    """(B, K, H, W) bool; nowhere true for `IGNORE`."""
    classes_K = torch.arange(num_classes, device=masks_BHW.device)
    return masks_BHW[:, None] == classes_K[:, None, None]


def _sums(logits_BKHW: Tensor, masks_BHW: Tensor, per: Per) -> tuple[Tensor, Tensor, Tensor]:
    probs_BKHW = full_precision(logits_BKHW).softmax(dim=1)
    truth_BKHW = one_hot(masks_BHW, logits_BKHW.shape[1])
    valid_B1HW = (masks_BHW != IGNORE)[:, None]
    sums = ((probs_BKHW * truth_BKHW), (probs_BKHW * valid_B1HW), truth_BKHW)
    dims = (0, 2, 3) if per == "batch" else (2, 3)
    overlap_GK, mass_GK, count_GK = (part.sum(dim=dims).reshape(-1, logits_BKHW.shape[1]) for part in sums)
    return overlap_GK, mass_GK, count_GK
