"""What a person is asked to label, whatever the tool.

Dimensions: H, W.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One image for a person."""

    file: str
    size: tuple[int, int]
    """Height and width."""
    mask_HW: NDArray[np.uint8] | None
    """What the model says; None where that is of no use."""
    score: float
