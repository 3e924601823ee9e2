import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from skimage.draw import polygon2mask

from training.data import IGNORE, data_digest, read_truth
from training.layouts import open_dataset
from training.layouts.coco import Instance, InstanceMask, class_indices

HEIGHT, WIDTH = 8, 10
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
CAR, DOG = 1, 2
"""Class indices: categories in the order of their ids, after the background."""

Write = Callable[..., Path]


def _rectangle(top: int, bottom: int, left: int, right: int) -> list[list[float]]:
    """A polygon of the pixels [top:bottom, left:right]."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def _runs(mask_HW: NDArray[np.uint8]) -> dict[str, Any]:
    """Uncompressed: lengths of 0 and 1 by turns, column by column."""
    flat = mask_HW.ravel(order="F").tolist()
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return {"size": list(mask_HW.shape), "counts": counts}


def _read(*instances: tuple[Any, int]) -> NDArray[np.uint8]:
    return InstanceMask(
        path=Path("instances_train.json"),
        image="a.png",
        height=HEIGHT,
        width=WIDTH,
        instances=tuple(Instance(segmentation=segmentation, index=index) for segmentation, index in instances),
    ).read()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A data set whose train split has one image a.png with these annotations, and whose val split has one without."""

    def make(*annotations: dict[str, Any], place: str = "{}2017", **more: Any) -> Path:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split, found in (("train", annotations), ("val", ())):
            table = {
                "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
                "annotations": [{"id": 1 + index, "image_id": 7, **entry} for index, entry in enumerate(found)],
                "categories": CATEGORIES,
            }
            table |= more if split == "train" else {}
            (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(table))
            folder = tmp_path / place.format(split)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (len(split), 0, 0)).save(folder / "a.png")
        return tmp_path

    return make


# --- painting ---


def test_a_polygon_and_both_kinds_of_runs_hold_the_same_pixels() -> None:
    expected_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected_HW[2:5, 1:7] = 1
    compressed = coco.encode(np.asfortranarray(expected_HW))
    for segmentation in (_rectangle(2, 5, 1, 7), _runs(expected_HW), compressed):
        assert np.array_equal(_read((segmentation, CAR)), expected_HW)
    as_text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    assert np.array_equal(_read((as_text, CAR)), expected_HW)


def test_an_instance_of_several_polygons_holds_them_all() -> None:
    expected_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected_HW[1:3, 1:4] = expected_HW[5:8, 6:10] = DOG
    assert np.array_equal(_read((_rectangle(1, 3, 1, 4) + _rectangle(5, 8, 6, 10), DOG)), expected_HW)


def test_a_slanted_polygon_is_that_of_scikit_image_but_for_its_border() -> None:
    points = [(1.0, 0.5), (8.7, 2.2), (4.1, 7.4)]
    mask_HW = _read(([[value for point in points for value in point]], CAR))
    centres_HW = polygon2mask((HEIGHT, WIDTH), [(y - 0.5, x - 0.5) for x, y in points])
    differ_HW = (mask_HW == CAR) != centres_HW
    assert centres_HW.sum() > 20 and differ_HW.sum() <= 4


def test_the_smaller_is_on_top_whatever_the_order_and_of_equals_the_later() -> None:
    large, small = (_rectangle(0, 6, 0, 8), CAR), (_rectangle(2, 4, 2, 5), DOG)
    expected_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected_HW[0:6, 0:8] = CAR
    expected_HW[2:4, 2:5] = DOG
    assert np.array_equal(_read(large, small), expected_HW)
    assert np.array_equal(_read(small, large), expected_HW)
    first, second = (_rectangle(0, 2, 0, 4), CAR), (_rectangle(0, 2, 2, 6), DOG)
    assert _read(first, second)[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    assert _read(second, first)[0].tolist() == [1, 1, 1, 1, 2, 2, 0, 0, 0, 0]


def test_a_crowd_is_void_below_every_instance() -> None:
    crowd, larger = (_rectangle(0, 2, 0, 4), IGNORE), (_rectangle(0, 4, 2, 8), CAR)
    assert _read(larger, crowd)[1].tolist() == [255, 255, 1, 1, 1, 1, 1, 1, 0, 0]


def test_polygons_without_area_hold_nothing() -> None:
    """Four numbers would be a box to pycocotools."""
    assert _read(([[2, 2, 5, 5]], CAR)).max() == 0


def test_categories_are_numbered_in_the_order_of_their_ids() -> None:
    assert class_indices({18: "dog", 3: "car"}) == {18: 2, 3: 1}
    assert class_indices({0: "background", 5: "b", 2: "a"}) == {0: 0, 5: 2, 2: 1}


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ([], r"instances_train.json for a.png: expected polygons or runs, but cannot read them: there are none"),
        ("polygon", r"instances_train.json for a.png: expected polygons or runs, but cannot read them"),
        ({"size": [3, 4], "counts": [2, 10]}, r"expected runs of an image of 10 x 8, but got some of 4 x 3"),
        ({"size": [8, 10], "counts": [2, 3]}, r"cannot read them: expected runs over 80 pixels, but got some over 5"),
        ({"size": [8, 10], "counts": "23"}, r"cannot read them: expected runs over 80 pixels, but got some over 5"),
        ([[0.0, 0.0, 1e8, 0.0, 0.0, 9.0]], r"expected coordinates of at most 1,000,000 pixels, but got 100000000.0"),
        ([[0.0, 0.0, math.nan, 0.0, 0.0, 9.0]], r"expected coordinates of at most 1,000,000 pixels, but got nan"),
        ({"size": [8, 10], "counts": [2, 1000]}, r"expected polygons or runs, but cannot read them"),
    ],
)
def test_a_segmentation_that_cannot_be_read_is_named(segmentation: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _read((segmentation, CAR))


# --- the files ---


def test_images_masks_and_classes(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    car = {"category_id": 3, "segmentation": _rectangle(0, 6, 0, 8), "iscrowd": 0}
    crowd = {"category_id": 3, "segmentation": _runs(np.eye(HEIGHT, WIDTH, 9, dtype=np.uint8)), "iscrowd": 1}
    dog = {"category_id": 18, "segmentation": _rectangle(2, 4, 2, 5)}
    dataset = open_dataset(write(dog, car, crowd), "segmentation", layout="coco")
    assert [entry.name for entry in dataset.classes] == ["background", "car", "dog"]
    assert (dataset.ignore_index, dataset.complaints, list(dataset.splits)) == (IGNORE, (), ["train", "val"])
    expected_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected_HW[0, 9] = IGNORE
    expected_HW[0:6, 0:8] = CAR
    expected_HW[2:4, 2:5] = DOG
    (sample,) = dataset.split("train")
    assert np.array_equal(read_truth(sample, ignore_index=dataset.ignore_index), expected_HW)
    assert np.array_equal(read_truth(pickle.loads(pickle.dumps(sample)), ignore_index=IGNORE), expected_HW)
    assert read_truth(dataset.split("val")[0], ignore_index=IGNORE).max() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", ["{}2017", "images/{}2017", "images"])
def test_images_are_found_where_tools_put_them(write: Write, place: str) -> None:
    dataset = open_dataset(write(place=place), "segmentation", layout="coco")
    assert dataset.split("train")[0].image == dataset.root / place.format("train") / "a.png"


def test_the_digest_covers_the_annotations_of_its_splits(write: Write) -> None:
    def digest() -> str:
        return data_digest(open_dataset(root, "segmentation", layout="coco"), ["train"])

    root = write()
    before = digest()
    for split, changes in (("val", False), ("train", True)):
        path = root / f"annotations/instances_{split}2017.json"
        path.write_text(path.read_text() + "\n")
        assert (digest() != before) is changes


def test_an_image_that_is_missing_is_complained_of(write: Write) -> None:
    root = write()
    (root / "train2017/a.png").unlink()
    assert open_dataset(root, "segmentation", layout="coco").complaints == (
        "annotations/instances_train2017.json: expected train2017/a.png, which belongs to it, but there is none: "
        "add the file",
    )


IMAGE = {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"categories": []},
            "train2017.json: expected 1 to 254 categories of different names .*, but got 0, 0 of them",
        ),
        ({"categories": [{"id": i, "name": "car"} for i in range(2)]}, "but got 2, 1 of them different: correct them"),
        ({"categories": [{"id": i, "name": str(i)} for i in range(255)]}, "but got 255, 255 of them different"),
        (
            {"categories": CATEGORIES[:1]},
            "same categories in all annotations of .*, but train has dog; val has car, dog",
        ),
        ({"categories": [{"id": 3}]}, "train2017.json: expected every entry to have COCO's keys, but missed 'name'"),
        (
            {"images": [{"id": 7, "file_name": "a.png"}]},
            "expected every entry to have COCO's keys, but missed 'height'",
        ),
        (
            {"images": [{**IMAGE, "file_name": "../a.png"}]},
            "expected a file_name inside the images' folder, but got ../a",
        ),
        ({"annotations": [{"id": 1}]}, r"expected COCO instances, but cannot read them \(KeyError\('image_id'\)\)"),
        (
            {"annotations": [{"id": 4, "image_id": 7, "category_id": 9, "segmentation": []}]},
            "train2017.json: expected categories of the file in annotation 4, but got 9: correct it",
        ),
        (
            {"annotations": [{"id": 4, "image_id": 7, "category_id": 3}]},
            "train2017.json: expected every entry to have COCO's keys, but missed 'segmentation': add it",
        ),
    ],
)
def test_wrong_annotations_are_refused(write: Write, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_dataset(write(**more), "segmentation", layout="coco")


def test_missing_broken_and_double_files_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"to hold annotations/instances_train\*.json and .* but there are none: export"
    ):
        open_dataset(tmp_path, "segmentation", layout="coco")
    root = write()
    (root / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(ValueError, match=r"train2017.json: expected COCO instances, but cannot read them \(JSONDecode"):
        open_dataset(root, "segmentation", layout="coco")
    (root / "annotations/instances_train2017.json").rename(root / "annotations/instances_train.json")
    with pytest.raises(ValueError, match=r"expected the images of .*instances_train.json in .*train, but there is no"):
        open_dataset(root, "segmentation", layout="coco")
    write()
    with pytest.raises(ValueError, match=r"but there are instances_train.json, instances_train2017.json: move all but"):
        open_dataset(root, "segmentation", layout="coco")
