"""The built-in data sets: repeatable, laid out as the contract says, and a question of shape rather than of colour."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training import synthetic
from training.synthetic import (
    CLASS_NAMES,
    LABEL_NAMES,
    PALETTE,
    draw_labelled,
    draw_sample,
    write_classification_set,
    write_segmentation_set,
)

NUM_CLASSES = len(CLASS_NAMES)
Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Write = Callable[..., None]


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample(np.random.default_rng([3, i])) for i in range(24)]


# --- one picture ---


@pytest.mark.parametrize("side", [32, 97, 128])
def test_a_sample_has_the_documented_shapes_types_and_classes(side: int) -> None:
    image_HWC, mask_HW = draw_sample(np.random.default_rng(0), side=side)
    assert (image_HWC.shape, image_HWC.dtype) == ((side, side, 3), np.uint8)
    assert (mask_HW.shape, mask_HW.dtype) == ((side, side), np.uint8)
    assert mask_HW.max() < NUM_CLASSES


@pytest.mark.parametrize("label", range(len(LABEL_NAMES)))
def test_a_labelled_picture_is_repeatable_and_changes_with_its_label(label: int) -> None:
    first_HWC, again_HWC = (draw_labelled(np.random.default_rng(5), label=label) for _ in range(2))
    other_HWC = draw_labelled(np.random.default_rng(5), label=(label + 1) % len(LABEL_NAMES))
    assert (first_HWC.shape, first_HWC.dtype) == ((96, 96, 3), np.uint8)
    assert np.array_equal(first_HWC, again_HWC)
    assert not np.array_equal(first_HWC, other_HWC)


def test_the_same_generator_state_gives_the_same_sample() -> None:
    first, again, other = (draw_sample(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_most_pictures_hold_every_class(samples: list[Sample]) -> None:
    present_NK = np.array([np.bincount(mask_HW.ravel(), minlength=NUM_CLASSES) > 0 for _, mask_HW in samples])
    assert present_NK.all(axis=1).mean() > 0.7
    assert present_NK.mean(axis=0).min() > 0.8


def test_every_class_has_its_share_of_the_pixels(samples: list[Sample]) -> None:
    masks_NHW = np.stack([mask_HW for _, mask_HW in samples])
    share_K = np.bincount(masks_NHW.ravel(), minlength=NUM_CLASSES) / masks_NHW.size
    assert 0.6 < share_K[0] < 0.9
    assert share_K[1:].min() > 0.02


def test_objects_stand_out_from_the_tray(samples: list[Sample]) -> None:
    gray_pairs = [(image_HWC.mean(axis=2), mask_HW) for image_HWC, mask_HW in samples]
    gaps = [np.abs(gray[mask > 0] - np.median(gray[mask == 0])).mean() for gray, mask in gray_pairs]
    assert min(gaps) > 25


def test_colour_alone_does_not_tell_the_classes_apart(
    samples: list[Sample],
) -> None:
    """A nearest-mean-colour classifier, scored on the very pixels it was fitted to, stays far below a network."""
    colours_P3 = np.concatenate([image_HWC.reshape(-1, 3) for image_HWC, _ in samples]).astype(np.float32)
    truth_P = np.concatenate([mask_HW.ravel() for _, mask_HW in samples])
    means_K3 = np.stack([colours_P3[truth_P == k].mean(axis=0) for k in range(NUM_CLASSES)])
    guess_P = np.linalg.norm(colours_P3[:, None] - means_K3, axis=2).argmin(axis=1)
    confusion_KK = np.bincount(truth_P * NUM_CLASSES + guess_P, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, -1)
    hits_K = confusion_KK.diagonal()
    assert (hits_K / (confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - hits_K)).mean() < 0.25


@pytest.mark.parametrize("label", [-1, 4])
def test_an_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"expected a label from 0 to 3, but got {label}: see LABEL_NAMES"):
        draw_labelled(np.random.default_rng(0), label=label)


def test_a_tiny_side_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a side of at least 32 pixels, but got 31: ask for a larger picture"):
        draw_sample(np.random.default_rng(0), side=31)


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
