"""Data sets on disk: which images there are, and what is true of each, without looking at a pixel.

One file a layout; where torchvision knows a layout, its class finds the files. Nothing is ever downloaded.
"""

from collections.abc import Callable
from pathlib import Path

from segserve.spec import Task
from training.config import Layout
from training.layouts.cityscapes import open_cityscapes
from training.layouts.coco import open_coco
from training.layouts.dataset import PALETTE as PALETTE
from training.layouts.dataset import SPLITS as SPLITS
from training.layouts.dataset import Dataset as Dataset
from training.layouts.dataset import Sample as Sample
from training.layouts.dataset import with_names_checked
from training.layouts.folder import CLASSES as CLASSES
from training.layouts.folder import LABELS as LABELS
from training.layouts.folder import open_folder, task_of_folder
from training.layouts.pet import open_pet
from training.layouts.voc import open_voc

OPENERS: dict[Layout, Callable[[Path, Task], Dataset]] = {
    "folder": open_folder,
    "coco": open_coco,
    "voc": open_voc,
    "cityscapes": open_cityscapes,
    "pet": open_pet,
}
WITH_LABELS: tuple[Layout, ...] = ("folder", "pet")
"""Layouts of which a classifier can be trained, too."""


def detect_task(root: Path, *, layout: Layout = "folder") -> Task:
    """What the data set is for, or segmentation where it is good for both; a ValueError where it is no data set."""
    _check_folder(root)
    return task_of_folder(root) if layout == "folder" else "segmentation"


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise ValueError(f"expected a data set, but {root} is not a folder: correct its path")


def open_dataset(root: Path, task: Task, *, layout: Layout = "folder") -> Dataset:
    """Find a data set's classes and samples.

    Raises:
        ValueError: there is no data set of this kind; lesser faults are in the result's `complaints`.
    """
    _check_folder(root)
    if layout not in OPENERS:
        raise ValueError(f"expected the layout to be {', '.join(OPENERS)}, but got {layout!r}: give one of them")
    if task == "classification" and layout not in WITH_LABELS:
        raise ValueError(
            f"expected task segmentation with layout {layout}, but got classification, for which {root} has no labels: "
            f"change the task, or use layout {' or '.join(WITH_LABELS)}"
        )
    return with_names_checked(OPENERS[layout](root, task))
