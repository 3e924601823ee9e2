"""Masks that need a person, out to the tools in which people label, and back: what is the same for all tools.

A pixel that no shape covers has no class: it comes back as `IGNORE`. Where shapes overlap, the upper one counts.

Dimensions: H, W.
"""

import filecmp
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from segserve.answers import Region
from segserve.png import encode_index_png
from segserve.spec import ClassSpec
from segserve.whole import write_whole
from training.data import IGNORE, read_image
from training.flywheel import cvat, label_studio
from training.flywheel.pseudolabel import image_files
from training.flywheel.round import Entry, Round, link
from training.flywheel.soft import SoftMask
from training.flywheel.task import Task
from training.layouts import Dataset, open_dataset

Tool = Literal["cvat", "label-studio"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a tool takes."""

    write: Callable[[Sequence[Task], Sequence[ClassSpec], str], bytes]
    """Tasks, classes and the model's name to a file."""
    labels: Callable[[Sequence[ClassSpec]], str]
    """The labels that a new project needs, as text."""


TOOLS: Mapping[Tool, Form] = {
    "cvat": Form(write=cvat.write, labels=cvat.labels_for),
    "label-studio": Form(write=label_studio.write, labels=label_studio.labels_for),
}


def export_labels(found: Round, tool: Tool) -> bytes:
    """A file for the tool with all images of a round that need a person; those to be labelled anew have no shapes."""
    if tool not in TOOLS:
        raise ValueError(f"expected one of {', '.join(get_args(Tool))}, but got {tool!r}: choose one of them")
    order = found.order
    entries = [entry for entry in found.entries().values() if entry.needs_person]
    if not entries:
        raise ValueError(f"expected images that need a person, but {found.path} has none: nothing is to be done")
    tasks = [_task(found, entry, score=entry.scores[order.thresholds.score]) for entry in entries]
    return TOOLS[tool].write(tasks, order.classes, f"{order.model} {order.artifact[:12]}")


def _task(found: Round, entry: Entry, *, score: float) -> Task:
    mask_HW = SoftMask.read(found.soft(entry.name)).mask_HW
    size = mask_HW.shape[0], mask_HW.shape[1]
    return Task(file=entry.file, size=size, mask_HW=mask_HW if entry.verdict == "review" else None, score=score)


def import_labels(path: Path, into: Path, *, images: Path | None = None, by: str = "a person") -> int:
    """Take masks that people made, as labelled ones, into a round or into a data set in the folder layout.

    Args:
        path: what the tool exported: "CVAT for images 1.1" (XML, or the zip it comes in), or Label Studio's JSON.
        into: a round, or a data set; there they become training images.
        images: where to find the images that a data set does not have yet.
        by: who made them.

    Returns:
        How many. Images without shapes are left out: nobody has labelled them yet. In a round, so are masks as the
        model drew them, where a person has corrected it before.

    Raises:
        ValueError: something does not fit: the file, an image's name, a mask's size, a class.
    """
    round_ = Round(into)
    if round_.is_begun and images is not None:
        raise ValueError(f"expected --images only for a data set, but {into} is a round: leave it out")
    dataset = None if round_.is_begun else open_dataset(into, "segmentation")
    classes = round_.order.classes if dataset is None else dataset.classes
    masks: dict[str, NDArray[np.uint8]] = {}
    for file, mask_HW in _masks(path, classes):
        if Path(file).stem in masks:
            raise ValueError(
                f"{path}: expected images with different names, but got {Path(file).stem} twice: leave one"
            )
        masks[Path(file).stem] = mask_HW
    if not masks:
        raise ValueError(
            f"{path}: expected images with shapes that a person drew or confirmed, but there are none: export CVAT for "
            "images 1.1, not for video, or Label Studio's annotations, not predictions alone"
        )
    if dataset is None:
        return _into_round(round_, masks, by)
    _into_dataset(dataset, masks, images)
    return len(masks)


def _masks(path: Path, classes: Sequence[ClassSpec]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """File names and masks of all images with shapes."""
    ids = {entry.name: entry.id for entry in classes}
    for file, regions in _images(path):
        strange = sorted({str(region.label) for region in regions} - ids.keys())
        if strange:
            raise ValueError(
                f"{path}: expected the classes {', '.join(ids)}, but {file} has {', '.join(strange)}: rename them"
            )
        if regions:
            mask_HW = _painted(regions, ids, where=f"{path}: {file}")
            if (mask_HW == IGNORE).all():
                raise ValueError(f"{path}: expected shapes that cover a pixel, but those of {file} do not: redraw them")
            yield file, mask_HW


def _images(path: Path) -> Iterable[tuple[str, Sequence[Region]]]:
    try:
        body = path.read_bytes()
    except OSError as error:
        raise ValueError(f"expected a file of labels, but {path}: {error.strerror}") from None
    try:
        body = _unzipped(body)
        reader = cvat.read if body.lstrip()[:1] == b"<" else label_studio.read
        return list(reader(body))
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected images, each with its shapes and their labels, but one is not whole ({error!r}): give "
            "what the tool exported"
        ) from None


def _unzipped(body: bytes) -> bytes:
    """CVAT's file out of the zip that it may come in."""
    if not zipfile.is_zipfile(io.BytesIO(body)):
        return body
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        if cvat.FILE not in archive.namelist():
            raise ValueError(f"expected {cvat.FILE} in it, but it has none: export as CVAT for images 1.1")
        return archive.read(cvat.FILE)


def _painted(regions: Sequence[Region], ids: Mapping[str, int], *, where: str) -> NDArray[np.uint8]:
    """One mask of at least one region, the later ones on top; `IGNORE` where there is none."""
    drawn = [(region.mask_HW, ids[str(region.label)]) for region in regions if region.mask_HW is not None]
    mask_HW = np.full(drawn[0][0].shape, IGNORE, dtype=np.uint8)
    for inside_HW, index in drawn:
        if inside_HW.shape != mask_HW.shape:
            raise ValueError(f"{where}: expected shapes of one size, but got {mask_HW.shape} and {inside_HW.shape}")
        mask_HW[inside_HW] = index
    return mask_HW


def _into_round(found: Round, masks: Mapping[str, NDArray[np.uint8]], by: str) -> int:
    with found.held():
        entries, order = found.entries(), found.order
        _check_known(masks, entries, f"name them as in {found.path / 'waiting'}", where=found.path)
        changed = {
            name: _corrected(entries[name], mask_HW, SoftMask.read(found.soft(name)).mask_HW, by)
            for name, mask_HW in masks.items()
        }
        taken = {name: entry for name, entry in changed.items() if entry.edited or not entries[name].edited}
        for name in taken:
            found.write_mask(name, masks[name], order.classes)
        found.rewrite(taken.get(name, entry) for name, entry in entries.items())
    return len(taken)


def _corrected(entry: Entry, mask_HW: NDArray[np.uint8], guess_HW: NDArray[np.uint8], by: str) -> Entry:
    """The line of an image that a person labelled."""
    _check_size(entry.name, mask_HW, guess_HW.shape)
    return entry.model_copy(
        update={
            "verdict": "accept",
            "decided_by": by,
            "source": "person",
            "edited": round(float((mask_HW != guess_HW).mean()), 6),
            "trained": round(float((mask_HW != IGNORE).mean()), 4),
        }
    )


def _into_dataset(dataset: Dataset, masks: Mapping[str, NDArray[np.uint8]], images: Path | None) -> None:
    folder = dataset.root / "images/train"
    there = {path.stem: path for path in folder.iterdir()} if folder.is_dir() else {}
    given = {path.stem: path for path in image_files(images)} if images else {}
    known = {**given, **there}
    _check_known(masks, known, "give --images FOLDER", where=images or folder)
    for name, mask_HW in masks.items():
        if name in there and name in given and not filecmp.cmp(there[name], given[name], shallow=False):
            raise ValueError(
                f"expected no other image of the name of {given[name]} in the data set, but {there[name]} is one: "
                "rename it and its mask"
            )
        _check_size(name, mask_HW, read_image(known[name]).shape[:2])
        if dataset.ignore_index is None and (mask_HW == IGNORE).any():
            raise ValueError(
                f"expected a class for every pixel of {name}, as {dataset.root} has no ignore_index, but some have "
                f'none: label them, or write "ignore_index": {IGNORE} into classes.json'
            )
    for name, mask_HW in masks.items():
        stored_HW = np.where(mask_HW == IGNORE, np.uint8(dataset.ignore_index or 0), mask_HW)
        write_whole(dataset.root / "masks/train" / f"{name}.png", encode_index_png(stored_HW, dataset.classes))
        if known[name].parent != folder:
            link(known[name], folder / known[name].name)


def _check_known(masks: Mapping[str, object], known: Mapping[str, object], todo: str, *, where: Path) -> None:
    strange = sorted(masks.keys() - known.keys())
    if strange:
        raise ValueError(f"expected images that are in {where}, but got {', '.join(strange[:5])}: {todo}")


def _check_size(name: str, mask_HW: NDArray[np.uint8], size: tuple[int, ...]) -> None:
    if mask_HW.shape != tuple(size):
        raise ValueError(
            f"expected a mask of the size of {name}, {size[1]} x {size[0]}, but got {mask_HW.shape[1]} x "
            f"{mask_HW.shape[0]}: label the image at its own size"
        )
