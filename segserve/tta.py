"""Test-time augmentation: see an image in several views, undo each view's geometry on the answer, aggregate.

Aggregation by the mean of probabilities: Wang et al. 2018, https://arxiv.org/abs/1807.07356 (also for the uncertainty
that comes with it). Mean of logits, as in nnU-Net, is the normalised geometric mean of the probabilities.

Dimensions: V views, K classes, H, W; `...` stands for H, W (masks) or nothing (labels).
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import assert_never

import torch
from torch import Tensor

from segserve.preprocess import Size, resize
from segserve.spec import Aggregate, Plan

SCALES = (1.0, 0.75, 1.25)
MOST_COMPARED = 64
"""Classes; with more, their comparison with the largest no longer fits in the caches."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at an image: mirrored left to right, then turned by quarter turns, then scaled."""

    hflip: bool = False
    turns: int = 0
    scale: float = 1.0

    def forward(self, image_CHW: Tensor) -> Tensor:
        """The image (..., H, W) as this view sees it."""
        if self.hflip:
            image_CHW = image_CHW.flip(-1)
        image_CHW = _turn(image_CHW, self.turns)
        height, width = image_CHW.shape[-2:]
        return resize(image_CHW, (max(1, round(height * self.scale)), max(1, round(width * self.scale))))

    def inverse(self, map_KHW: Tensor, size: Size) -> Tensor:
        """A map (K, h, w) of this view, back in the pixels of the image of `size`."""
        map_KHW = resize(map_KHW, size if self.turns % 2 == 0 else (size[1], size[0]))
        map_KHW = _turn(map_KHW, -self.turns)
        return map_KHW.flip(-1) if self.hflip else map_KHW


def _turn(map_KHW: Tensor, turns: int) -> Tensor:
    """Quarter turns; torch copies even where there are none."""
    return torch.rot90(map_KHW, turns, dims=(-2, -1)) if turns else map_KHW


PLANS: dict[Plan, tuple[View, ...]] = {
    "none": (View(),),
    "hflip": (View(), View(hflip=True)),
    "flips": (View(), View(hflip=True), View(hflip=True, turns=2), View(turns=2)),
    "d4": tuple(View(hflip=hflip, turns=turns) for hflip, turns in product((False, True), range(4))),
    "multiscale": tuple(View(scale=scale) for scale in SCALES),
    "multiscale-hflip": tuple(View(scale=scale, hflip=hflip) for scale, hflip in product(SCALES, (False, True))),
}
"""The first view of every plan is the image itself."""


def scores(logits_K: Tensor, aggregate: Aggregate, *, temperature: float = 1.0) -> Tensor:
    """What is to be aggregated of one view: its logits for `logits`, else its probabilities (K, ...)."""
    logits_K = logits_K if temperature == 1.0 else logits_K / temperature
    return logits_K if aggregate == "logits" else logits_K.softmax(dim=0)


def combine(scores_VK: Tensor, aggregate: Aggregate) -> Tensor:
    """Aggregate the views.

    Args:
        scores_VK: (V, K, ...) float, as `scores` gives them, each view already in the image's geometry.
        aggregate: `mean` of probabilities; `logits`, mean of logits; `max`, largest probability of any view,
            normalised; `vote`, the share of views that chose the class, a tie going to the larger mean probability.

    Returns:
        Probabilities (K, ...) that sum to 1 over the classes.
    """
    match aggregate:
        case "mean":
            return _mean(scores_VK)
        case "logits":
            return _mean(scores_VK).softmax(dim=0)
        case "max":
            largest_K = scores_VK.amax(dim=0)
            return largest_K / largest_K.sum(dim=0, keepdim=True)
        case "vote":
            return _vote(scores_VK)
        case _:
            assert_never(aggregate)


def _mean(scores_VK: Tensor) -> Tensor:
    return scores_VK[0] if len(scores_VK) == 1 else scores_VK.mean(dim=0)


def _vote(probs_VK: Tensor) -> Tensor:
    tie_weight = 1e-3  # far less than one vote, so that it decides ties only
    num_views, num_classes = probs_VK.shape[:2]
    winners_V = torch.stack([_winner(probs_K)[1] for probs_K in probs_VK])
    votes_K = torch.stack([(winners_V == index).sum(dim=0) for index in range(num_classes)]).to(probs_VK.dtype)
    return (votes_K + tie_weight * probs_VK.mean(dim=0)) / (num_views + tie_weight)


def entropy(probs_K: Tensor, *, dim: int = 0) -> Tensor:
    """Shannon entropy over the classes, at `dim`, divided by ln K: 0 certain, 1 uniform."""
    # torch.special.entr takes five times as long on a CPU: its logarithm is of one number at a time.
    negative_nats: Tensor = probs_K.clamp_min(torch.finfo(probs_K.dtype).tiny).log_().mul_(probs_K).sum(dim=dim)
    return negative_nats / -math.log(probs_K.shape[dim])


def largest(probs_KHW: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each pixel and its class, the first of equal ones: (H, W) and (H, W) uint8."""
    confidence_HW, mask_HW = _winner(probs_KHW)
    return confidence_HW, mask_HW.to(torch.uint8)


def _winner(scores_K: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score over the first dimension, and its index, the first of equal ones, uint8 or int64."""
    num_classes = len(scores_K)
    if scores_K.is_cuda or num_classes > MOST_COMPARED:
        values, indices = scores_K.max(dim=0)
        return values, indices
    best = scores_K.amax(dim=0)
    # On a CPU torch's max with indices takes three times as long as the largest of the ranks, of bytes, that tie, and
    # its argmax over a dimension in the middle fifteen times.
    ranks_K = torch.arange(num_classes, 0, -1, dtype=torch.uint8).view(-1, *[1] * best.dim())
    best_rank = ((scores_K == best) * ranks_K).amax(dim=0)
    return best, (num_classes - best_rank).clamp_(max=num_classes - 1)  # nothing equals NaN


def mutual_information(scores_VK: Tensor, aggregate: Aggregate) -> Tensor:
    """What the choice of a view says about the class: the entropy of the views' mean less the mean of their entropies.

    Houlsby et al. 2011, https://arxiv.org/abs/1112.5745, there of a model's parameters.

    Args:
        scores_VK: (V, K, ...) float, as `scores` gives them.
        aggregate: which scores these are.

    Returns:
        (...), divided by ln K: 0 where the views give the same probabilities, at most the entropy of their mean.
    """
    if scores_VK.shape[0] == 1:
        return torch.zeros_like(scores_VK[0, 0])
    probs_VK = scores_VK.softmax(dim=1) if aggregate == "logits" else scores_VK
    return (entropy(probs_VK.mean(dim=0)) - entropy(probs_VK, dim=1).mean(dim=0)).clamp(min=0)


def disagreement(scores_VK: Tensor, probs_K: Tensor) -> Tensor:
    """Share of the views whose class is not the aggregate's: (V, K, ...) and (K, ...) to (...), 0 to 1."""
    if scores_VK.shape[0] == 1:
        return torch.zeros_like(probs_K[0])
    _, chosen = _winner(probs_K)
    return torch.stack([_winner(scores_K)[1] != chosen for scores_K in scores_VK]).float().mean(dim=0)
