"""A soft mask: what the views of an image say together, in 8 bits: the most probable classes of each pixel, and doubt.

Dimensions: K classes, T of them that are kept, H, W.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from segserve.prediction import SegmentationPrediction
from segserve.whole import write_whole

MOST_KEPT = 3
"""Classes of a pixel whose probabilities are kept."""
SORTED_AT_ONCE = 2**24
"""Probabilities: sorting takes eight times their memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftMask:
    """What is kept of a prediction, at the image's own size."""

    classes_THW: NDArray[np.uint8]
    """The most probable classes, the first of them first."""
    probs_THW: NDArray[np.uint8]
    """Their probabilities, 255 = 1."""
    information_HW: NDArray[np.uint8]
    """Mutual information of view and class, see `segserve.tta`; 255 = 1."""
    disagreement_HW: NDArray[np.uint8]
    """Share of the views whose class is another one, 255 = 1."""
    scale: float
    """Pixels of the image to one of those that the network saw, along a side."""

    @classmethod
    def of(cls, prediction: SegmentationPrediction, *, scale: float) -> "SoftMask":
        """What is kept of a prediction with 8-bit probabilities and all maps of doubt."""
        probs_KHW = prediction.probs_KHW
        assert probs_KHW is not None and probs_KHW.dtype == np.uint8
        bands = np.array_split(probs_KHW, -(-probs_KHW.size // SORTED_AT_ONCE), axis=1)
        classes_THW = np.concatenate([_most_probable(band_KHW) for band_KHW in bands], axis=1)
        return cls(
            classes_THW=classes_THW,
            probs_THW=np.take_along_axis(probs_KHW, classes_THW.astype(np.intp), axis=0).astype(np.uint8),
            information_HW=prediction.uncertainty_HW["mutual-information"],
            disagreement_HW=prediction.uncertainty_HW["disagreement"],
            scale=scale,
        )

    @property
    def mask_HW(self) -> NDArray[np.uint8]:
        """The most probable class of each pixel."""
        mask_HW: NDArray[np.uint8] = self.classes_THW[0]
        return mask_HW

    def write(self, path: Path) -> None:
        """A compressed npz, there whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            classes=self.classes_THW,
            probs=self.probs_THW,
            information=self.information_HW,
            disagreement=self.disagreement_HW,
            scale=np.float64(self.scale),
        )
        write_whole(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "SoftMask":
        """What `write` wrote; a ValueError names the file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    classes_THW=arrays["classes"],
                    probs_THW=arrays["probs"],
                    information_HW=arrays["information"],
                    disagreement_HW=arrays["disagreement"],
                    scale=float(arrays["scale"]),
                )
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path}: expected a soft mask, but it cannot be read ({error}): label it again") from None


def _most_probable(probs_KHW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(T, H, W) class indices; of equal ones the first is first, as `SegmentationPrediction` promises of its mask."""
    order_KHW = np.argsort(255 - probs_KHW.astype(np.uint8), axis=0, kind="stable")
    return order_KHW[:MOST_KEPT].astype(np.uint8)
