"""Cityscapes: images in leftImg8bit, fine masks in gtFine, whose label ids become the 19 classes that are scored.

Cordts et al. 2016, https://arxiv.org/abs/1604.01685.
"""

from pathlib import Path

from torchvision.datasets import Cityscapes

from segserve.spec import Task
from training.layouts.dataset import Dataset, Reading, Sample, named_classes
from training.layouts.masks import IGNORE, RelabelledMask

SPLITS_WITH_TRUTH = ("train", "val")
"""The masks of `test` are withheld; those files in its place are void."""
SCORED = tuple(entry for entry in Cityscapes.classes if not entry.ignore_in_eval)
"""In the order of their train ids, 0 to 18."""
INDICES = {entry.id % 256: IGNORE for entry in Cityscapes.classes} | {entry.id: entry.train_id for entry in SCORED}
"""Class index of each label id; -1 is stored as 255."""


def open_cityscapes(root: Path, task: Task) -> Dataset:
    """The fine masks of `train` and `val`; `root` holds leftImg8bit and gtFine."""
    reading = Reading(root)
    for split in SPLITS_WITH_TRUTH:
        # Where a folder is missing, torchvision would unpack archives.
        if all((root / kind / split).is_dir() for kind in ("leftImg8bit", "gtFine")):
            reading.add(split, _samples(root, split), listed_in=root / "leftImg8bit" / split)
    if not reading.splits:
        raise ValueError(
            f"expected {root} to hold Cityscapes, leftImg8bit/train and gtFine/train, but there are no such folders: "
            "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there"
        )
    return Dataset(
        root=root,
        task=task,
        classes=named_classes([entry.name for entry in SCORED], [entry.color for entry in SCORED]),
        ignore_index=IGNORE,
        splits=reading.splits,
        complaints_by_split=reading.complaints,
    )


def _samples(root: Path, split: str) -> list[Sample]:
    try:
        origin = Cityscapes(root, split=split, mode="fine", target_type="semantic")
    except NotADirectoryError as error:
        raise ValueError(
            f"expected only folders named after cities in {root / 'leftImg8bit' / split}, but {error.filename} is a "
            "file: remove it"
        ) from None
    pairs = sorted((Path(image), Path(mask)) for image, (mask,) in zip(origin.images, origin.targets, strict=True))
    return [
        Sample(image=image, truth=RelabelledMask(path=mask, indices=INDICES))
        for image, mask in pairs
        if not image.name.startswith(".")
    ]
