"""The contract's own layouts (section 3): images with masks, a folder a class, images with a table of labels."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from segserve.settings import explain
from segserve.spec import MAX_CLASSES, ClassSpec, Color, Task
from segserve.text import read_text
from training.layouts.dataset import SPLITS, Dataset, Reading, Sample, named_classes

CLASSES, LABELS = "classes.json", "labels.csv"
LABEL_COLUMNS = ("split", "stem", "label")


class _ClassEntry(BaseModel):
    id: int
    name: str = Field(min_length=1)
    color: Color | None = None


class _ClassTable(BaseModel):
    """`classes.json`; keys that are not ours are notes and left alone."""

    classes: list[_ClassEntry]
    ignore_index: int | None = Field(default=None, ge=0, le=255)


def task_of_folder(root: Path) -> Task:
    """`segmentation` where there are masks, `classification` where there are labels or class folders."""
    if (root / "masks").is_dir():
        return "segmentation"
    if (root / LABELS).is_file() or any((root / split).is_dir() for split in SPLITS):
        return "classification"
    raise ValueError(
        f"expected {root} to be a data set, but it has neither masks/, nor {LABELS}, nor train/ with a folder a class: "
        "see the layouts in the documentation"
    )


def open_folder(root: Path, task: Task) -> Dataset:
    """A data set in one of the contract's layouts; a ValueError where its classes cannot be read."""
    reading, ignore_index = Reading(root), None
    if task == "segmentation":
        classes, ignore_index = _read_classes(root)
        _read_masked(reading)
    elif (root / LABELS).is_file():
        classes = _read_labelled(reading)
    else:
        classes, _ = _read_classes(root)
        _read_class_folders(reading, classes)
    return Dataset(
        root=root,
        task=task,
        classes=classes,
        ignore_index=ignore_index,
        splits=reading.splits,
        complaints_by_split=reading.complaints,
        tables=tuple(root / name for name in (CLASSES, LABELS) if (root / name).is_file()),
    )


def _read_classes(root: Path) -> tuple[tuple[ClassSpec, ...], int | None]:
    path = root / CLASSES
    if not path.is_file():
        raise ValueError(f"expected {path}, which names the classes, but it is missing: write it")
    try:
        table = _ClassTable.model_validate_json(read_text(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    entries = sorted(table.classes, key=lambda entry: entry.id)
    if [entry.id for entry in entries] != list(range(len(entries))):
        raise ValueError(f"{path}: expected class ids 0, 1, 2 and so on, but got {[entry.id for entry in entries]}")
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: expected class names that differ, but got {names}: rename the double ones")
    _check_number(path, len(names))
    return named_classes(names, [entry.color for entry in entries]), table.ignore_index


def _check_number(path: Path, count: int) -> None:
    if not 2 <= count <= MAX_CLASSES:
        raise ValueError(f"{path}: expected 2 to {MAX_CLASSES} classes, but got {count}: correct it")


def _files(reading: Reading, split: str, folder: Path) -> list[Path]:
    """Its files in order, hidden ones left out. Folders are complained of: what is in them would be left out, too."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            reading.complain(split, path, "expected files, but this is a folder: move its files up, or it elsewhere")
    return found


def _by_stem(reading: Reading, split: str, kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(reading, split, reading.root / kind / split):
        if path.stem in found:
            reading.complain(
                split, path, f"expected names that differ, but {found[path.stem].name} is there too: remove one"
            )
        found.setdefault(path.stem, path)
    return found


def _read_masked(reading: Reading) -> None:
    for split in SPLITS:
        image_folder, mask_folder = reading.root / "images" / split, reading.root / "masks" / split
        images, masks = _by_stem(reading, split, "images"), _by_stem(reading, split, "masks")
        for stem in sorted(images.keys() - masks.keys()):
            reading.complain(split, images[stem], f"expected a mask masks/{split}/{stem}.png, but there is none")
        for stem in sorted(masks.keys() - images.keys()):
            reading.complain(split, masks[stem], f"expected an image images/{split}/{stem}.*, but there is none")
        if image_folder.is_dir() or mask_folder.is_dir():
            stems = sorted(images.keys() & masks.keys())
            reading.splits[split] = tuple(Sample(image=images[stem], truth=masks[stem]) for stem in stems)


def _read_class_folders(reading: Reading, classes: tuple[ClassSpec, ...]) -> None:
    indices = {entry.name: entry.id for entry in classes}
    for split in SPLITS:
        folder = reading.root / split
        if not folder.is_dir():
            continue
        for child in sorted(folder.iterdir()):
            if child.name not in indices and not child.name.startswith("."):
                reading.complain(
                    split, child, f"expected a folder named after a class in {CLASSES}: rename or remove it"
                )
        paths = [(path, index) for name, index in indices.items() for path in _files(reading, split, folder / name)]
        reading.splits[split] = tuple(Sample(image=path, truth=index) for path, index in paths)


def _read_labelled(reading: Reading) -> tuple[ClassSpec, ...]:
    rows = list(label_rows(reading.root / LABELS))
    names = _label_names(reading.root / LABELS, rows)
    indices = {name: index for index, name in enumerate(names)}
    for split in SPLITS:
        images = _by_stem(reading, split, "images")
        own, table = [row for row in rows if row["split"] == split], reading.root / LABELS
        labels = {row["stem"]: indices[row["label"]] for row in own}
        for stem in sorted(stem for stem, count in Counter(row["stem"] for row in own).items() if count > 1):
            reading.complain(split, table, f"expected one row for {split},{stem}, but there are several: leave one")
        for stem in sorted(labels.keys() - images.keys()):
            reading.complain(split, table, f"expected an image images/{split}/{stem}.*, but there is none")
        for stem in sorted(images.keys() - labels.keys()):
            reading.complain(split, images[stem], f"expected a row for {split},{stem} in {LABELS}, but there is none")
        if images or labels:
            stems = sorted(images.keys() & labels.keys())
            reading.splits[split] = tuple(Sample(image=images[stem], truth=labels[stem]) for stem in stems)
    return named_classes(names)


def label_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of `labels.csv`; a ValueError says what its columns, or a line, lack."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    found = reader.fieldnames or ()
    if not set(LABEL_COLUMNS) <= set(found):
        raise ValueError(f"{path}: expected the columns {', '.join(LABEL_COLUMNS)}, but got {', '.join(found)}")
    try:
        for row in reader:
            if not all(row[column] for column in LABEL_COLUMNS):
                raise ValueError(f"{path}: expected split, stem and label in line {reader.line_num}, but one is empty")
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{path}: expected a table, but after line {reader.line_num} {error}: is a quote not closed?"
        ) from None


def _label_names(path: Path, rows: Sequence[dict[str, str]]) -> list[str]:
    """The class names: in the order of `label_id` where the table has it, else sorted."""
    pairs = {(row.get("label_id") or "0", row["label"]) for row in rows}
    try:
        ordered = sorted((int(label_id), name) for label_id, name in pairs)
    except ValueError as error:
        raise ValueError(f"{path}: expected whole numbers in label_id: {error}; correct them") from None
    has_ids = any(row.get("label_id") for row in rows)
    for column in (0, 1) if has_ids else ():
        counts = Counter(pair[column] for pair in ordered)
        double = [value for value, count in counts.items() if count > 1]
        if double:
            raise ValueError(f"{path}: expected one label_id for each label, but {double} have several: correct them")
    _check_number(path, len(ordered))
    return [name for _, name in ordered]
