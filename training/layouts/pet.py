"""Oxford-IIIT Pet: trimaps of pet, background and border, and 37 breeds as labels.

Parkhi et al. 2012, https://doi.org/10.1109/CVPR.2012.6248092.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from torchvision.datasets import OxfordIIITPet

from segserve.spec import Color, Task
from training.layouts.dataset import Dataset, Reading, Sample, named_classes
from training.layouts.masks import RelabelledMask

FOLDER = "oxford-iiit-pet"
TRIMAP_NAMES = ("background", "pet", "border")
TRIMAP_COLORS: tuple[Color, ...] = ((0, 0, 0), (245, 133, 24), (76, 120, 168))
TRIMAP_INDICES = {1: 1, 2: 0, 3: 2}
"""Class index of each stored value: foreground, background, "not classified", which is the pet's border."""
VAL_EVERY = 5
VAL_NOTE = f"Oxford-IIIT Pet has no val split: each {VAL_EVERY}th image of a breed in trainval.txt is taken for it"


def open_pet(root: Path, task: Task) -> Dataset:
    """Trimaps as masks, or breeds as labels; `root` holds oxford-iiit-pet with images and annotations."""
    tables = {name: root / FOLDER / "annotations" / f"{name}.txt" for name in ("trainval", "test")}
    missing = [path for path in (root / FOLDER / "images", *tables.values()) if not path.exists()]
    if missing:
        raise ValueError(
            f"expected {root} to hold Oxford-IIIT Pet, but there is no {missing[0].relative_to(root)}: "
            f"unpack images.tar.gz and annotations.tar.gz into {FOLDER} there"
        )
    trainval, breeds = _read(root, "trainval", task)
    test, _ = _read(root, "test", task)
    reading = Reading(root)
    is_val = [rank % VAL_EVERY == 0 for rank in _ranks([breed for _, breed in trainval])]
    for split, wanted in (("train", False), ("val", True)):
        chosen = [sample for (sample, _), held_out in zip(trainval, is_val, strict=True) if held_out is wanted]
        reading.add(split, chosen, listed_in=tables["trainval"])
    reading.add("test", [sample for sample, _ in test], listed_in=tables["test"])
    is_masks = task == "segmentation"
    return Dataset(
        root=root,
        task=task,
        classes=named_classes(TRIMAP_NAMES, TRIMAP_COLORS) if is_masks else named_classes(breeds),
        ignore_index=None,
        splits=reading.splits,
        complaints_by_split=reading.complaints,
        tables=() if is_masks else tuple(tables.values()),
        notes=(VAL_NOTE,),
    )


def _read(root: Path, split: Literal["trainval", "test"], task: Task) -> tuple[list[tuple[Sample, int]], list[str]]:
    """The samples in the order of the list, each with its breed, and the breeds' names."""
    path = root / FOLDER / "annotations" / f"{split}.txt"
    try:
        origin = OxfordIIITPet(root, split=split, download=False)
    except ValueError as error:
        raise ValueError(f"{path}: expected lines of name, breed, species and number: {error}; correct them") from None
    # torchvision keeps the paths to itself.
    found = list(zip(origin._images, origin._segs, origin._labels, strict=True))
    if sorted({label for *_, label in found}) != list(range(len(origin.classes))):
        raise ValueError(f"{path}: expected breeds numbered 1, 2, 3 and so on, a name each: correct them")
    samples = [
        (Sample(image=image, truth=breed if task == "classification" else _trimap(mask)), breed)
        for image, mask, breed in found
    ]
    return samples, origin.classes


def _trimap(path: Path) -> RelabelledMask:
    return RelabelledMask(path=path, indices=TRIMAP_INDICES)


def _ranks(breeds: list[int]) -> list[int]:
    """For each entry, how many of its kind there are up to and with it."""
    counts, ranks = Counter[int](), []
    for breed in breeds:
        counts[breed] += 1
        ranks.append(counts[breed])
    return ranks
