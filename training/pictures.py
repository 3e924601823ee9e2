"""Masks and mistakes as pictures.

Dimensions: H, W, K classes.
"""

import numpy as np
from numpy.typing import NDArray

from segserve.preprocess import resize_image, to_tensor
from segserve.spec import ClassSpec
from training.data import IGNORE
from training.evaluate import Outcome

ERROR_COLOR, VOID_COLOR = (214, 0, 147), (235, 236, 240)


def paint(mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]) -> NDArray[np.uint8]:
    """The mask in its classes' colours, (H, W, 3) uint8."""
    palette_K3 = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    palette_K3[: len(classes)] = [entry.color for entry in classes]
    return palette_K3[mask_HW]


def error_map(outcome: Outcome) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the image in pale gray, wrong pixels in `ERROR_COLOR`, what is not counted nearly white."""
    image_CHW = resize_image(to_tensor(outcome.image_HWC), (outcome.truth.shape[0], outcome.truth.shape[1]))
    gray_HW = 110 + image_CHW.numpy().mean(axis=0) / 255 * 120
    map_HWC = np.repeat(gray_HW[..., None], 3, axis=2).astype(np.uint8)
    counts_HW = outcome.truth != IGNORE
    map_HWC[~counts_HW] = VOID_COLOR
    map_HWC[counts_HW & (outcome.predicted != outcome.truth)] = ERROR_COLOR
    return map_HWC
