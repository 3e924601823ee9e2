"""Losses of single pixels (or images): cross-entropy and focal loss, and weights against the imbalance of the classes.

- Median-frequency weights: Eigen and Fergus 2015, https://arxiv.org/abs/1411.4734
- Label smoothing: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567
- Focal: Lin et al. 2017, https://arxiv.org/abs/1708.02002; here of the softmax over the classes, whose largest value is
  the answer later, and not of one sigmoid a class, which is another decision.

Dimensions: B batch, K classes, H, W, N images of a data set. Where B stands for the pixels of masks, too, the text says
so.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from training.data import IGNORE


def cross_entropy(
    logits_BK: Tensor,
    truth_B: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
    extra_B: Tensor | None = None,
) -> Tensor:
    """Weighted mean of -log softmax(logits)[truth] over the valid elements, sum(w l) / sum(w), w = w_class + extra.

    Args:
        logits_BK: (B, K, H, W) or (B, K), any values; half precision is raised to float32.
        truth_B: int64 (B, H, W) or (B,), class indices or `IGNORE`; or float (B, K), the share of each class, summing
            to 1, whose weight is the mean of its classes' weights.
        class_weights_K: at least 0; all 1 if not given.
        label_smoothing: share of the target spread evenly over the classes, 0 to 1.
        extra_B: shape of the loss, at least 0: added to the weight of the class.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where nothing is valid.
    """
    logits_BK = full_precision(logits_BK)
    if truth_B.is_floating_point():
        truth_B = truth_B.to(logits_BK)
        loss_B = functional.cross_entropy(logits_BK, truth_B, reduction="none", label_smoothing=label_smoothing)
    else:
        loss_B = functional.cross_entropy(
            logits_BK, truth_B, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORE
        )
    return weighted_mean(loss_B, element_weights(truth_B, class_weights_K, like=loss_B, extra_B=extra_B))


def focal(logits_BK: Tensor, truth_B: Tensor, *, gamma: float = 2.0, class_weights_K: Tensor | None = None) -> Tensor:
    """Weighted mean of -(1 - p)^gamma log p over the valid elements, with p = softmax(logits)[truth].

    Args:
        logits_BK: (B, K, H, W) or (B, K), any values; half precision is raised to float32.
        truth_B: as for `cross_entropy`; with shares t it is -sum over k of t_k (1 - p_k)^gamma log p_k.
        gamma: 0 is cross-entropy; the more, the less the elements count that are right already.
        class_weights_K: at least 0; all 1 if not given. They take the place of the paper's alpha.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where nothing is valid.
    """
    logs_BK = full_precision(logits_BK).log_softmax(dim=1)
    if truth_B.is_floating_point():
        loss_B = (truth_B * _focus(logs_BK, gamma)).sum(dim=1)
    else:
        loss_B = _focus(logs_BK.gather(1, truth_B.where(truth_B != IGNORE, 0)[:, None])[:, 0], gamma)
    return weighted_mean(loss_B, element_weights(truth_B, class_weights_K, like=loss_B))


def _focus(logs: Tensor, gamma: float) -> Tensor:
    # A power below 1 has no slope at 0.
    return -((-torch.expm1(logs)).clamp(min=1e-7) ** gamma) * logs


def element_weights(
    truth_B: Tensor, class_weights_K: Tensor | None, *, like: Tensor, extra_B: Tensor | None = None
) -> Tensor:
    """How much each element counts, in the dtype of `like`: its class's weight plus `extra_B`; 0 for `IGNORE`."""
    weights_K = None if class_weights_K is None else class_weights_K.to(like)
    if truth_B.is_floating_point():
        return torch.ones_like(like) if weights_K is None else truth_B.to(like) @ weights_K
    valid_B = truth_B != IGNORE
    weight_B = torch.ones_like(like) if weights_K is None else weights_K[truth_B.where(valid_B, 0)]
    return (weight_B if extra_B is None else weight_B + extra_B.to(like)) * valid_B


def weighted_mean(values_B: Tensor, weights_B: Tensor) -> Tensor:
    """sum(w v) / sum(w), a scalar; 0 where all weights are 0."""
    return (values_B * weights_B).sum() / weights_B.sum().clamp(min=torch.finfo(values_B.dtype).tiny)


def full_precision(logits: Tensor) -> Tensor:
    """float64 as it is, everything else as float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def class_counts(truths: Iterable[Tensor], *, num_classes: int) -> Tensor:
    """Pixels of each class, then void ones, in each mask (H, W), or 1 for each label (): (N, K + 1) int64."""
    counts_NV = torch.stack([torch.bincount(truth.flatten().long(), minlength=IGNORE + 1) for truth in truths])
    return torch.cat([counts_NV[:, :num_classes], counts_NV[:, IGNORE:]], dim=1)


def class_weights(rule: Literal["median-frequency", "inverse-sqrt"], counts_NK1: Tensor) -> Tensor:
    """Weights that are 1 for a class of median frequency f, and more for rarer ones.

    - `median-frequency`: median(f) / f_k.
    - `inverse-sqrt`: the square root of that, which is milder.

    f_k is the class's pixels divided by all pixels, void included, of the images in which the class occurs (Eigen and
    Fergus 2015, https://arxiv.org/abs/1411.4734); the median is that of the classes that occur. A class that never
    occurs has weight 0.

    Args:
        rule: which.
        counts_NK1: int64, pixels of each class, then void ones, in each image; labels are summed to one row before.

    Returns:
        (K,) float32.
    """
    counts_NK1 = counts_NK1.double()
    counts_NK = counts_NK1[:, :-1]
    around_K = (counts_NK1.sum(dim=1, keepdim=True) * (counts_NK > 0)).sum(dim=0)
    frequency_K = counts_NK.sum(dim=0) / around_K.clamp(min=1)
    occurs_K = frequency_K > 0
    ratio_K = torch.where(occurs_K, frequency_K[occurs_K].quantile(0.5) / frequency_K.where(occurs_K, 1), 0)
    return (ratio_K if rule == "median-frequency" else ratio_K.sqrt()).float()
