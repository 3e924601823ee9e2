from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data import IGNORE, read_truth
from training.layouts import open_dataset
from training.layouts.voc import NAMES, voc_color

SIZE = (6, 8)


def _mask(index: int) -> NDArray[np.uint8]:
    """Background, a rectangle of class `index`, and VOC's border of void around it."""
    mask_HW = np.zeros(SIZE, dtype=np.uint8)
    mask_HW[1:5, 2:7] = 255
    mask_HW[2:4, 3:6] = index
    return mask_HW


def _write(folder: Path, **lists: str) -> Path:
    """A year of VOC with the images a (aeroplane), b (tvmonitor) and c (dog)."""
    for place in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / place).mkdir(parents=True)
    palette = [channel for index in range(256) for channel in voc_color(index)]
    for name, index in {"a": 1, "b": 20, "c": 12}.items():
        Image.new("RGB", SIZE[::-1], (index, 90, 30)).save(folder / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(_mask(index))
        mask.putpalette(palette)
        mask.save(folder / f"SegmentationClass/{name}.png")
    for split, names in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.fixture
def year(tmp_path: Path) -> Path:
    return _write(tmp_path / "VOCdevkit/VOC2012", train="ba", val="c")


def test_palette_masks_and_lists(year: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path, "segmentation", layout="voc")
    assert {split: [sample.image.stem for sample in samples] for split, samples in dataset.splits.items()} == {
        "train": ["b", "a"],
        "val": ["c"],
    }
    assert dataset.complaints == ()
    assert [entry.name for entry in dataset.classes][:2] == ["background", "aeroplane"]
    assert (len(dataset.classes), dataset.classes[20].name, dataset.ignore_index) == (21, "tvmonitor", IGNORE)
    for sample, index in zip(dataset.split("train"), (20, 1), strict=True):
        assert np.array_equal(read_truth(sample, ignore_index=dataset.ignore_index), _mask(index))


def test_the_years_own_folder_is_a_data_set_too(year: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset(Path("VOCdevkit/VOC2012"), "segmentation", layout="voc")
    assert dataset.split("val")[0].files == (
        Path("VOCdevkit/VOC2012/JPEGImages/c.jpg"),
        Path("VOCdevkit/VOC2012/SegmentationClass/c.png"),
    )


def test_2007_has_a_test_split(tmp_path: Path) -> None:
    _write(tmp_path / "VOCdevkit/VOC2007", train="a", val="b", test="c")
    assert [sample.image.stem for sample in open_dataset(tmp_path, "segmentation", layout="voc").split("test")] == ["c"]


def test_the_colours_are_those_of_the_palette() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: voc_color(index) for index in known} == known
    assert len(NAMES) == 21


def test_listed_files_that_are_missing_are_complained_of(year: Path, tmp_path: Path) -> None:
    (year / "SegmentationClass/b.png").unlink()
    dataset = open_dataset(tmp_path, "segmentation", layout="voc")
    assert dataset.complaints == (
        "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt: expected VOCdevkit/VOC2012/SegmentationClass/b.png, "
        "which belongs to it, but there is none: add the file",
    )
    assert [sample.image.stem for sample in dataset.splits["train"]] == ["a"]


def test_a_split_without_a_list_is_not_there(year: Path, tmp_path: Path) -> None:
    (year / "ImageSets/Segmentation/val.txt").unlink()
    assert list(open_dataset(tmp_path, "segmentation", layout="voc").splits) == ["train"]
    (year / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(ValueError, match=r"expected the lists train.txt and val.txt in .*ImageSets/Segmentation, but"):
        open_dataset(tmp_path, "segmentation", layout="voc")


def test_no_year_or_several_are_refused(year: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty to hold one year of Pascal VOC, .*, but it has none: set data.root to"
    ):
        open_dataset(tmp_path / "empty", "segmentation", layout="voc")
    (tmp_path / "VOCdevkit/VOC2007").mkdir()
    with pytest.raises(ValueError, match=r"but it has that of 2012 and 2007: set data.root to"):
        open_dataset(tmp_path, "segmentation", layout="voc")
