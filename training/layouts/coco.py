"""COCO: annotations/instances_train*.json and instances_val*.json, whose instances are painted into class masks.

Lin et al. 2014, https://arxiv.org/abs/1405.0312. Class 0 is `background`, the pixels without any instance; the others
are the categories in the order of their ids. Where instances overlap, the smaller one (in pixels) is on top, and of
equals the later one. Crowds (`iscrowd`) are void, below every instance.

Dimensions: H, W.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.datasets import CocoDetection

from segserve.spec import MAX_CLASSES, Task
from training.layouts.dataset import SPLITS, Dataset, Reading, Sample, named_classes
from training.layouts.masks import IGNORE

BACKGROUND = "background"
PREFIX = "instances_"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One region of an image."""

    segmentation: Any
    """As in the file: polygons [[x, y, x, y, ...], ...], or runs {"size", "counts"}, compressed or not."""
    index: int
    """Its class, or `IGNORE` for a crowd."""


@dataclass(frozen=True, kw_only=True)
class InstanceMask:
    """The class mask of one image, painted from its instances."""

    path: Path
    """The annotations' file."""
    image: str
    """The image's name in it."""
    height: int
    width: int
    instances: tuple[Instance, ...]

    def __str__(self) -> str:
        return f"{self.path} for {self.image}"

    def read(self) -> NDArray[np.uint8]:
        """Class indices with `IGNORE`, (H, W) uint8; a ValueError names the image."""
        regions = [(instance.index, self._region(instance)) for instance in self.instances]
        crowds_first_largest_first = sorted(regions, key=lambda pair: (pair[0] != IGNORE, -int(pair[1].sum())))
        mask_HW = np.zeros((self.height, self.width), dtype=np.uint8)
        for index, region_HW in crowds_first_largest_first:
            mask_HW[region_HW] = index
        return mask_HW

    def _region(self, instance: Instance) -> NDArray[np.bool_]:
        try:
            region_HW = _rasterised(instance.segmentation, self.height, self.width)
        except Exception as error:  # pycocotools raises nearly anything
            raise ValueError(f"{self}: expected polygons or runs, but cannot read them: {error}") from None
        if region_HW.shape != (self.height, self.width):
            raise ValueError(
                f"{self}: expected runs of an image of {self.width} x {self.height}, but got some of "
                f"{region_HW.shape[1]} x {region_HW.shape[0]}: correct their size"
            )
        return region_HW


FARTHEST = 1_000_000
"""Pixels from the corner."""


def _rasterised(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Polygons, or runs as numbers or as text, to (H, W)."""
    if segmentation == []:
        raise ValueError("there are none")
    if isinstance(segmentation, list):
        # Less than three points hold nothing; four numbers would be taken for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), dtype=bool)
        _check_coordinates(polygons)
        runs = coco.merge(coco.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        _check_length(segmentation["counts"], segmentation["size"])
        runs = coco.frPyObjects(segmentation, *segmentation["size"])
    else:
        _check_length(_lengths(segmentation["counts"]), segmentation["size"])
        runs = segmentation
    return np.asarray(coco.decode(runs), dtype=bool)


def _check_coordinates(polygons: Sequence[Sequence[float]]) -> None:
    """The rasteriser walks along each edge, and runs out of its memory beyond some millions of pixels."""
    far = [value for polygon in polygons for value in polygon if not abs(value) <= FARTHEST]  # NaN is not, either
    if far:
        raise ValueError(f"expected coordinates of at most {FARTHEST:,} pixels, but got {far[0]}")


def _check_length(lengths: Sequence[int], size: tuple[int, int]) -> None:
    """Of runs that end early the decoder leaves the rest of the mask as the memory was."""
    height, width = size
    if sum(lengths) != height * width:
        raise ValueError(f"expected runs over {height * width} pixels, but got some over {sum(lengths)}")


def _lengths(counts: str | bytes) -> list[int]:
    """Of runs as text: 5 bits a character, the lowest first, and from the fourth run on less the one two before.

    As `rleFrString` of https://github.com/cocodataset/cocoapi reads it.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value, shift = value | (bits & 31) << shift, shift + 5
        if not bits & 32:
            signed = value - (1 << shift) if bits & 16 else value
            lengths.append(signed + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def open_coco(root: Path, task: Task) -> Dataset:
    """A data set in COCO's layout.

    Args:
        root: holds annotations/instances_NAME.json with the images in NAME, images/NAME or images; NAME begins with
            the split's, as in `train2017`.
        task: segmentation.
    """
    reading, names = Reading(root), dict[str, list[str]]()
    for split, path in _annotations(root):
        origin = _load(path, images=_image_folder(root, path))
        try:
            categories = {entry["id"]: entry["name"] for entry in origin.coco.cats.values()}
            names[split] = _class_names(path, categories)
            reading.add(split, _samples(origin, path, class_indices(categories)), listed_in=path)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected every entry to have COCO's keys, but missed {error}: add it") from None
    return Dataset(
        root=root,
        task=task,
        classes=named_classes(_same_in_all(root, names)),
        ignore_index=IGNORE,
        splits=reading.splits,
        complaints_by_split=reading.complaints,
    )


def class_indices(categories: Mapping[int, str]) -> dict[int, int]:
    """Category id to class index: from 1 on in the order of the ids; one that is named `background` is class 0."""
    others = sorted(category for category, name in categories.items() if name != BACKGROUND)
    return dict.fromkeys(categories, 0) | {category: index for index, category in enumerate(others, start=1)}


def _class_names(path: Path, categories: Mapping[int, str]) -> list[str]:
    named = [name for _, name in sorted(categories.items()) if name != BACKGROUND]
    names = [BACKGROUND, *named]
    if len(set(names)) < len(names) or not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{path}: expected 1 to {MAX_CLASSES - 1} categories of different names beside {BACKGROUND}, "
            f"but got {len(names) - 1}, {len(set(names)) - 1} of them different: correct them"
        )
    return names


def _same_in_all(root: Path, names: Mapping[str, list[str]]) -> list[str]:
    different = {tuple(found) for found in names.values()}
    if len(different) != 1:
        raise ValueError(
            f"expected the same categories in all annotations of {root}, but "
            + "; ".join(f"{split} has {', '.join(found[1:])}" for split, found in names.items())
            + ": export them together"
        )
    return list(different.pop())


def _annotations(root: Path) -> list[tuple[str, Path]]:
    """The file of each split that has one."""
    found = []
    for split in SPLITS:
        paths = sorted((root / "annotations").glob(f"{PREFIX}{split}*.json"))
        if len(paths) > 1:
            raise ValueError(
                f"expected one {PREFIX}{split}*.json in {root / 'annotations'}, but there are "
                f"{', '.join(path.name for path in paths)}: move all but one elsewhere"
            )
        found += [(split, path) for path in paths]
    if not found:
        raise ValueError(
            f"expected {root} to hold annotations/{PREFIX}train*.json and {PREFIX}val*.json, but there are none: "
            "export the data set as COCO instances"
        )
    return found


def _image_folder(root: Path, annotations: Path) -> Path:
    name = annotations.stem.removeprefix(PREFIX)
    for folder in (root / name, root / "images" / name, root / "images"):
        if folder.is_dir():
            return folder
    raise ValueError(f"expected the images of {annotations} in {root / name}, but there is no such folder: add it")


def _load(path: Path, *, images: Path) -> CocoDetection:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            return CocoDetection(images, str(path))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"{path}: expected COCO instances, but cannot read them ({error!r}): export it anew") from None


def _samples(origin: CocoDetection, path: Path, indices: Mapping[int, int]) -> Iterator[Sample]:
    """In the order of the images' ids."""
    for image_id in origin.ids:
        entry = origin.coco.imgs[image_id]
        name = Path(entry["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path}: expected a file_name inside the images' folder, but got {name}: correct it")
        instances = (
            Instance(segmentation=found["segmentation"], index=_index(found, indices, path))
            for found in origin.coco.imgToAnns.get(image_id, [])
        )
        mask = InstanceMask(
            path=path, image=str(name), height=entry["height"], width=entry["width"], instances=tuple(instances)
        )
        yield Sample(image=Path(origin.root) / name, truth=mask)


def _index(annotation: Mapping[str, Any], indices: Mapping[int, int], path: Path) -> int:
    category = annotation["category_id"]
    if category not in indices:
        raise ValueError(
            f"{path}: expected categories of the file in annotation {annotation['id']}, but got {category}: correct it"
        )
    return IGNORE if annotation.get("iscrowd") else indices[category]
