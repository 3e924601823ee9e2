"""Losses that look at borders: more weight near them, forgiveness on them, and the distance to them.

- Border weights: Ronneberger et al. 2015 (U-Net), https://arxiv.org/abs/1505.04597
- Boundary label relaxation: Zhu et al. 2019, https://arxiv.org/abs/1812.01593
- Boundary loss: Kervadec et al. 2019, https://arxiv.org/abs/1812.07032

Distances are Euclidean, exact, in pixels between pixel centres. They are functions of the masks alone, computed on the
CPU in threads (scipy's transform lets others run meanwhile): about 10 ms of one core a map of 352 x 480 pixels.

Dimensions: B batch, K classes, H, W.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

from training.data import IGNORE
from training.losses.cross_entropy import element_weights, full_precision, weighted_mean
from training.losses.overlap import one_hot

MOST_THREADS = 16


def border_weights(masks_BHW: Tensor, *, w0: float = 10.0, sigma: float = 5.0) -> Tensor:
    """U-Net's w0 exp(-(d1 + d2)^2 / (2 sigma^2)), for masks of classes: what a pixel weighs on top of its class.

    The paper's d1 and d2 are the distances to the two nearest instances. Masks of classes have none, so both are the
    distance to the nearest class change here: to the nearest pixel with a side neighbour of another class, 0 on it.
    `IGNORE` is no class.

    Args:
        masks_BHW: int64 class indices or `IGNORE`.
        w0: the weight at a class change.
        sigma: in pixels.

    Returns:
        (B, H, W) float32 from 0 to w0, on the masks' device; 0 in an image of one class.
    """
    distance_BHW = _distances(_class_changes(masks_BHW))
    return w0 * torch.exp(-2 * (distance_BHW / sigma) ** 2)


def _class_changes(masks_BHW: Tensor) -> Tensor:
    """(B, H, W) bool: pixels with a side neighbour of another class."""
    changes_BHW = torch.zeros_like(masks_BHW, dtype=torch.bool)
    for dim in (1, 2):
        size = masks_BHW.shape[dim] - 1
        one, other = masks_BHW.narrow(dim, 0, size), masks_BHW.narrow(dim, 1, size)
        differ = (one != other) & (one != IGNORE) & (other != IGNORE)
        changes_BHW.narrow(dim, 0, size).logical_or_(differ)
        changes_BHW.narrow(dim, 1, size).logical_or_(differ)
    return changes_BHW


def relaxed_cross_entropy(
    logits_BKHW: Tensor, masks_BHW: Tensor, *, radius: int = 1, class_weights_K: Tensor | None = None
) -> Tensor:
    """Weighted mean of -log of the probability of all classes within `radius` pixels together.

    Within means in the square of 2 radius + 1 pixels around a pixel: off the borders this is cross-entropy, on them
    neither side is punished.

    Args:
        logits_BKHW: any values; half precision is raised to float32.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere, and is no class of a neighbourhood.
        radius: at least 0, in pixels; 0 is cross-entropy.
        class_weights_K: at least 0; a pixel has the weight of its own class. All 1 if not given.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no pixel is valid.
    """
    logits_BKHW = full_precision(logits_BKHW)
    truth_BKHW = one_hot(masks_BHW, logits_BKHW.shape[1])
    near_BKHW = functional.max_pool2d(truth_BKHW.float(), 2 * radius + 1, stride=1, padding=radius) > 0
    accepted_BKHW = near_BKHW | (masks_BHW == IGNORE)[:, None]
    chosen_BHW = logits_BKHW.masked_fill(~accepted_BKHW, -torch.inf).logsumexp(dim=1)
    loss_BHW = logits_BKHW.logsumexp(dim=1) - chosen_BHW
    return weighted_mean(loss_BHW, element_weights(masks_BHW, class_weights_K, like=loss_BHW))


def boundary_loss(logits_BKHW: Tensor, masks_BHW: Tensor, signed_BKHW: Tensor) -> Tensor:
    """Mean over the valid pixels, and over all classes, of softmax(logits) times the signed distances.

    Args:
        logits_BKHW: any values; half precision is raised to float32.
        masks_BHW: int64 class indices; `IGNORE` counts nowhere.
        signed_BKHW: the masks' `signed_distances`.

    Returns:
        A scalar in pixels, negative where the probabilities lie inside; 0 with a zero gradient where no pixel is valid.
    """
    probs_BKHW = full_precision(logits_BKHW).softmax(dim=1)
    cost_BHW = (probs_BKHW * signed_BKHW.to(probs_BKHW.dtype)).mean(dim=1)
    return weighted_mean(cost_BHW, element_weights(masks_BHW, None, like=cost_BHW))


def signed_distances(masks_BHW: Tensor, *, num_classes: int) -> Tensor:
    """How far each pixel is from each class, negative inside it, as in the paper's code.

    Outside a class: the distance to its nearest pixel, at least 1. Inside: 1 minus the distance to the nearest valid
    pixel of another class, so 0 on the contour and less further in. 0 for a class that the image does not have, and in
    an image of one class.

    Args:
        masks_BHW: int64 class indices or `IGNORE`.
        num_classes: K.

    Returns:
        (B, K, H, W) float32, in pixels, on the masks' device; of no meaning on pixels that are `IGNORE`.
    """
    truth_BKHW = one_hot(masks_BHW, num_classes)
    # Infinite where an image does not have the class. The nearest pixel of another class is that of the nearest one.
    outside_BKHW = _distances(truth_BKHW.flatten(end_dim=1)).reshape(truth_BKHW.shape)
    others_BKHW = outside_BKHW.masked_fill(truth_BKHW, torch.inf).amin(dim=1, keepdim=True)
    signed_BKHW = torch.where(truth_BKHW, 1 - others_BKHW, outside_BKHW)
    return signed_BKHW.masked_fill(signed_BKHW.isinf(), 0)


def _distances(marked_BHW: Tensor) -> Tensor:
    """(B, H, W) float32: distance to the nearest marked pixel; infinite in an image without one."""
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        maps = list(pool.map(_distance, marked_BHW.cpu().numpy()))
    return torch.from_numpy(np.stack(maps)).to(marked_BHW.device)


def _distance(marked_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    if not marked_HW.any():
        return np.full(marked_HW.shape, np.inf, dtype=np.float32)
    return np.asarray(distance_transform_edt(~marked_HW), dtype=np.float32)
