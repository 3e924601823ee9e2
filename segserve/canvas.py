"""From the scores of views to 8-bit pixels of the upright image, part by part.

Dimensions: V views, K classes, M maps (the classes' and two of doubt), H, W.
"""

from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segserve import tta
from segserve.prediction import Query, SegmentationPrediction
from segserve.spec import Aggregate, Measure, StoredPrecision
from segserve.tiling import Block

NUM_DOUBTS = 2
"""Maps after the classes': mutual information and disagreement."""


def join_views(scores_VKHW: Tensor, aggregate: Aggregate) -> Tensor:
    """(M, H, W) with M = K + 2: the class probabilities, then mutual information and disagreement."""
    probs_KHW = tta.combine(scores_VKHW, aggregate)
    doubts = tta.mutual_information(scores_VKHW, aggregate), tta.disagreement(scores_VKHW, probs_KHW)
    return torch.cat([probs_KHW, torch.stack(doubts)])


class Canvas:
    """A prediction in the making: maps come in pieces, and leave as 8-bit pixels of the upright image."""

    def __init__(self, query: Query) -> None:
        self.query = query
        size = query.size
        self.mask_HW = np.empty(size, dtype=np.uint8)
        self.confidence_HW = np.empty(size, dtype=np.uint8)
        self.uncertainty_HW: dict[Measure, NDArray[np.uint8]] = {
            measure: np.empty(size, dtype=np.uint8) for measure in query.maps
        }
        self.probs_KHW: NDArray[np.uint8] | NDArray[np.float16] | None = None
        self._sums = np.zeros(1 + NUM_DOUBTS)
        self._num_pixels = 0

    def needed(self, maps_MHW: Tensor) -> Tensor:
        """Without the maps that nobody asked to see."""
        return maps_MHW if self.query.maps else maps_MHW[:-NUM_DOUBTS]

    def take(self, block: Block | None) -> None:
        """Count and paint a part of the image that is done."""
        if block is not None:
            self.note(block.maps_KHW)
            self.paint(self.needed(block.maps_KHW), top=block.top, left=block.left)

    def note(self, maps_MHW: Tensor) -> None:
        """Count these maps in the means."""
        probs_KHW, doubts = maps_MHW[:-NUM_DOUBTS], maps_MHW[-NUM_DOUBTS:]
        means = [tta.entropy(probs_KHW).mean().item(), *doubts.mean(dim=(-2, -1)).tolist()]
        num_pixels = probs_KHW[0].numel()
        self._sums += np.array(means) * num_pixels
        self._num_pixels += num_pixels

    def paint(self, maps_MHW: Tensor, *, top: int, left: int) -> None:
        """Put maps of a part of the image in their place."""
        probs_KHW = maps_MHW[:-NUM_DOUBTS] if self.query.maps else maps_MHW
        place = np.s_[top : top + maps_MHW.shape[1], left : left + maps_MHW.shape[2]]
        confidence_HW, mask_HW = tta.largest(probs_KHW)
        self.mask_HW[place] = mask_HW.cpu().numpy()
        self.confidence_HW[place] = _to_8_bit(confidence_HW)
        for measure, map_HW in self.uncertainty_HW.items():
            map_HW[place] = _to_8_bit(_measured(maps_MHW, measure))
        if self.query.probabilities:
            values_KHW = quantised(probs_KHW, self.mask_HW[place], precision=self.query.probabilities)
            if self.probs_KHW is None:
                self.probs_KHW = np.empty((len(values_KHW), *self.mask_HW.shape), dtype=values_KHW.dtype)
            self.probs_KHW[:, *place] = values_KHW

    def prediction(self, *, num_windows: int) -> SegmentationPrediction:
        entropy, information, disagreement = (self._sums / self._num_pixels).tolist()
        return SegmentationPrediction(
            mask_HW=self.mask_HW,
            confidence_HW=self.confidence_HW,
            uncertainty_HW=self.uncertainty_HW,
            probs_KHW=self.probs_KHW,
            mean_entropy=entropy,
            mutual_information=information,
            view_agreement=1 - disagreement,
            windows=num_windows,
        )


def _measured(maps_MHW: Tensor, measure: Measure) -> Tensor:
    match measure:
        case "entropy":
            return tta.entropy(maps_MHW[:-NUM_DOUBTS])
        case "mutual-information":
            return maps_MHW[-2]
        case "disagreement":
            return maps_MHW[-1]
        case _:
            assert_never(measure)


def quantised(
    probs_KHW: Tensor, mask_HW: NDArray[np.uint8], *, precision: StoredPrecision
) -> NDArray[np.uint8] | NDArray[np.float16]:
    """Probabilities in fewer bits, of which the first largest is still the mask's class.

    Rounding can make an earlier class equal to the mask's; it is then lowered by one step.
    """
    values_KHW: NDArray[np.uint8] | NDArray[np.float16]
    values_KHW = _to_8_bit(probs_KHW) if precision == "uint8" else probs_KHW.to(torch.float16).cpu().numpy()
    best_1HW = np.take_along_axis(values_KHW, mask_HW[None].astype(np.intp), axis=0)
    earlier_KHW = np.arange(len(values_KHW))[:, None, None] < mask_HW
    tied_KHW = earlier_KHW & (values_KHW == best_1HW)
    tied_N = values_KHW[tied_KHW]
    values_KHW[tied_KHW] = tied_N - 1 if precision == "uint8" else np.nextafter(tied_N, np.float16(0))
    return values_KHW


def _to_8_bit(values: Tensor) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (values * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return levels
