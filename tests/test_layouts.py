import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from cli import main
from training.config import Layout, Recipe
from training.data import read_truth
from training.engine import train
from training.export import export_run
from training.layouts import OPENERS, PALETTE, detect_task, open_dataset

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Make files under the data set's root, and return the root."""

    def make(*names: str, content: str = "") -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return make


def _table(*names: str, **more: object) -> str:
    return json.dumps({"classes": [{"id": i, "name": name} for i, name in enumerate(names)], **more})


def test_images_with_masks(write: Write) -> None:
    write("classes.json", content=_table("sky", "road", ignore_index=7, note="kept elsewhere"))
    root = write("images/train/b.jpg", "images/train/a.png", "masks/train/a.png", "masks/train/b.png")
    dataset = open_dataset(root, "segmentation")
    assert [entry.name for entry in dataset.classes] == ["sky", "road"]
    assert dataset.ignore_index == 7
    assert [sample.image.name for sample in dataset.split("train")] == ["a.png", "b.jpg"]
    assert [sample.truth for sample in dataset.split("train")] == [
        root / "masks/train/a.png",
        root / "masks/train/b.png",
    ]
    assert dataset.complaints == ()


def test_a_folder_a_class(write: Write) -> None:
    write("classes.json", content=_table("hat", "shoe"))
    root = write("train/shoe/1.jpg", "train/hat/2.jpg", "train/hat/.hidden", "val/hat/1.jpg")
    dataset = open_dataset(root, "classification")
    found = [(sample.image.relative_to(root).as_posix(), sample.truth) for sample in dataset.split("train")]
    assert found == [("train/hat/2.jpg", 0), ("train/shoe/1.jpg", 1)]
    assert len(dataset.split("val")) == 1


def test_a_table_of_labels_in_the_order_of_their_ids(write: Write) -> None:
    write("labels.csv", content="split,stem,label_id,label\ntrain,x,1,apple\ntrain,y,0,pear\nval,z,1,apple\n")
    dataset = open_dataset(write("images/train/x.png", "images/train/y.png", "images/val/z.png"), "classification")
    assert [(entry.id, entry.name, entry.color) for entry in dataset.classes] == [
        (0, "pear", PALETTE[0]),
        (1, "apple", PALETTE[1]),
    ]
    assert [sample.truth for sample in dataset.split("train")] == [1, 0]


def test_a_table_of_labels_without_ids_is_sorted(write: Write) -> None:
    write("labels.csv", content="split,stem,label\ntrain,x,pear\ntrain,y,apple\n")
    dataset = open_dataset(write("images/train/x.png", "images/train/y.png"), "classification")
    assert [entry.name for entry in dataset.classes] == ["apple", "pear"]


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("masks/train/a.png", "labels.csv"), "segmentation"),
        (("labels.csv",), "classification"),
        (("train/hat/1.jpg",), "classification"),
    ],
)
def test_the_task_is_told_from_the_folders(write: Write, names: tuple[str, ...], task: str) -> None:
    assert detect_task(write(*names)) == task


def test_what_is_no_data_set_has_no_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to be a data set, but it has neither masks/, nor labels.csv, nor train/"):
        detect_task(tmp_path)


def test_what_is_no_folder_has_no_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a data set, but .*none is not a folder: correct its path"):
        detect_task(tmp_path / "none")


def test_orphans_and_double_names_are_complained_of(write: Write) -> None:
    write("classes.json", content=_table("sky", "road"))
    root = write(
        "images/train/a.png", "images/train/b.png", "images/train/b.jpg", "masks/train/b.png", "masks/val/c.png"
    )
    assert open_dataset(root, "segmentation").complaints == (
        "images/train/b.png: expected names that differ, but b.jpg is there too: remove one",
        "images/train/a.png: expected a mask masks/train/a.png, but there is none",
        "masks/val/c.png: expected an image images/val/c.*, but there is none",
    )


def test_a_folder_that_is_no_class_is_complained_of(write: Write) -> None:
    write("classes.json", content=_table("hat", "shoe"))
    root = write("train/hat/1.jpg", "train/shoes/1.jpg")
    (complaint,) = open_dataset(root, "classification").complaints
    assert complaint == "train/shoes: expected a folder named after a class in classes.json: rename or remove it"


def test_folders_among_files_are_complained_of(write: Write) -> None:
    write("classes.json", content=_table("hat", "shoe"))
    (complaint,) = open_dataset(write("train/hat/1.jpg", "train/hat/more/2.jpg"), "classification").complaints
    assert complaint == "train/hat/more: expected files, but this is a folder: move its files up, or it elsewhere"
    root = write(
        *(f"{kind}/train/{name}.png" for kind in ("images", "masks") for name in ("a", "deeper/b", ".hidden/c"))
    )
    assert [complaint.partition(":")[0] for complaint in open_dataset(root, "segmentation").complaints] == [
        "images/train/deeper",
        "masks/train/deeper",
    ]


def test_rows_without_images_and_images_without_rows_are_complained_of(write: Write) -> None:
    write("labels.csv", content="split,stem,label\ntrain,x,pear\ntrain,y,apple\n")
    root = write("images/train/x.png", "images/train/z.png")
    assert open_dataset(root, "classification").complaints == (
        "labels.csv: expected an image images/train/y.*, but there is none",
        "images/train/z.png: expected a row for train,z in labels.csv, but there is none",
    )


def test_two_rows_of_an_image_are_complained_of(write: Write) -> None:
    write("labels.csv", content="split,stem,label\ntrain,x,pear\ntrain,y,apple\ntrain,x,apple\nval,x,pear\n")
    root = write("images/train/x.png", "images/train/y.png", "images/val/x.png")
    assert open_dataset(root, "classification").complaints == (
        "labels.csv: expected one row for train,x, but there are several: leave one",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "classes.json: expected JSON, but it cannot be read: EOF while parsing an object at line 1 column 1"),
        ('{"classes": [{"id": 0}]}', r"classes.json: expected a value for 'classes.0.name', but none was given"),
        (_table("a", "b", "a"), "expected class names that differ"),
        ('{"classes": [{"id": 1, "name": "a"}]}', r"expected class ids 0, 1, 2 and so on, but got \[1\]"),
        (_table(), "classes.json: expected 2 to 255 classes, but got 0: correct it"),
        (_table(*map(str, range(300))), "classes.json: expected 2 to 255 classes, but got 300: correct it"),
        (
            '{"classes": [{"id": 0, "name": ""}]}',
            r"classes.json: expected 'classes.0.name' to have at least 1 char",
        ),
        (
            '{"classes": [{"id": 0, "name": "a", "color": [300, 0, 0]}]}',
            r"classes.json: 'classes.0.color': expected three values from 0 to 255, but got \[300, 0, 0\]",
        ),
        (_table("a", "b", ignore_index=-100), "expected 'ignore_index' to be greater than or equal to 0, but got -100"),
    ],
)
def test_a_wrong_table_of_classes_is_refused(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_dataset(write("classes.json", content=text), "segmentation")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("split,name\n", "expected the columns split, stem, label, but got split, name"),
        ("split,stem,label\ntrain,x,pear\ntrain,y\n", "expected split, stem and label in line 3, but one is empty"),
        (
            'split,stem,label\ntrain,x,"pear\n' + "train,y,plum\n" * 12_000,
            "labels.csv: expected a table, but after line 1 field larger than field limit .*: is a quote not closed",
        ),
        ("split,stem,label\ntrain,x,pear\n", "labels.csv: expected 2 to 255 classes, but got 1: correct it"),
        ("split,stem,label_id,label\ntrain,x,one,pear\n", "expected whole numbers in label_id"),
        ("split,stem,label_id,label\ntrain,x,0,pear\ntrain,y,1,pear\n", r"one label_id for each label, but \['pear'\]"),
        (
            "split,stem,label_id,label\ntrain,x,0,pear\ntrain,y,0,plum\n",
            r"one label_id for each label, but \[0\] have several",
        ),
    ],
)
def test_a_wrong_table_of_labels_is_refused(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_dataset(write("labels.csv", content=text), "classification")


def test_a_missing_folder_table_or_split_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none is not a folder: correct its path"):
        open_dataset(tmp_path / "none", "segmentation")
    with pytest.raises(ValueError, match=r"expected .*classes.json, which names the classes, but it is missing"):
        open_dataset(tmp_path, "segmentation")
    write("classes.json", content=_table("sky", "road"))
    dataset = open_dataset(write("images/train/a.png", "masks/train/a.png"), "segmentation")
    with pytest.raises(ValueError, match="to have images in split 'test', but it has train: add them"):
        dataset.split("test")


# --- the other layouts ---


def test_every_layout_of_a_recipe_can_be_opened() -> None:
    assert tuple(OPENERS) == get_args(Layout)
    page = (Path(__file__).resolve().parents[1] / "docs/datasets.md").read_text().partition("## Other layouts")[2]
    assert tuple(re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \| [^|]* \|$", page, flags=re.MULTILINE)) == get_args(
        Layout
    )


def test_an_unknown_layout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(tmp_path), "--layout", "yolo"]) == 2
    assert "expected the layout to be folder, coco, voc, cityscapes, pet, but got 'yolo'" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_a_fault(write: Write, tmp_path: Path) -> None:
    """As unpacked from an old archive with umlauts in Latin-1; a training's pages and digests are text."""
    write("classes.json", content=_table("sky", "road"))
    write("images/train/a.png", "masks/train/a.png")
    for kind in ("images", "masks"):
        Path(os.fsdecode(os.fsencode(tmp_path / kind / "train") + b"/z\xe4hne.png")).touch()
    (first, _) = open_dataset(tmp_path, "segmentation").complaints
    assert first == r"'images/train/z\udce4hne.png': expected a name in UTF-8, but it is none: rename it"


@pytest.mark.parametrize("layout", ["coco", "voc", "cityscapes"])
def test_no_classifier_is_trained_of_masks(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ValueError, match=rf"segmentation with layout {layout}, but got classification, .* or pet"):
        open_dataset(tmp_path, "classification", layout=layout)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_folder_without_what_the_layout_needs_is_refused_with_its_name(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ValueError, match=rf"expected .*{tmp_path.name}.*, but (it|there)"):
        open_dataset(tmp_path, "segmentation", layout=layout)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Gray images with one bright square each, which is an instance."""
    root = tmp_path / "squares"
    (root / "annotations").mkdir(parents=True)
    for split, number in (("train", 4), ("val", 2)):
        images, annotations = [], []
        (root / split).mkdir()
        for index in range(number):
            left = 4 * index + len(split)
            image_HWC = np.full((32, 48, 3), 60 + index, dtype=np.uint8)
            image_HWC[8:24, left : left + 16] = 220
            Image.fromarray(image_HWC).save(root / split / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "height": 32, "width": 48})
            square = [left, 8, left + 16, 8, left + 16, 24, left, 24]
            annotations.append({"id": index + 1, "image_id": index, "category_id": 5, "segmentation": [square]})
        table = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "square"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(table))
    return root


def test_from_coco_to_a_scored_artifact(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "squares",
            "task": "segmentation",
            "data": {"root": coco, "layout": "coco"},
            "network": {"encoder": "resnet18"},
            "preprocess": {"working_side": 48},
            "augment": {"crop": [32, 32]},
            "optim": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3},
        }
    )
    run = train(recipe, run_dir=tmp_path / "run", device=torch.device("cpu"))
    artifact = export_run(run, tmp_path / "artifact")
    assert [entry.name for entry in artifact.spec.classes] == ["background", "square"]
    assert artifact.spec.provenance.recipe["data"]["layout"] == "coco"
    assert "val_ece" in artifact.spec.provenance.scores
    capsys.readouterr()
    assert main(["evaluate", str(artifact.path), str(coco), "--layout", "coco"]) == 0
    counts = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:3]}
    assert counts == {"background": f"{2 * (32 * 48 - 16 * 16):,}", "square": f"{2 * 16 * 16:,}"}
    assert main(["evaluate", str(artifact.path), str(coco)]) == 2
    assert "classes.json, which names the classes, but it is missing" in capsys.readouterr().err


def test_real_masks_are_read_as_they_are_stored(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "wbc", "segmentation")
    sample = dataset.split("val")[0]
    assert isinstance(sample.truth, Path)
    assert np.array_equal(read_truth(sample, ignore_index=None), np.asarray(Image.open(sample.truth)))
