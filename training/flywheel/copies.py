"""Copies of held-out images: whoever trains on one, by whatever way it came, gets scores that are too good."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from training.data import read_image
from training.layouts import Dataset
from training.lint.survey import over_files, pixels_digest

HELD_OUT = ("val", "test")


def held_out_images(dataset: Dataset, *, splits: Iterable[str] = HELD_OUT) -> list[Path]:
    """Of these splits, those that there are."""
    return [sample.image for split in dict.fromkeys(splits) for sample in dataset.splits.get(split, ())]


def copies(images: Sequence[Path], originals: Sequence[Path]) -> dict[Path, Path]:
    """Those of the images that have every pixel of an original, and of which; unreadable ones have none."""
    known = dict(zip(over_files(_digest, originals), originals, strict=True))
    known.pop(None, None)
    found = zip(images, over_files(_digest, images), strict=True)
    return {path: known[digest] for path, digest in found if digest in known}


def _digest(path: Path) -> bytes | None:
    try:
        return pixels_digest(read_image(path))
    except ValueError:
        return None
