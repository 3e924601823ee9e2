"""Masks and maps to PNG files."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segserve.spec import ClassSpec

NO_CLASS = 255
"""Mask index of pixels whose class was not asked for."""


def encode_index_png(mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]) -> bytes:
    """Palette PNG (mode P): a pixel is its class index, the palette holds the class colours, and black for all else."""
    image = Image.fromarray(mask_HW)
    palette = [channel for entry in classes for channel in entry.color]
    if mask_HW.max(initial=0) >= len(classes):  # Pillow stores no index beyond the palette.
        palette += [0] * (3 * 256 - len(palette))
    image.putpalette(palette)
    return encode_png(image)


def encode_gray_png(values_HW: NDArray[np.uint8]) -> bytes:
    """8-bit gray PNG."""
    return encode_png(Image.fromarray(values_HW))


def encode_overlay_png(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]
) -> bytes:
    """RGB PNG: the image, half covered by the class colours; pixels of no class asked for stay as they are."""
    return encode_png(Image.fromarray(overlay(image_HWC, mask_HW, classes)))


def overlay(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]
) -> NDArray[np.uint8]:
    """The image blended half and half with the class colours, (H, W, 3) uint8."""
    palette_K3 = np.zeros((256, 3), dtype=np.uint8)
    palette_K3[: len(classes)] = [entry.color for entry in classes]
    colors_HWC = palette_K3[mask_HW]
    blended_HWC = (image_HWC & colors_HWC) + ((image_HWC ^ colors_HWC) >> 1)  # half their sum, within 8 bits
    hidden_HW = mask_HW >= len(classes)
    blended_HWC[hidden_HW] = image_HWC[hidden_HW]
    return blended_HWC


def encode_png(image: Image.Image) -> bytes:
    """PNG at zlib's fastest level: masks compress well at any level."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
