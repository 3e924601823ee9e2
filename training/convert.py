"""Masks that are coded in colours, gray levels or as JPEG, turned into class indices in a new data set.

Dimensions: H, W, V the different values of a mask, A anchors: the values that stand for classes.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from segserve.png import encode_png
from segserve.settings import Settings
from segserve.spec import ClassSpec
from segserve.text import read_text
from training.layouts import CLASSES, Dataset, open_dataset
from training.layouts.folder import label_rows
from training.lint.encoding import distances, is_gray, name_of, palette_contradicts
from training.lint.survey import INDEX_MODES, StoredMask, count_values, over_files, pack, read_stored
from training.pictures import VOID_COLOR

RECORD = "conversion.json"
VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")
"""What a table of colours may call pixels that count nowhere."""

Values = NDArray[np.int64]

MOST_NAMED = 5


class Rule(Settings):
    """How stored pixels become class indices; without any of the first three they are indices already."""

    colors: Path | None = None
    """A table of colours beside those that `classes.json` gives: that file itself, or lines `R G B name`."""
    map: dict[int, int] | None = None
    """Class index of each gray level."""
    threshold: int | None = Field(default=None, ge=1)
    """Class 1 from this gray level on, 0 below."""
    class_from: Path | None = None
    """With a threshold: the class is the picture's label in this table instead of 1."""
    tolerance: int = Field(default=0, ge=0, le=255)
    """How far (the largest difference of a channel) a pixel may be from the nearest colour or level."""

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        ways = [name for name in ("colors", "map", "threshold") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"expected one way to read the masks, but got {' and '.join(ways)}: leave one")
        if self.class_from and self.threshold is None:
            raise ValueError("expected class_from together with threshold, but there is none: add --threshold 128")
        if self.tolerance and not (self.colors or self.map):
            raise ValueError("expected tolerance together with colors or map, but there is neither: leave it out")
        return self


class FileChange(Settings):
    """What became of one mask."""

    file: str
    """The new one."""
    source: str
    pixels: dict[str, int]
    """By class name."""
    rounded: int
    """Pixels that had no colour or level of a class exactly and took the nearest."""
    farthest: int
    """The largest distance among them."""

    def line(self) -> str:
        told = ", ".join(f"{name} {count}" for name, count in self.pixels.items())
        near = f"; {self.rounded} pixels took the nearest value, up to {self.farthest} away" if self.rounded else ""
        return f"{self.source} -> {self.file}: {told}{near}"


def parse_map(text: str) -> dict[int, int]:
    """`0=0,128=1,255=2` as numbers."""
    try:
        pairs = [(int(level), int(index)) for level, index in (part.split("=") for part in text.split(","))]
    except ValueError:
        raise ValueError(f"expected --map to be like 0=0,128=1,255=2, but got {text!r}: correct it") from None
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"expected each level once in --map, but got {text!r}: leave one of each")
    return dict(pairs)


def convert(source: Path, out: Path, rule: Rule, *, masks: str = "masks") -> tuple[FileChange, ...]:
    """Write a new data set: the same images, tables and notes, and masks of class indices with the classes' colours.

    Args:
        source: a data set in the folder layout; it is not changed.
        out: where the new one goes; must not exist, and appears whole or not at all.
        rule: how the masks are read.
        masks: the folder they are in.

    Raises:
        ValueError: something cannot be decided; which pixels, and what to do.
    """
    if out.exists():
        raise ValueError(f"expected {out} not to exist, so that nothing is lost, but it does: name another folder")
    files = [path for path in sorted((source / masks).glob("*/*")) if path.is_file() and path.name[0] != "."]
    if not files:
        raise ValueError(f"expected masks in {source / masks}/<split>/, but there are none: name the folder by --masks")
    reader = _Reader(open_dataset(source, "segmentation"), rule)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        draft = Path(scratch) / out.name
        for path in [*source.iterdir(), *(source / "images").rglob("*")]:
            if path.is_file():
                (draft / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, draft / path.relative_to(source))
        done = over_files(lambda path: _converted(path, reader, source, draft), files)
        faults = [str(each) for each in done if isinstance(each, ValueError)]
        if faults:
            raise ValueError(faults[0] + (f" ({len(faults) - 1} more files have such faults)" if faults[1:] else ""))
        changes = tuple(each for each in done if isinstance(each, FileChange))
        table = [change.model_dump(mode="json") for change in changes]
        (draft / RECORD).write_text(json.dumps(table, indent=1) + "\n")
        draft.rename(out)
    return changes


def _converted(path: Path, reader: "_Reader", source: Path, draft: Path) -> FileChange | ValueError:
    """One mask, written; or why that could not be decided."""
    target = draft / "masks" / path.parent.name / f"{path.stem}.png"
    name = path.relative_to(source).as_posix()
    try:
        mask_HW, distance_HW = reader.read(path)
    except ValueError as error:
        return ValueError(f"{name}: {error}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return ValueError(f"{name}: expected one mask of this name, but there is another: remove one")
    target.write_bytes(_index_png(mask_HW, reader.classes))
    return FileChange(
        file=target.relative_to(draft).as_posix(),
        source=name,
        pixels=reader.named_counts(mask_HW),
        rounded=int((distance_HW > 0).sum()),
        farthest=int(distance_HW.max(initial=0)),
    )


def _index_png(mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]) -> bytes:
    """A palette PNG whose palette is full, since Pillow stores no index beyond a shorter one: void is pale gray."""
    palette_V3 = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    palette_V3[: len(classes)] = [entry.color for entry in classes]
    image = Image.fromarray(mask_HW)
    image.putpalette(palette_V3.ravel().tolist())
    return encode_png(image)


class _Reader:
    """Stored masks to class indices, by one rule."""

    def __init__(self, dataset: Dataset, rule: Rule) -> None:
        self.rule, self.classes = rule, dataset.classes
        self.names = {entry.id: entry.name for entry in dataset.classes}
        if dataset.ignore_index is not None:
            self.names.setdefault(dataset.ignore_index, "void")
        self.indices = {name: index for index, name in self.names.items()}
        self.anchors = rule.map or {}
        if rule.colors:
            own = _written_colors(dataset.root / CLASSES, self.indices)
            self.anchors = own | color_table(_beside(rule.colors, dataset.root), self.indices)
        self.labels = _labels(_beside(rule.class_from, dataset.root)) if rule.class_from else {}

    def named_counts(self, mask_HW: NDArray[np.uint8]) -> dict[str, int]:
        counts = np.bincount(mask_HW.ravel())
        return {self.names[index]: int(counts[index]) for index in counts.nonzero()[0].tolist()}

    def read(self, path: Path) -> tuple[NDArray[np.uint8], Values]:
        """The mask and how far each pixel was from the value it took, (H, W); a ValueError says what is undecided."""
        stored = read_stored(path)
        distance_HW = np.zeros_like(stored.pixels)
        if self.rule.threshold is not None:
            mask_HW = (_gray(stored) >= self.rule.threshold) * self._above(path, stored)
        elif self.rule.colors and not self._is_done(stored):
            mask_HW, distance_HW = self._nearest(_colors(stored), packed=True)
        elif self.rule.map:
            mask_HW, distance_HW = self._nearest(_gray(stored), packed=False)
        else:
            mask_HW = _gray(stored)
        strange = sorted(set(count_values(mask_HW)[0].tolist()) - self.names.keys())
        if strange:
            known = ", ".join(f"{index} {name}" for index, name in self.names.items())
            raise ValueError(f"expected class indices ({known}), but got {strange}: say by --map what stands for them")
        return mask_HW.astype(np.uint8), distance_HW

    def _is_done(self, stored: StoredMask) -> bool:
        """Whether it holds class indices, and no palette that says others."""
        values_V, _ = count_values(stored.pixels)
        if stored.mode not in INDEX_MODES or not set(values_V.tolist()) <= self.names.keys():
            return False
        return stored.palette is None or not palette_contradicts(values_V, stored.palette[values_V], self.anchors)

    def _above(self, path: Path, stored: StoredMask) -> int:
        """The class of pixels above the threshold."""
        if not self.rule.class_from:
            return 1
        label = self.labels.get((path.parent.name, path.stem))
        if label in self.indices:
            return self.indices[label]
        if (_gray(stored) >= (self.rule.threshold or 0)).any():
            known = ", ".join(self.indices)
            raise ValueError(
                f"expected {self.rule.class_from} to give it a class ({known}), but got {label}: correct it"
            )
        return 0

    def _nearest(self, values_HW: Values, *, packed: bool) -> tuple[Values, Values]:
        """The class of the nearest anchor, of equally near ones the first, and the distance to it."""
        values_V, counts_V = count_values(values_HW)
        places_HW = np.searchsorted(values_V, values_HW)
        distance_VA = distances(values_V, np.array(list(self.anchors)), packed=packed)
        nearest_V = distance_VA.min(axis=1)
        far = int(nearest_V.argmax())
        if nearest_V[far] > self.rule.tolerance:
            raise ValueError(_undecided(values_V, counts_V, nearest_V, tolerance=self.rule.tolerance, packed=packed))
        index_V = np.array(list(self.anchors.values()))[distance_VA.argmin(axis=1)]
        return index_V[places_HW], nearest_V[places_HW]


def _undecided(values_V: Values, counts_V: Values, nearest_V: Values, *, tolerance: int, packed: bool) -> str:
    """Names the commonest pixels that are too far from any class."""
    too_far_V = np.flatnonzero(nearest_V > tolerance)
    worst = too_far_V[np.argsort(-counts_V[too_far_V], kind="stable")][:MOST_NAMED]
    told = ", ".join(f"{name_of(values_V[i], packed=packed)} ({counts_V[i]} pixels)" for i in worst)
    more = f" and {len(too_far_V) - len(worst)} more" if len(too_far_V) > len(worst) else ""
    option = "--colors FILE" if packed else "--map"
    return (
        f"expected no pixel farther than {tolerance} from a {'colour' if packed else 'level'} of a class, but got "
        f"{told}{more}: give them a class by {option}, or raise --tolerance to {nearest_V.max()}"
    )


def _gray(stored: StoredMask) -> Values:
    """Indices or gray levels (H, W), also of gray stored in colours."""
    if not stored.has_colors:
        return stored.pixels
    if not is_gray(stored.pixels):
        raise ValueError("expected indices or gray levels, but it holds colours: say by --colors what they mean")
    return stored.pixels & 255


def _colors(stored: StoredMask) -> Values:
    """Packed colours (H, W) of any mask."""
    if stored.has_colors:
        return stored.pixels
    if stored.palette is not None:
        return stored.palette[stored.pixels]
    return pack(np.repeat(stored.pixels[..., None], 3, axis=-1))


def _beside(path: Path, root: Path) -> Path:
    """A file of the data set, or else one named from where the command is run."""
    return root / path if (root / path).is_file() else path


def _labels(path: Path) -> dict[tuple[str, str], str]:
    return {(row["split"], row["stem"]): row["label"] for row in label_rows(path)}


def color_table(path: Path, indices: dict[str, int]) -> dict[int, int]:
    """The class index of each packed colour.

    Args:
        path: JSON like `classes.json`, or text with a line `R G B name` for each colour; several may have one name, and
            void, ignore, unlabelled or unlabeled is the set's `ignore_index`.
        indices: by class name; `void` is there where the set has an `ignore_index`.
    """
    text = read_text(path)
    is_json = text.lstrip().startswith("{")
    rows = _json_rows(path, text) if is_json else [line.split(maxsplit=3) for line in text.splitlines() if line.strip()]
    table: dict[int, int] = {}
    for row in rows:
        try:
            red, green, blue, name = *(int(str(part)) for part in row[:3]), str(row[3]).strip()
            color = int(pack(np.array([red, green, blue])))
            index = indices["void" if name.lower() in VOID_NAMES and name not in indices else name]
        except (ValueError, IndexError, KeyError):
            known = ", ".join(indices)
            raise ValueError(
                f"{path}: expected a line `R G B name` with a class ({known}), but got {' '.join(map(str, row))!r}: "
                "correct it"
            ) from None
        if table.setdefault(color, index) != index:
            raise ValueError(f"{path}: expected one class a colour, but {red} {green} {blue} has two: correct it")
    if not table:
        raise ValueError(f"{path}: expected colours of classes, but there are none: write `R G B name` lines")
    return table


def _written_colors(path: Path, indices: dict[str, int]) -> dict[int, int]:
    """As `color_table`, of `classes.json`: a class without a colour there has only one that was made up."""
    rows = _json_rows(path, read_text(path))
    return {int(pack(np.array(color))): indices[str(name)] for *color, name in rows}


def _json_rows(path: Path, text: str) -> list[list[object]]:
    try:
        return [[*entry["color"], entry["name"]] for entry in json.loads(text)["classes"] if entry.get("color")]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected JSON like classes.json, but it is not: correct it") from None
