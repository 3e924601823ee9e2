"""What is asked of a predictor, and what it answers.

Dimensions: K classes, H, W.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segserve.spec import Aggregate, Measure, Plan, StoredPrecision


@dataclass(frozen=True, kw_only=True)
class Query:
    """One image and what is asked about it."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB, (H, W, 3)."""
    sent_size: tuple[int, int] | None = None
    """Height and width of what was sent, in whose pixels the answer is, where the image was decoded at less; not for
    images that the network sees in windows."""
    tta: Plan = "none"
    aggregate: Aggregate = "mean"
    maps: tuple[Measure, ...] = ()
    """Uncertainty maps wanted."""
    probabilities: StoredPrecision | None = None
    """Wanted, at this precision."""
    deadline: float | None = None
    """Seconds of `time.perf_counter`; no forward pass is begun after it."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image as it was sent."""
        return self.sent_size or (self.image_HWC.shape[0], self.image_HWC.shape[1])


@dataclass(frozen=True, kw_only=True)
class SegmentationPrediction:
    """The answer in the image's own pixels."""

    mask_HW: NDArray[np.uint8]
    """Class indices."""
    confidence_HW: NDArray[np.uint8]
    """Probability of the chosen class, 255 = 1."""
    uncertainty_HW: Mapping[Measure, NDArray[np.uint8]]
    """The maps asked for, 255 = most uncertain, see `segserve.tta`."""
    probs_KHW: NDArray[np.uint8] | NDArray[np.float16] | None
    """Class probabilities, only if asked for: 255 = 1, or floats. Their first largest class is that of `mask_HW`."""
    mean_entropy: float
    """0 (certain) to 1, at the working size; so are the next two."""
    mutual_information: float
    """0 (the views say the same) to 1."""
    view_agreement: float
    """Share of the views' pixels that agree with the aggregate."""
    windows: int
    """In how many pieces the network saw the image."""


@dataclass(frozen=True, kw_only=True)
class ClassificationPrediction:
    """Probabilities of all classes (they sum to 1), and how sure they are."""

    probs_K: NDArray[np.float32]
    mean_entropy: float
    mutual_information: float
    view_agreement: float


Prediction = SegmentationPrediction | ClassificationPrediction
