"""How good is a mask that nobody has labelled? Scores of an image, each 0 to 1, and 1 where there is no doubt.

Stability: Yang et al. 2022 (ST++), https://arxiv.org/abs/2106.05095. Expected IoU: that of the mask with a truth drawn
pixel by pixel from the probabilities, as the ratio of the expectations. The area under the ROC curve: Hanley and McNeil
1982, https://doi.org/10.1148/radiology.143.1.7063747.

Dimensions: K classes, N images, H, W.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from segserve.prediction import SegmentationPrediction
from training.boundary import BAND, contour_distance
from training.metrics import confusion_matrix, image_miou

ScoreName = Literal[
    "expected_iou", "confidence", "view_agreement", "class_agreement", "information", "border", "stability"
]
"""`expected_iou`: see the function.
`confidence`: the mean over the pixels.
`view_agreement`: share of the views' pixels that agree with the aggregate.
`class_agreement`: the same, the mean over the classes of the mask.
`information`: 1 - mutual information of view and class.
`border`: 1 - mean entropy within 3 pixels of a border.
`stability`: mean IoU of earlier checkpoints' masks and this one."""

MISSED_SHARE = 0.03
"""Of the image: where the probabilities of a class that the mask does not have add up to so much, it counts in full."""


def image_scores(prediction: SegmentationPrediction, *, earlier: Sequence[NDArray[np.uint8]] = ()) -> dict[str, float]:
    """All scores of an image.

    Args:
        prediction: with probabilities (8 bits) and all maps of doubt.
        earlier: masks (H, W) of earlier checkpoints; without any, there is no `stability`.

    Returns:
        By the names of `ScoreName`.
    """
    mask_HW, probs_KHW = prediction.mask_HW, prediction.probs_KHW
    assert probs_KHW is not None
    agreement_HW = 1 - prediction.uncertainty_HW["disagreement"] / 255
    scores: dict[ScoreName, float] = {
        "expected_iou": expected_iou(probs_KHW, mask_HW),
        "confidence": float(prediction.confidence_HW.mean() / 255),
        "view_agreement": prediction.view_agreement,
        "class_agreement": float(np.mean([agreement_HW[mask_HW == k].mean() for k in np.unique(mask_HW)])),
        "information": 1 - prediction.mutual_information,
        "border": 1 - _border_entropy(mask_HW, prediction.uncertainty_HW["entropy"]),
    }
    if earlier:
        scores["stability"] = float(np.mean([agreement(mask_HW, other_HW) for other_HW in earlier]))
    return {name: round(min(max(value, 0.0), 1.0), 6) for name, value in scores.items()}


def expected_iou(probs_KHW: NDArray[np.generic], mask_HW: NDArray[np.uint8]) -> float:
    """Mean over the classes of the expected overlap over the expected union.

    A class that the mask does not have was missed: it counts 0, with a weight of its expected share of the image over
    `MISSED_SHARE`, 1 at most.

    Args:
        probs_KHW: any multiple of the probabilities.
        mask_HW: class indices.
    """
    sums_HW = np.maximum(probs_KHW.sum(axis=0, dtype=np.float64), 1e-9)
    total, weights = 0.0, 0.0
    for k, class_HW in enumerate(probs_KHW):
        share_HW, inside_HW = class_HW / sums_HW, mask_HW == k
        area, expected, overlap = np.count_nonzero(inside_HW), share_HW.sum(), share_HW[inside_HW].sum()
        weights += 1.0 if area else min(1.0, expected / (MISSED_SHARE * mask_HW.size))
        total += overlap / (area + expected - overlap) if area else 0.0
    return float(total / weights)


def agreement(mask_HW: NDArray[np.uint8], other_HW: NDArray[np.uint8]) -> float:
    """Mean IoU of two masks over the classes in either, 0 to 1."""
    num_classes = int(max(mask_HW.max(), other_HW.max())) + 1
    return image_miou(confusion_matrix(mask_HW, other_HW, num_classes=num_classes))


def _border_entropy(mask_HW: NDArray[np.uint8], entropy_HW: NDArray[np.uint8]) -> float:
    """Of the pixels near a border; 0 where there is none."""
    near_HW = contour_distance(mask_HW, reach=BAND) <= BAND
    return float(entropy_HW[near_HW].mean() / 255) if near_HW.any() else 0.0


def auroc(score_N: ArrayLike, is_good_N: ArrayLike) -> float:
    """How likely a good one scores higher than one that is not; a tie counts half. NaN without both kinds."""
    is_good_N = np.asarray(is_good_N, dtype=bool)
    num_good, num_bad = int(is_good_N.sum()), int((~is_good_N).sum())
    if not num_good or not num_bad:
        return float("nan")
    rank_sum = rankdata(np.asarray(score_N, dtype=np.float64))[is_good_N].sum()
    return float((rank_sum - num_good * (num_good + 1) / 2) / (num_good * num_bad))
