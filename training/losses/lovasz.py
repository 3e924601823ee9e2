"""Lovász-Softmax: the IoU itself made differentiable, Berman et al. 2018, https://arxiv.org/abs/1705.08790.

Dimensions: B batch, K classes, H, W, G groups (1, or the images), N pixels of a group.
"""

import torch
from torch import Tensor

from training.data import IGNORE
from training.losses.cross_entropy import full_precision
from training.losses.overlap import mean_over_present, one_hot
from training.losses.terms import Per


def lovasz_softmax(logits_BKHW: Tensor, masks_BHW: Tensor, *, per: Per = "batch") -> Tensor:
    """The Lovász extension of 1 - IoU, mean over the classes present; equal to it where all probabilities are 0 or 1.

    For each class: the errors m (1 - p where the truth is this class, p elsewhere), sorted from the largest, each
    times what the set of pixels up to it adds to 1 - IoU if all of them are wrong. The paper's authors advise to begin
    with cross-entropy, or to keep it beside this loss.

    Args:
        logits_BKHW: any values; half precision is raised to float32.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere.
        per: batch comes near the data set's mIoU, image near the mean of the images' own.

    Returns:
        A scalar from 0 (perfect) to 1; 0 with a zero gradient where no pixel is valid.
    """
    probs_BKHW = full_precision(logits_BKHW).softmax(dim=1)
    truth_BKHW = one_hot(masks_BHW, logits_BKHW.shape[1])
    # An error of 0 adds nothing, wherever it is sorted.
    errors_BKHW = (probs_BKHW - truth_BKHW.to(probs_BKHW.dtype)).abs() * (masks_BHW != IGNORE)[:, None]
    sorted_GKN, order_GKN = _pixels_last(errors_BKHW, per).sort(dim=2, descending=True)
    truth_GKN = _pixels_last(truth_BKHW, per)
    loss_GK = (sorted_GKN * _jaccard_steps(truth_GKN.gather(2, order_GKN)).to(sorted_GKN.dtype)).sum(dim=2)
    return mean_over_present(loss_GK, truth_GKN.any(dim=2))


def _pixels_last(values_BKHW: Tensor, per: Per) -> Tensor:
    values_BKN = values_BKHW.flatten(start_dim=2)
    return values_BKN if per == "image" else values_BKN.transpose(0, 1).flatten(start_dim=1)[None]


def _jaccard_steps(truth_GKN: Tensor) -> Tensor:
    """By how much 1 - IoU grows when the n-th pixel is wrong after the first n - 1 are: (G, K, N) float32.

    A wrong pixel of the class takes 1 from the intersection I: 1 / U. One outside adds 1 to the union U:
    I / (U - 1) - I / U = I / (U (U - 1)). Written so, nothing cancels.
    """
    missed_GKN = truth_GKN.cumsum(dim=2, dtype=torch.int32)
    intersection_GKN = missed_GKN[..., -1:] - missed_GKN
    union_GKN = intersection_GKN + torch.arange(1, truth_GKN.shape[2] + 1, dtype=torch.int32, device=truth_GKN.device)
    outside_GKN = intersection_GKN / (union_GKN - 1).clamp(min=1)
    return torch.where(truth_GKN, 1, outside_GKN) / union_GKN
