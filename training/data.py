"""Images, masks and labels as arrays, and the check that refuses a broken data set before it is trained on.

Images are decoded by the service's own decoder.

Dimensions: C channels, H, W.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from segserve.codec import decode_image
from segserve.preprocess import Size, resize_image, to_tensor, working_size
from segserve.problem import Problem
from segserve.spec import PreprocessSpec, Task
from training.layouts import CLASSES, LABELS, SPLITS, Dataset, Sample, open_dataset
from training.layouts import detect_task as detect_task

IGNORE = 255
"""Truth of pixels that count nowhere: void, or added by padding. A set's own `ignore_index` becomes this."""

Channels = tuple[float, float, float]

MOST_COMPLAINTS = 20
"""How many of them an error shows."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Upright RGB, (H, W, 3) uint8, as the service decodes it; a ValueError names the file."""
    try:
        return decode_image(path.read_bytes())
    except (Problem, OSError) as problem:
        raise ValueError(f"{path}: {problem}") from None


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


def read_truth(sample: Sample, *, ignore_index: int | None) -> NDArray[np.uint8]:
    """The mask (H, W) with `IGNORE` for pixels that do not count, or the class index (), uint8."""
    if isinstance(sample.truth, int):
        return np.asarray(sample.truth, dtype=np.uint8)
    mask_HW = read_mask(sample.truth)
    return mask_HW if ignore_index is None else np.where(mask_HW == ignore_index, np.uint8(IGNORE), mask_HW)


def load_sample(sample: Sample, *, ignore_index: int | None, preprocess: PreprocessSpec) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and truth (h, w) or (), uint8, at the working size; masks take the nearest pixel."""
    image_CHW = to_tensor(read_image(sample.image))
    truth_HW = torch.from_numpy(np.array(read_truth(sample, ignore_index=ignore_index)))
    size = working_size((image_CHW.shape[-2], image_CHW.shape[-1]), preprocess)
    return resize_image(image_CHW, size), truth_HW if truth_HW.dim() == 0 else resize_mask(truth_HW, size)


def resize_mask(mask_HW: Tensor, size: Size) -> Tensor:
    """The pixel under the centre of each new pixel: (H, W) to `size`, any dtype."""
    resized_1HW: Tensor = transforms.resize_image(
        mask_HW[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT
    )
    return resized_1HW[0]


def channel_statistics(images: Sequence[Tensor]) -> tuple[Channels, Channels]:
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


def data_digest(root: Path, splits: Sequence[str]) -> str:
    """SHA-256 over the relative names (sorted) and bytes of the splits' files and of the tables beside them."""
    folders = [root / place / split for split in splits for place in ("images", "masks", "")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [root / name for name in (CLASSES, LABELS) if (root / name).is_file()]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def checked_dataset(root: Path, task: Task) -> Dataset:
    """A data set fit to train on; else a ValueError with what `check_dataset` says of it."""
    complaints = check_dataset(root, task)
    if complaints:
        more = len(complaints) - MOST_COMPLAINTS
        shown = complaints[:MOST_COMPLAINTS] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(
            f"expected {root} to pass `segserve lint`, but it has {len(complaints)} fault(s), correct them:\n  "
            + "\n  ".join(shown)
        )
    return open_dataset(root, task)


def check_dataset(root: Path, task: Task) -> list[str]:
    """Say what would spoil a training on this data set, one sentence a fault; nothing where all is well."""
    try:
        dataset = open_dataset(root, task)
    except ValueError as error:
        return [str(error)]
    return [*dataset.complaints, *_empty_splits(dataset), *_file_faults(dataset), *_shared_images(dataset)]


def _empty_splits(dataset: Dataset) -> Iterator[str]:
    for split in SPLITS:
        if not dataset.splits.get(split) and (split in dataset.splits or split != "test"):
            yield f"split {split}: expected at least one image with its truth, but there is none"


def _file_faults(dataset: Dataset) -> Iterator[str]:
    for samples in dataset.splits.values():
        for sample in samples:
            try:
                image_HWC = read_image(sample.image)
                if isinstance(sample.truth, Path):
                    mask_HW = read_mask(sample.truth)
                    name = sample.truth.relative_to(dataset.root)
                    yield from (f"{name}: {fault}" for fault in _mask_faults(mask_HW, image_HWC, dataset))
            except ValueError as error:
                yield str(error).replace(f"{dataset.root}/", "", 1)


def _mask_faults(mask_HW: NDArray[np.uint8], image_HWC: NDArray[np.uint8], dataset: Dataset) -> Iterator[str]:
    (height, width), size = image_HWC.shape[:2], mask_HW.shape
    if size != (height, width):
        yield f"expected the size of its image, {width} x {height}, but got {size[1]} x {size[0]}"
    values = set(np.bincount(mask_HW.ravel()).nonzero()[0].tolist())
    strange = sorted(values - set(range(len(dataset.classes))) - {dataset.ignore_index})
    if strange:
        ignored = "" if dataset.ignore_index is None else f" and the ignore_index {dataset.ignore_index}"
        last = len(dataset.classes) - 1
        yield f"expected the class indices 0 to {last}{ignored}, but got {strange}: relabel those pixels"


def _shared_images(dataset: Dataset) -> Iterator[str]:
    """The same file in two splits makes every score too good."""
    seen: dict[bytes, tuple[str, Path]] = {}
    for split, samples in dataset.splits.items():
        for sample in samples:
            path = sample.image
            first_split, first = seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), (split, path))
            if first_split != split:
                name, other = path.relative_to(dataset.root), first.relative_to(dataset.root)
                yield f"{name}: expected an image that is in no other split, but it is a copy of {other}: remove one"
