"""A round: a folder with what a model says about unlabelled images, and what is decided about each of its masks.

    round.begun      empty, and there before all else: what lies in the folder is a round's
    round.json       what was asked: artifact, plan, thresholds and where they come from
    manifest.jsonl   one line an image: scores, verdict, who decided, who made the mask
    soft/NAME.npz    the aggregated probabilities, see `training.flywheel.soft`
    images/train, masks/train, classes.json    the accepted masks: a data set in the folder layout
    images/val, masks/val    the held-out images the thresholds were fitted on
    waiting/         the images that wait for a person

Everything but the manifest is written to a temporary name and renamed; the manifest grows by whole lines, and a line is
written after the files it speaks of.
"""

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from segserve.png import encode_index_png
from segserve.settings import Settings, explain
from segserve.spec import ClassSpec, Plan
from segserve.whole import replacing, write_whole
from training.alone import alone
from training.data import IGNORE
from training.flywheel.soft import SoftMask
from training.flywheel.triage import PixelRule, Selection, Thresholds, Verdict
from training.layouts import CLASSES
from training.lines import append_lines, read_lines

BEGUN, ORDER, MANIFEST = "round.begun", "round.json", "manifest.jsonl"


class RoundOrder(Settings):
    """What a round was asked for; a round goes on with the same only."""

    number: int
    """1 for the first."""
    artifact: str
    """Digest of the artifact that says what is in the images."""
    model: str
    """Its name."""
    images: str
    """Folder of the unlabelled images."""
    plan: Plan
    pixels: PixelRule
    selection: Selection
    thresholds: Thresholds
    classes: tuple[ClassSpec, ...]
    previous: str | None = None
    """Folder of the round before, whose corrected masks are taken over."""
    run: str | None = None
    """Folder of the training, whose earlier weights say how stable a mask is."""
    held_out: str = ""
    """Digest of the images that the thresholds were fitted on."""


class Entry(Settings):
    """One image of a round."""

    name: str
    """The image's file name without its suffix: no two are the same."""
    file: str
    """With its suffix."""
    artifact: str
    round: int
    scores: dict[str, float] = Field(default_factory=dict)
    """See `training.flywheel.scores`."""
    churn: float | None = None
    """1 - mean IoU of this mask and that of the round before; None where there is none."""
    trained: float = 0.0
    """Share of the pixels that are trained on if the mask is accepted."""
    verdict: Verdict
    decided_by: str = "thresholds"
    """That, or a person's name."""
    source: Literal["model", "person"] = "model"
    """Who made the mask."""
    edited: float | None = None
    """Share of the pixels in which a person's mask is another than the model's."""
    fault: str = ""
    """Why there is no mask."""

    @property
    def needs_person(self) -> bool:
        return self.verdict != "accept" and not self.fault


@dataclass(frozen=True)
class Round:
    """A round's folder, which need not exist yet."""

    path: Path

    # --- what was asked ---

    def claim(self) -> None:
        """Make the folder a round's, if it is none yet; a ValueError where it holds anything else."""
        marked = self.is_begun or (self.path / BEGUN).is_file()
        if self.path.exists() and any(self.path.iterdir()) and not marked:
            raise ValueError(
                f"expected {self.path} to be a round or not to exist, but it is something else: give another --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / BEGUN).touch()

    def forget_held_out(self) -> None:
        """Take away the held-out images of a round that was killed before it had its order."""
        for kind in ("images", "masks"):
            shutil.rmtree(self.path / kind / "val", ignore_errors=True)

    @property
    def is_begun(self) -> bool:
        """Whether it has its order."""
        return (self.path / ORDER).is_file()

    def check_begun(self) -> None:
        """A ValueError where the folder is no round."""
        if not self.is_begun:
            raise ValueError(
                f"expected a round, but {self.path} has no {ORDER}: make one with `segserve pseudolabel ARTIFACT IMAGES"
                f" --out {self.path}`"
            )

    @property
    def order(self) -> RoundOrder:
        """A ValueError where the folder is no round."""
        self.check_begun()
        path = self.path / ORDER
        try:
            return RoundOrder.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path}: {explain(error)}") from None

    def begin(self, order: RoundOrder) -> None:
        """Write what is asked; from here on the folder is a data set."""
        for kind in ("images", "masks"):
            (self.path / kind / "train").mkdir(parents=True, exist_ok=True)
        write_classes(self.path, order.classes)
        write_whole(self.path / ORDER, order.model_dump_json(indent=1) + "\n")

    def held(self) -> AbstractContextManager[None]:
        """Inside, the folder, which must exist, is this command's alone; a ValueError where another one holds it."""
        return alone(self.path, work="command", otherwise="or stop it")

    # --- the manifest ---

    def entries(self) -> dict[str, Entry]:
        """All images that are done, by name; a last line that was cut off does not count."""
        found = [Entry.model_validate_json(line) for line in read_lines(self.path / MANIFEST)]
        return {entry.name: entry for entry in found}

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines, on the disk when this returns."""
        append_lines(self.path / MANIFEST, (entry.model_dump_json() for entry in entries))

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Put others in place of all lines, and the files where the verdicts want them."""
        entries = list(entries)
        for entry in entries:
            self.place(entry)
        text = b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries)
        write_whole(self.path / MANIFEST, text)

    # --- files ---

    def looked_at(self, entry: Entry) -> str:
        """Digest of an image and of what the model says of it: other rounds may have others of its name."""
        digest = hashlib.sha256(entry.name.encode())
        for path in (self.image(entry), self.soft(entry.name)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]

    def has_image(self, path: Path) -> bool:
        """Whether it has the same file under the same name."""
        places = (self.path / folder / path.name for folder in ("images/train", "waiting"))
        return any(place.is_file() and filecmp.cmp(place, path, shallow=False) for place in places)

    def image(self, entry: Entry) -> Path:
        """Where the image is: with the accepted ones, or with those that wait."""
        folder = "images/train" if entry.verdict == "accept" else "waiting"
        return self.path / folder / entry.file

    def mask(self, name: str) -> Path:
        """The mask that is trained on, if it is accepted."""
        return self.path / "masks/train" / f"{name}.png"

    def soft(self, name: str) -> Path:
        return self.path / "soft" / f"{name}.npz"

    def place(self, entry: Entry, *, image: Path | None = None) -> None:
        """Put the image, and a model's mask if it is accepted, where the verdict wants them.

        Args:
            entry: whose soft mask is there.
            image: a file outside the round; if not given, the image is in it already.
        """
        if entry.fault:
            return
        places = self.path / "images/train" / entry.file, self.path / "waiting" / entry.file
        wanted, other = places if entry.verdict == "accept" else places[::-1]
        source = image or (wanted if wanted.is_file() else other)
        if entry.source == "model" and entry.verdict == "accept" and not self.mask(entry.name).is_file():
            order = self.order
            soft = SoftMask.read(self.soft(entry.name))
            self.write_mask(entry.name, order.pixels.trainable(soft), order.classes)
        if not wanted.is_file():
            link(source, wanted)
        other.unlink(missing_ok=True)
        if entry.verdict != "accept":
            self.mask(entry.name).unlink(missing_ok=True)

    def write_mask(self, name: str, mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]) -> None:
        write_whole(self.mask(name), encode_index_png(mask_HW, classes))


def write_classes(root: Path, classes: tuple[ClassSpec, ...]) -> None:
    """The `classes.json` of a data set whose masks have `IGNORE` where nothing counts."""
    table = {"classes": [entry.model_dump() for entry in classes], "ignore_index": IGNORE}
    write_whole(root / CLASSES, json.dumps(table, indent=1) + "\n")


def link(source: Path, target: Path) -> None:
    """The same file under another name, or, on another disk, a copy; an older one there is replaced."""
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
