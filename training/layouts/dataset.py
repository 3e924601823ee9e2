"""What every layout is read into: a data set's classes, and its samples by split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.spec import ClassSpec, Color, Task
from segserve.text import is_utf8

SPLITS = ("train", "val", "test")

PALETTE: tuple[Color, ...] = (
    (76, 120, 168),
    (245, 133, 24),
    (84, 162, 75),
    (228, 87, 86),
    (114, 183, 178),
    (238, 202, 59),
    (178, 121, 162),
    (157, 117, 93),
    (255, 157, 166),
    (186, 176, 172),
)
"""Colours, in turn, of classes that come without one."""


class MaskSource(Protocol):
    """A mask that is not stored as class indices, but made of what is stored."""

    @property
    def path(self) -> Path:
        """The file it is made from."""

    def read(self) -> NDArray[np.uint8]:
        """Class indices (H, W), with the data set's `ignore_index`; a ValueError names the file."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and what is true of it."""

    image: Path
    truth: Path | int | MaskSource
    """Its mask's file, or its class index, or what makes its mask."""
    is_pseudo: bool = False
    """A model said so; nobody labelled it."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is read from: the image, and the mask's file where there is one."""
        if isinstance(self.truth, int):
            return (self.image,)
        return self.image, self.truth if isinstance(self.truth, Path) else self.truth.path


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a data set contains, without any pixels."""

    root: Path
    task: Task
    classes: tuple[ClassSpec, ...]
    ignore_index: int | None
    splits: dict[str, tuple[Sample, ...]]
    """Only those that exist."""
    complaints_by_split: Mapping[str, Sequence[str]]
    """What is wrong with its files' names and tables; `segserve lint` looks at the pixels, too."""
    tables: tuple[Path, ...] = ()
    """Files that say something of several samples: names of classes, labels."""
    notes: tuple[str, ...] = ()
    """What to know of its splits, a sentence each; no fault."""
    round: Path | None = None
    """The folder that further training samples come from, see `training.flywheel.joined`."""

    @property
    def complaints(self) -> tuple[str, ...]:
        """Those of all splits."""
        return tuple(complaint for each in self.complaints_by_split.values() for complaint in each)

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of a split, which must exist, and be whole: a score on what is left would pass for its own."""
        complaints = self.complaints_by_split.get(name)
        if complaints:
            raise ValueError(
                f"expected split {name!r} of {self.root} to pass `segserve lint`, but it has {len(complaints)} "
                f"fault(s), correct them: {complaints[0]}"
            )
        if not self.splits.get(name):
            known = ", ".join(self.splits) or "none"
            raise ValueError(f"expected {self.root} to have images in split {name!r}, but it has {known}: add them")
        return self.splits[name]


@dataclass
class Reading:
    """What has been found so far while a data set is read."""

    root: Path
    splits: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)
    """By split, too."""

    def complain(self, split: str, path: Path, sentence: str) -> None:
        self.complaints.setdefault(split, []).append(f"{path.relative_to(self.root)}: {sentence}")

    def add(self, split: str, samples: Iterable[Sample], *, listed_in: Path) -> None:
        """Keep a split's samples whose files are there; the others are complained of."""
        kept = []
        for sample in samples:
            missing = [path for path in sample.files if not path.is_file()]
            for path in missing:
                name = path.relative_to(self.root)
                self.complain(
                    split, listed_in, f"expected {name}, which belongs to it, but there is none: add the file"
                )
            if not missing:
                kept.append(sample)
        self.splits[split] = tuple(kept)


def with_names_checked(dataset: Dataset) -> Dataset:
    """With a complaint of each name that is not UTF-8, as the tables, digests and pages of a training are."""
    complaints = {split: list(told) for split, told in dataset.complaints_by_split.items()}
    for split, samples in dataset.splits.items():
        names = {path.relative_to(dataset.root) for sample in samples for path in sample.files}
        for name in sorted(name for name in names if not is_utf8(str(name))):
            told = f"{str(name)!a}: expected a name in UTF-8, but it is none: rename it"
            complaints.setdefault(split, []).append(told)
    return replace(dataset, complaints_by_split=complaints)


def named_classes(names: Iterable[str], colors: Sequence[Color | None] = ()) -> tuple[ClassSpec, ...]:
    """Classes of these names in order; those without a colour get one of the palette."""
    specs = []
    for index, name in enumerate(names):
        color = colors[index] if colors else None
        specs.append(ClassSpec(id=index, name=name, color=color or PALETTE[index % len(PALETTE)]))
    return tuple(specs)
