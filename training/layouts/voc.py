"""Pascal VOC: palette PNGs in SegmentationClass (255 is void), lists in ImageSets/Segmentation.

Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4.
"""

from pathlib import Path

from torchvision.datasets import VOCSegmentation
from torchvision.datasets.voc import DATASET_YEAR_DICT

from segserve.spec import Color, Task
from training.layouts.dataset import Dataset, Reading, Sample, named_classes
from training.layouts.masks import IGNORE

NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = Path("ImageSets/Segmentation")


def open_voc(root: Path, task: Task) -> Dataset:
    """One year of Pascal VOC; `root` holds VOCdevkit, or is the year's own folder in it.

    Splits are `train` and `val`; those of 2007, whose truth was published later, also `test`.
    """
    parent, year = _find_year(root)
    folder = parent / DATASET_YEAR_DICT[year]["base_dir"]
    reading = Reading(root)
    for split in ("train", "val", "test") if year == "2007" else ("train", "val"):
        if (folder / LISTS / f"{split}.txt").is_file():
            origin = VOCSegmentation(parent, year=year, image_set=split, download=False)
            samples = [
                Sample(image=_under(root, image), truth=_under(root, mask))
                for image, mask in zip(origin.images, origin.masks, strict=True)
            ]
            reading.add(split, samples, listed_in=_under(root, folder / LISTS / f"{split}.txt"))
    if not reading.splits:
        raise ValueError(f"expected the lists train.txt and val.txt in {folder / LISTS}, but there are none: add them")
    return Dataset(
        root=root,
        task=task,
        classes=named_classes(NAMES, [voc_color(index) for index in range(len(NAMES))]),
        ignore_index=IGNORE,
        splits=reading.splits,
        complaints_by_split=reading.complaints,
    )


def _find_year(root: Path) -> tuple[Path, str]:
    """The folder torchvision calls root, and the year."""
    folders = {year: Path(entry["base_dir"]) for year, entry in DATASET_YEAR_DICT.items() if year.isdecimal()}
    for year, folder in folders.items():
        if root.absolute().parts[-len(folder.parts) :] == folder.parts:
            return root.absolute().parents[len(folder.parts) - 1], year
    found = [year for year, folder in folders.items() if (root / folder).is_dir()]
    if len(found) != 1:
        has = f"that of {' and '.join(found)}" if found else "none"
        raise ValueError(
            f"expected {root} to hold one year of Pascal VOC, as in VOCdevkit/VOC2012, but it has {has}: "
            "set data.root to the folder that holds VOCdevkit, or to the year's own"
        )
    return root, found[0]


def _under(root: Path, path: Path | str) -> Path:
    """The same file, named from `root` on, which may be relative."""
    return root / (Path(path).absolute().relative_to(root.absolute()))


def voc_color(index: int) -> Color:
    """The colour of a class in VOC's palette: three bits of the index in turn make one bit of red, green and blue."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    red, green, blue = channels
    return red, green, blue
