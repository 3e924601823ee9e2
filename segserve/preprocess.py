"""From an upright image to the network's input, and from its output back to the image's own pixels.

Dimensions: B batch, C channels, K classes, H, W.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segserve.spec import PreprocessSpec, Sizing

STRIDE = 32
"""The encoder halves the resolution five times; sizes are padded to a multiple of this, so that images batch."""

BAND_ELEMENTS = 2**25
"""Most probabilities held at once at the image's own resolution (128 MiB of float32)."""

Size = tuple[int, int]
"""Height, width."""


def working_size(size: Size, spec: Sizing) -> Size:
    """Size at which the network sees an image of `size`: at least 1x1, aspect ratio kept to the nearest pixel."""
    height, width = size
    longest = max(height, width)
    if spec.resize == "never" or (spec.resize == "larger" and longest <= spec.working_side):
        return size
    scale = spec.working_side / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def needed_size(size: Size, spec: Sizing) -> Size:
    """The least size at which an image of `size` may be decoded."""
    return working_size(size, spec) if spec.scaled_jpeg else size


def to_tensor(image_HWC: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 array to (3, H, W) uint8 tensor."""
    return torch.tensor(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)


def resize(maps_KHW: Tensor, size: Size) -> Tensor:
    """Bilinear resize with antialiasing; maps that have the size already are not copied."""
    if maps_KHW.shape[-2:] == size:
        return maps_KHW
    return functional.interpolate(maps_KHW[None], size, mode="bilinear", antialias=True)[0]


def resize_image(image_CHW: Tensor, size: Size) -> Tensor:
    """The same, uint8 to uint8: torchvision's, without the time that its import takes."""
    if image_CHW.device.type == "cpu" or image_CHW.shape[-2:] == size:
        return resize(image_CHW, size)
    return resize(image_CHW.float(), size).round_().to(torch.uint8)  # only CPUs interpolate bytes


def normalise(image_CHW: Tensor, spec: PreprocessSpec) -> Tensor:
    """(..., 3, H, W), values 0 to 255, to float32 with the spec's mean and standard deviation removed."""
    mean_C11 = torch.tensor(spec.mean, device=image_CHW.device).view(3, 1, 1)
    std_C11 = torch.tensor(spec.std, device=image_CHW.device).view(3, 1, 1)
    # Decoded images have their channels last: moving bytes apart is cheaper than moving floats.
    return (image_CHW.contiguous().float() / 255).sub_(mean_C11).div_(std_C11)


def aligned(size: Size, stride: int) -> Size:
    """The size, each side rounded up to a multiple of `stride`."""
    height, width = size
    return math.ceil(height / stride) * stride, math.ceil(width / stride) * stride


def pad(image_CHW: Tensor, size: Size) -> Tensor:
    """Repeat the last row and column until the image has `size`."""
    height, width = image_CHW.shape[-2:]
    if (height, width) == size:
        return image_CHW
    return functional.pad(image_CHW, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def upright_bands(probs_KHW: Tensor, size: Size) -> Iterator[tuple[Tensor, int, int]]:
    """Bilinear interpolation of the probabilities to `size`, in horizontal bands from top to bottom.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` on the whole, but never holds more
    than one band of the result, so that memory stays bounded whatever the image's size. Where a single row would be too
    much, it comes in pieces from left to right.

    Yields:
        The band or piece (K, h, w), and its first row and column.
    """
    num_classes, height, width = probs_KHW.shape
    target_height, target_width = size
    if (height, width) == size:
        yield probs_KHW, 0, 0
        return
    columns = min(target_width, max(1, BAND_ELEMENTS // num_classes))
    rows = max(1, BAND_ELEMENTS // (num_classes * max(columns, width)))
    for top in range(0, target_height, rows):
        band_KHW = _interpolate_rows(probs_KHW, top, min(top + rows, target_height), target_height)
        if columns == target_width:
            yield functional.interpolate(band_KHW[None], (band_KHW.shape[1], columns), mode="bilinear")[0], top, 0
            continue
        for left in range(0, target_width, columns):
            yield _interpolate_rows(band_KHW.mT, left, min(left + columns, target_width), target_width).mT, top, left


def _interpolate_rows(probs_KHW: Tensor, first: int, last: int, target_height: int) -> Tensor:
    height = probs_KHW.shape[1]
    target_H = torch.arange(first, last, device=probs_KHW.device, dtype=torch.float64)
    source_H = ((target_H + 0.5) * (height / target_height) - 0.5).clamp(0, height - 1)
    above_H = source_H.long()
    below_H = (above_H + 1).clamp(max=height - 1)
    weight_H1 = (source_H - above_H).to(probs_KHW.dtype)[:, None]
    return probs_KHW[:, above_H] * (1 - weight_H1) + probs_KHW[:, below_H] * weight_H1
