"""Masks that are stored as pictures: read as they are, or with their values replaced.

Dimensions: H, W.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORE = 255
"""Truth of pixels that count nowhere: void, or added by padding. A set's own `ignore_index` becomes this."""


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Class indices, (H, W) uint8, as stored; a ValueError names the file."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(
                    f"expected a mask whose pixels are class indices (mode L or P), but its mode is {image.mode}: "
                    "convert colours to indices"
                )
            return np.asarray(image)
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class RelabelledMask:
    """A mask whose stored values stand for other class indices."""

    path: Path
    indices: Mapping[int, int]
    """The class index, or `IGNORE`, of each value that may be stored."""

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> NDArray[np.uint8]:
        """Class indices with `IGNORE`, (H, W) uint8; a ValueError names the file."""
        stored_HW = read_mask(self.path)
        strange = set(np.bincount(stored_HW.ravel()).nonzero()[0].tolist()) - self.indices.keys()
        if strange:
            raise ValueError(
                f"{self.path}: expected only the values {', '.join(map(str, sorted(self.indices)))}, "
                f"but got {', '.join(map(str, sorted(strange)))}: take the masks that this layout is made of"
            )
        index_256 = np.zeros(256, dtype=np.uint8)
        index_256[list(self.indices)] = list(self.indices.values())
        return index_256[stored_HW]
