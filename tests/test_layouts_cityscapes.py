from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import IGNORE, data_digest, read_truth
from training.layouts import open_dataset

# Label ids as gtFine stores them, and the train ids of cityscapesScripts for them, by hand.
LABEL_IDS_HW = np.array([[0, 1, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 16, 17, 18, 19]], dtype=np.uint8)
TRAIN_IDS_HW = [[255, 255, 255, 255, 255, 255], [0, 1, 255, 255, 2, 3], [4, 255, 255, 5, 255, 6]]
MORE_LABEL_IDS_HW = np.array(
    [[20, 21, 22, 23, 24, 25], [26, 27, 28, 29, 30, 31], [32, 33, 255, 2, 15, 7]], dtype=np.uint8
)
MORE_TRAIN_IDS_HW = [[7, 8, 9, 10, 11, 12], [13, 14, 15, 255, 255, 16], [17, 18, 255, 255, 255, 0]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    places = {"train": ("ulm", "aachen"), "val": ("lindau",), "test": ("berlin",)}
    for split, cities in places.items():
        for city in cities:
            stem = f"{split}/{city}/{city}_000000_000019"
            stored_HW = LABEL_IDS_HW if city == "aachen" else MORE_LABEL_IDS_HW
            for kind, name in (
                ("leftImg8bit", "leftImg8bit"),
                ("gtFine", "gtFine_labelIds"),
                ("gtFine", "gtFine_color"),
            ):
                path = tmp_path / kind / f"{stem}_{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(stored_HW) if "labelIds" in name else Image.new("RGB", (6, 3))
                image.save(path)
    return tmp_path


def test_label_ids_become_train_ids(root: Path) -> None:
    dataset = open_dataset(root, "segmentation", layout="cityscapes")
    assert {split: [sample.image.parent.name for sample in found] for split, found in dataset.splits.items()} == {
        "train": ["aachen", "ulm"],
        "val": ["lindau"],
    }
    masks = [read_truth(sample, ignore_index=dataset.ignore_index).tolist() for sample in dataset.split("train")]
    assert masks == [TRAIN_IDS_HW, MORE_TRAIN_IDS_HW]
    assert [len(dataset.classes), dataset.classes[0].name, dataset.classes[18].name] == [19, "road", "bicycle"]
    assert dataset.classes[13].color == (0, 0, 142)
    assert (dataset.ignore_index, dataset.complaints) == (IGNORE, ())


def test_the_digest_covers_the_label_ids(root: Path) -> None:
    before = data_digest(open_dataset(root, "segmentation", layout="cityscapes"), ["train"])
    (changed,) = (root / "gtFine/train/ulm").glob("*labelIds.png")
    Image.fromarray(LABEL_IDS_HW).save(changed)
    assert data_digest(open_dataset(root, "segmentation", layout="cityscapes"), ["train"]) != before


def test_an_image_without_its_mask_is_complained_of(root: Path) -> None:
    (root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    dataset = open_dataset(root, "segmentation", layout="cityscapes")
    assert dataset.complaints == (
        "leftImg8bit/train: expected gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png, which belongs to it, "
        "but there is none: add the file",
    )
    assert len(dataset.splits["train"]) == 1


def test_hidden_files_are_left_out_beside_images_and_refused_beside_cities(root: Path) -> None:
    (root / "leftImg8bit/train/ulm/.DS_Store").write_text("")
    assert len(open_dataset(root, "segmentation", layout="cityscapes").split("train")) == 2
    (root / "leftImg8bit/train/.DS_Store").write_text("")
    with pytest.raises(ValueError, match=r"expected only folders named after cities in .*, but .*DS_Store is a file"):
        open_dataset(root, "segmentation", layout="cityscapes")


def test_archives_are_not_unpacked(tmp_path: Path) -> None:
    for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"leftImg8bit/train and gtFine/train, but there are no such folders: unpack"):
        open_dataset(tmp_path, "segmentation", layout="cityscapes")
