"""The built-in data sets: repeatable, laid out as the contract says, and a question of shape rather than of colour."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training import synthetic
from training.drawing import CLASS_NAMES, LABEL_NAMES, PALETTE, draw_sample
from training.synthetic import write_classification_set, write_segmentation_set

NUM_CLASSES = len(CLASS_NAMES)
Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Write = Callable[..., None]


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- the data sets ---


def test_segmentation_set_has_the_layout_of_the_contract(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "trays"
    write_segmentation_set(root, seed=1, num_train=3, num_val=2, side=64)
    for folder in ("images", "masks"):
        assert sorted(path.name for path in (root / folder / "train").iterdir()) == ["0000.png", "0001.png", "0002.png"]
        assert sorted(path.name for path in (root / folder / "val").iterdir()) == ["0000.png", "0001.png"]
    table = json.loads((root / "classes.json").read_text())
    assert table["ignore_index"] is None
    assert table["classes"][1] == {"id": 1, "name": "cell", "color": [228, 87, 86]}
    assert [row["name"] for row in table["classes"]] == list(CLASS_NAMES)


def test_written_masks_are_palette_pictures_of_class_indices(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=1, num_train=1, num_val=0, side=64)
    expected_HWC, expected_HW = draw_sample(np.random.default_rng([1, 0, 0]), side=64)
    with Image.open(tmp_path / "set/masks/train/0000.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), expected_HW)
        assert np.array_equal(np.asarray(mask.convert("RGB")), np.array(PALETTE)[expected_HW])
    with Image.open(tmp_path / "set/images/train/0000.png") as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected_HWC)


def test_classification_set_is_balanced(tmp_path: Path) -> None:
    write_classification_set(tmp_path / "set", seed=1, num_train=8, num_val=4, side=48)
    for split, each in (("train", 2), ("val", 1)):
        counts = {folder.name: len(list(folder.glob("*.png"))) for folder in (tmp_path / "set" / split).iterdir()}
        assert counts == dict.fromkeys(LABEL_NAMES, each)
    table = json.loads((tmp_path / "set/classes.json").read_text())
    assert [(row["id"], row["name"]) for row in table["classes"]] == list(enumerate(LABEL_NAMES))


@pytest.mark.parametrize("write", [write_segmentation_set, write_classification_set])
class TestBothWriters:
    def test_the_seed_decides_every_byte(self, write: Write, tmp_path: Path) -> None:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            write(tmp_path / name, seed=seed, num_train=2, num_val=1, side=48)
        assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
        assert _contents(tmp_path / "a") != _contents(tmp_path / "c")

    def test_splits_share_no_picture_and_grow_without_changing(self, write: Write, tmp_path: Path) -> None:
        write(tmp_path / "small", seed=1, num_train=4, num_val=4, side=48)
        write(tmp_path / "large", seed=1, num_train=6, num_val=4, side=48)
        small, large = _contents(tmp_path / "small"), _contents(tmp_path / "large")
        pictures = {name: data for name, data in small.items() if name.endswith(".png")}
        assert len(set(pictures.values())) == len(pictures)
        assert pictures.items() <= large.items()

    def test_a_finished_set_is_left_alone(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "set", seed=1, num_train=1, num_val=1, side=48)
        monkeypatch.setattr(synthetic, "_save_png", lambda *_: pytest.fail("drew again"))
        write(tmp_path / "set", seed=1, num_train=1, num_val=1, side=48)

    def test_other_parameters_are_refused(self, write: Write, tmp_path: Path) -> None:
        write(tmp_path / "set", seed=1, num_train=1, num_val=1, side=48)
        before = _contents(tmp_path / "set")
        with pytest.raises(
            ValueError, match=r"expected .*'seed': 2.*, but got .*'seed': 1.*: delete it or name another"
        ):
            write(tmp_path / "set", seed=2, num_train=1, num_val=1, side=48)
        assert _contents(tmp_path / "set") == before

    def test_a_folder_of_someone_else_is_refused(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ValueError, match="but got something else: delete it or name another folder"):
            write(tmp_path, seed=1, num_train=1, num_val=1, side=48)
        assert _contents(tmp_path) == {"thesis.txt": b"mine"}

    def test_nothing_half_written_remains(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save = synthetic._save_png

        def fill_the_disk(path: Path, image: Image.Image) -> None:
            if path.name == "0001.png":
                raise OSError("no space left on device")
            save(path, image)

        monkeypatch.setattr(synthetic, "_save_png", fill_the_disk)
        with pytest.raises(OSError, match="no space left"):
            write(tmp_path / "set", seed=1, num_train=3, num_val=1, side=48)
        assert list(tmp_path.iterdir()) == []

    def test_negative_counts_are_refused(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected num_val to be 0 or more, but got -1: pass a number"):
            write(tmp_path / "set", seed=1, num_train=1, num_val=-1)
        assert list(tmp_path.iterdir()) == []
