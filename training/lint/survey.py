"""One look at every file of a data set: what the checks need of it, without keeping its pixels.

Files are read and decoded once each, in a pool of threads.

Dimensions: H, W, S the side of a thumbnail, V the different values of a mask.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from training.data import read_image, stored_mask
from training.layouts import Dataset, Sample
from training.layouts.dataset import MaskSource
from training.lint.likeness import thumbnail

Job = TypeVar("Job")
Result = TypeVar("Result")

INDEX_MODES = ("L", "P")
GRAY_MODES = ("1", "I;16", "I;16B", "I")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredMask:
    """A mask's file, whatever it is coded in."""

    format: str
    """Pillow's name: PNG, JPEG, ..."""
    mode: str
    """As stored: L, P, RGB, 1, I;16, ..."""
    pixels: NDArray[np.int64]
    """(H, W): indices or gray levels; of colours `packed`."""
    palette: NDArray[np.int64] | None
    """(256,): the packed colour of each index, of mode P."""

    @property
    def has_colors(self) -> bool:
        """Its pixels are packed colours, not indices or gray levels."""
        return self.mode not in (*INDEX_MODES, *GRAY_MODES)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFacts:
    size: tuple[int, int]
    """Height and width once upright."""
    digest: bytes
    """SHA-256 of its decoded pixels."""
    thumbnail_SS: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskFacts:
    name: str
    """Relative to the data set."""
    format: str
    mode: str
    size: tuple[int, int]
    has_colors: bool
    values_V: NDArray[np.int64]
    """Indices, gray levels, or packed colours, sorted."""
    counts_V: NDArray[np.int64]
    """Their pixels."""
    colors_V: NDArray[np.int64] | None
    """The packed colours of those values; None where there is no palette and no colour."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What one sample is."""

    split: str
    name: str
    """Of its image, relative to the data set."""
    stem: str
    image: ImageFacts | None
    truth: MaskFacts | int | None
    """None where it, or its image, cannot be read."""
    faults: tuple[tuple[str, str], ...]
    """File and sentence of what cannot be read."""


def masks_of(looks: Iterable[Look]) -> list[MaskFacts]:
    """Those of the samples that have one that can be read."""
    return [look.truth for look in looks if isinstance(look.truth, MaskFacts)]


def pack(colors_V3: NDArray[np.integer]) -> NDArray[np.int64]:
    """Red, green, blue of 0..255 as one number, (..., 3) to (...)."""
    return np.asarray(colors_V3.astype(np.int64) @ (65536, 256, 1))


def unpack(packed_V: NDArray[np.int64]) -> NDArray[np.int64]:
    """Back again, (...) to (..., 3)."""
    return np.stack([packed_V >> 16, packed_V >> 8 & 255, packed_V & 255], axis=-1)


def read_stored(path: Path) -> StoredMask:
    """Any picture as a mask; a ValueError says why it cannot be read."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            mode, kind = image.mode, image.format or ""
            if mode == "1":
                pixels = np.asarray(image.convert("L"))
            elif mode in (*INDEX_MODES, *GRAY_MODES):
                pixels = np.asarray(image)
            else:
                pixels = pack(np.asarray(image.convert("RGB")))
            palette = image.getpalette("RGB") if mode == "P" else None
    except UnidentifiedImageError:
        raise ValueError("expected a mask, but it is no image: restore it") from None
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise ValueError(f"expected a whole image, but it cannot be decoded ({error}): restore it") from None
    return StoredMask(format=kind, mode=mode, pixels=pixels.astype(np.int64), palette=_packed_palette(palette))


def _packed_palette(palette: list[int] | None) -> NDArray[np.int64] | None:
    if palette is None:
        return None
    padded = np.zeros(768, dtype=np.int64)
    padded[: len(palette)] = palette
    return pack(padded.reshape(256, 3))


def mask_facts(path: Path, root: Path) -> MaskFacts:
    """Of one mask's file; a ValueError where it cannot be read."""
    stored = read_stored(path)
    values_V, counts_V = count_values(stored.pixels)
    colors_V = values_V if stored.has_colors else None if stored.palette is None else stored.palette[values_V]
    return MaskFacts(
        name=path.relative_to(root).as_posix(),
        format=stored.format,
        mode=stored.mode,
        size=(stored.pixels.shape[0], stored.pixels.shape[1]),
        has_colors=stored.has_colors,
        values_V=values_V,
        counts_V=counts_V,
        colors_V=colors_V,
    )


def count_values(pixels_HW: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different values, sorted, and how many pixels have each."""
    if pixels_HW.size and pixels_HW.min() >= 0 and pixels_HW.max() < 65536:  # many times faster than sorting
        counts = np.bincount(pixels_HW.ravel())
        values_V = counts.nonzero()[0]
        return values_V, counts[values_V]
    return np.unique(pixels_HW, return_counts=True)


def survey(dataset: Dataset) -> list[Look]:
    """Look at every sample, in order; shows a bar where a person watches."""
    jobs = [(split, sample) for split, samples in dataset.splits.items() for sample in samples]
    return over_files(lambda job: _look(dataset, *job), jobs)


def over_files(work: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
    """In a pool of threads, the results in order; Pillow and NumPy release Python's lock where the time goes."""
    jobs = list(jobs)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(tqdm(pool.map(work, jobs), total=len(jobs), unit="file", disable=None, leave=False))


def _look(dataset: Dataset, split: str, sample: Sample) -> Look:
    faults, image, truth = [], None, None
    try:
        image = _image_facts(read_image(sample.image))
    except ValueError as error:
        faults.append(_fault(sample.image, dataset, error))
    try:
        truth = _truth(dataset, sample)
    except ValueError as error:
        faults.append(_fault(sample.files[-1], dataset, error))
    name = sample.image.relative_to(dataset.root).as_posix()
    return Look(split=split, name=name, stem=sample.image.stem, image=image, truth=truth, faults=tuple(faults))


def _fault(path: Path, dataset: Dataset, error: ValueError) -> tuple[str, str]:
    return path.relative_to(dataset.root).as_posix(), str(error).removeprefix(f"{path}: ")


def _image_facts(image_HWC: NDArray[np.uint8]) -> ImageFacts:
    size = image_HWC.shape[0], image_HWC.shape[1]
    return ImageFacts(size=size, digest=pixels_digest(image_HWC), thumbnail_SS=thumbnail(image_HWC))


def pixels_digest(image_HWC: NDArray[np.uint8]) -> bytes:
    """The same for images with the same pixels only."""
    height, width = image_HWC.shape[:2]
    return hashlib.sha256(f"{height} {width} ".encode() + image_HWC.tobytes()).digest()


def _truth(dataset: Dataset, sample: Sample) -> MaskFacts | int:
    if isinstance(sample.truth, int):
        return sample.truth
    if isinstance(sample.truth, Path):
        return mask_facts(sample.truth, dataset.root)
    return _made_facts(sample.truth, name=sample.image.relative_to(dataset.root).as_posix())


def _made_facts(truth: MaskSource, name: str) -> MaskFacts:
    """Of a mask that its layout makes of what is stored."""
    mask_HW = stored_mask(truth).astype(np.int64)
    values_V, counts_V = count_values(mask_HW)
    return MaskFacts(
        name=name,
        format="PNG",
        mode="L",
        size=(mask_HW.shape[0], mask_HW.shape[1]),
        has_colors=False,
        values_V=values_V,
        counts_V=counts_V,
        colors_V=None,
    )
