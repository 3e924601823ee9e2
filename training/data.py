"""Images, masks and labels as arrays.

Images are decoded by the service's own decoder.

Dimensions: C channels, H, W.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from segserve.codec import Decoded, decode_scaled
from segserve.preprocess import Size, needed_size, resize_image, to_tensor, working_size
from segserve.problem import Problem
from segserve.spec import PreprocessSpec
from training.layouts import Dataset, Sample
from training.layouts.dataset import MaskSource
from training.layouts.masks import IGNORE as IGNORE
from training.layouts.masks import read_mask as read_mask

Channels = tuple[float, float, float]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Upright RGB, (H, W, 3) uint8, the whole image; a ValueError names the file."""
    return _decoded(path, needed=lambda size: size).image_HWC


def read_for(preprocess: PreprocessSpec, path: Path) -> Decoded:
    """An image as the service decodes it for a model, with `scaled_jpeg` maybe at less; a ValueError likewise."""
    return _decoded(path, needed=partial(needed_size, spec=preprocess))


def _decoded(path: Path, *, needed: Callable[[Size], Size]) -> Decoded:
    try:
        return decode_scaled(path.read_bytes(), needed=needed)
    except (Problem, OSError) as problem:
        raise ValueError(f"{path}: {problem}") from None


def read_truth(sample: Sample, *, ignore_index: int | None) -> NDArray[np.uint8]:
    """The mask (H, W) with `IGNORE` for pixels that do not count, or the class index (), uint8."""
    if isinstance(sample.truth, int):
        return np.asarray(sample.truth, dtype=np.uint8)
    return void_as_ignore(stored_mask(sample.truth), ignore_index)


def void_as_ignore(mask_HW: NDArray[np.uint8], ignore_index: int | None) -> NDArray[np.uint8]:
    """The mask with `IGNORE` in place of the set's own `ignore_index`."""
    return mask_HW if ignore_index is None else np.where(mask_HW == ignore_index, np.uint8(IGNORE), mask_HW)


def check_truth(sample: Sample, truth: NDArray[np.uint8], *, shape: tuple[int, ...], num_classes: int) -> None:
    """A ValueError where a sample's truth, as `read_truth` gives it, has not its image's shape, or no such class."""
    if truth.shape != shape or (truth[truth != IGNORE] >= num_classes).any():
        raise ValueError(
            f"expected {sample.truth} to have its image's size and class indices below {num_classes}, but it has not: "
            "see `segserve lint`"
        )


def stored_mask(truth: Path | MaskSource) -> NDArray[np.uint8]:
    """A mask (H, W) uint8 as its layout gives it, with the set's own `ignore_index`; a ValueError names the file."""
    return read_mask(truth) if isinstance(truth, Path) else truth.read()


def load_sample(sample: Sample, *, ignore_index: int | None, preprocess: PreprocessSpec) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and truth (h, w) or (), uint8, at the working size; masks take the nearest pixel.

    Raises:
        ValueError: a file cannot be read, or the mask has not its image's size.
    """
    decoded = read_for(preprocess, sample.image)
    truth_HW = torch.from_numpy(np.array(read_truth(sample, ignore_index=ignore_index)))
    if truth_HW.shape not in ((), decoded.sent_size):
        raise ValueError(f"expected {sample.truth} to have its image's size, but it has not: see `segserve lint`")
    size = working_size(decoded.sent_size, preprocess)
    image_CHW = resize_image(to_tensor(decoded.image_HWC), size)
    return image_CHW, truth_HW if truth_HW.dim() == 0 else resize_mask(truth_HW, size)


def resize_mask(mask_HW: Tensor, size: Size) -> Tensor:
    """The pixel under the centre of each new pixel: (H, W) to `size`, any dtype."""
    resized_1HW: Tensor = transforms.resize_image(
        mask_HW[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT
    )
    return resized_1HW[0]


def channel_statistics(images: Iterable[Tensor]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over all pixels of uint8 images (3, H, W), scaled to 0..1."""
    values_256 = torch.arange(256, dtype=torch.float64) / 255
    histogram_C256 = torch.zeros(3, 256, dtype=torch.float64)
    for image_CHW in images:
        for channel, pixels_HW in enumerate(image_CHW):
            histogram_C256[channel] += torch.bincount(pixels_HW.flatten(), minlength=256)
    share_C256 = histogram_C256 / histogram_C256.sum(dim=1, keepdim=True)
    mean_C = share_C256 @ values_256
    variance_C = (share_C256 * (values_256 - mean_C[:, None]) ** 2).sum(dim=1)
    # A channel without any contrast must not divide by zero later.
    return _channels(mean_C), _channels(variance_C.sqrt().clamp(min=1 / 255))


def _channels(values_C: Tensor) -> Channels:
    red, green, blue = (round(value, 6) for value in values_C.tolist())
    return red, green, blue


def data_digest(dataset: Dataset, splits: Sequence[str]) -> str:
    """SHA-256 over the relative names (sorted) and bytes of the files the splits are read from, and of the tables."""
    samples = [sample for split in splits for sample in dataset.splits.get(split, ())]
    files = {*dataset.tables, *(path for sample in samples for path in sample.files)}
    digest = hashlib.sha256()
    for name, path in sorted((_name(path, dataset), path) for path in files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _name(path: Path, dataset: Dataset) -> str:
    """From the data set's folder, or from that of its further samples."""
    if dataset.round is not None and path.is_relative_to(dataset.round):
        return f"round/{path.relative_to(dataset.round).as_posix()}"
    return path.relative_to(dataset.root).as_posix()
