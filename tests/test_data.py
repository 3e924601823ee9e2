import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segserve.spec import PreprocessSpec
from training.data import (
    IGNORE,
    channel_statistics,
    check_dataset,
    checked_dataset,
    data_digest,
    load_sample,
    read_image,
    read_mask,
    resize_mask,
)
from training.layouts import Sample, open_dataset
from training.synthetic import write_classification_set, write_segmentation_set

SPEC = PreprocessSpec(working_side=32, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound segmentation set."""
    write_segmentation_set(tmp_path / "set", seed=0, num_train=3, num_val=2, side=32)
    return tmp_path / "set"


def _save(path: Path, array: NDArray[np.uint8]) -> None:
    Image.fromarray(array).save(path)


# --- reading ---


def test_a_sample_comes_at_the_working_size_with_void_as_ignore(tmp_path: Path) -> None:
    _save(tmp_path / "image.png", np.full((20, 64, 3), 7, dtype=np.uint8))
    mask_HW = np.zeros((20, 64), dtype=np.uint8)
    mask_HW[:, 32:] = 11
    _save(tmp_path / "mask.png", mask_HW)
    sample = Sample(image=tmp_path / "image.png", truth=tmp_path / "mask.png")
    image_CHW, truth_HW = load_sample(sample, ignore_index=11, preprocess=SPEC)
    assert image_CHW.dtype == truth_HW.dtype == torch.uint8
    assert image_CHW.shape == (3, 10, 32) and truth_HW.shape == (10, 32)
    assert truth_HW[:, :16].unique().tolist() == [0]
    assert truth_HW[:, 16:].unique().tolist() == [IGNORE]


def test_a_label_comes_as_a_single_number(tmp_path: Path) -> None:
    _save(tmp_path / "image.png", np.zeros((40, 40, 3), dtype=np.uint8))
    _, truth = load_sample(Sample(image=tmp_path / "image.png", truth=3), ignore_index=None, preprocess=SPEC)
    assert truth.shape == () and truth.item() == 3


@pytest.mark.parametrize("size", [(5, 7), (10, 3), (1, 1), (23, 40)])
def test_a_resized_mask_takes_the_pixel_under_each_new_centre(size: tuple[int, int]) -> None:
    mask_HW = torch.randint(0, 4, (11, 13), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows, columns = ([int((i + 0.5) * old / new) for i in range(new)] for new, old in zip(size, (11, 13), strict=True))
    assert torch.equal(resize_mask(mask_HW, size), mask_HW[rows][:, columns])


def test_statistics_equal_numpy_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((5, 6), (9, 2))]
    pixels_CN = np.concatenate([image.reshape(3, -1).numpy() for image in images], axis=1) / 255
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, pixels_CN.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(std, pixels_CN.std(axis=1), atol=1e-6)


def test_images_of_one_colour_do_not_give_a_zero_deviation() -> None:
    assert min(channel_statistics([torch.zeros(3, 4, 4, dtype=torch.uint8)])[1]) > 0


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(ValueError, match=r"broken.png: expected a whole PNG image"):
        read_image(tmp_path / "broken.png")
    with pytest.raises(ValueError, match=r"broken.png: cannot identify image file"):
        read_mask(tmp_path / "broken.png")


def test_the_digest_depends_on_names_and_bytes_of_its_splits_only(root: Path) -> None:
    before = data_digest(root, ["train"])
    (root / "images/val/0000.png").unlink()
    (root / "notes.txt").write_text("anything")
    assert data_digest(root, ["train"]) == before
    (root / "images/train/0000.png").rename(root / "images/train/000.png")
    renamed = data_digest(root, ["train"])
    (root / "masks/train/0001.png").write_bytes(b"other")
    assert len({before, renamed, data_digest(root, ["train"])}) == 3


# --- the check ---


def test_sound_sets_pass(root: Path, tmp_path: Path) -> None:
    write_classification_set(tmp_path / "labels", seed=0, num_train=4, num_val=4, side=32)
    assert check_dataset(root, "segmentation") == []
    assert check_dataset(tmp_path / "labels", "classification") == []
    assert checked_dataset(root, "segmentation") == open_dataset(root, "segmentation")


def test_real_sets_pass(shared_data: Path) -> None:
    assert check_dataset(shared_data / "wbc", "segmentation") == []
    assert check_dataset(shared_data / "wbc", "classification") == []


def test_a_mask_of_another_size(root: Path) -> None:
    _save(root / "masks/train/0000.png", np.zeros((30, 40), dtype=np.uint8))
    assert check_dataset(root, "segmentation") == [
        "masks/train/0000.png: expected the size of its image, 32 x 32, but got 40 x 30"
    ]


def test_a_mask_of_colours(root: Path) -> None:
    _save(root / "masks/train/0000.png", np.zeros((32, 32, 3), dtype=np.uint8))
    (fault,) = check_dataset(root, "segmentation")
    assert fault.startswith("masks/train/0000.png: expected a mask whose pixels are class indices (mode L or P), but")
    assert "its mode is RGB" in fault


def test_values_that_are_no_class(root: Path) -> None:
    mask_HW = np.zeros((32, 32), dtype=np.uint8)
    mask_HW[0, :3] = 9, 200, 255
    _save(root / "masks/val/0001.png", mask_HW)
    sentence = "masks/val/0001.png: expected the class indices 0 to 4{}, but got {}: relabel those pixels"
    assert check_dataset(root, "segmentation") == [sentence.format("", [9, 200, 255])]
    table = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(json.dumps(table | {"ignore_index": 255}))
    assert check_dataset(root, "segmentation") == [sentence.format(" and the ignore_index 255", [9, 200])]


def test_files_that_are_broken(root: Path) -> None:
    (root / "images/train/0002.png").write_bytes((root / "images/train/0002.png").read_bytes()[:200])
    (root / "masks/train/0001.png").write_bytes(b"no image")
    faults = check_dataset(root, "segmentation")
    assert [fault.split(":")[0] for fault in faults] == ["masks/train/0001.png", "images/train/0002.png"]


def test_an_image_in_two_splits(root: Path) -> None:
    (root / "images/val/0000.png").write_bytes((root / "images/train/0002.png").read_bytes())
    (fault,) = check_dataset(root, "segmentation")
    assert fault == (
        "images/val/0000.png: expected an image that is in no other split, "
        "but it is a copy of images/train/0002.png: remove one"
    )


def test_an_empty_split(root: Path) -> None:
    for path in (*root.glob("images/val/*"), *root.glob("masks/val/*")):
        path.unlink()
    assert check_dataset(root, "segmentation") == [
        "split val: expected at least one image with its truth, but there is none"
    ]


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (fault,) = check_dataset(tmp_path, "segmentation")
    assert "classes.json, which names the classes, but it is missing" in fault


def test_a_faulty_set_is_refused_with_the_first_faults_and_their_number(root: Path) -> None:
    for index in range(25):
        (root / f"masks/train/x{index:02d}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it has 25 fault\(s\), correct them:\n  masks/train/x00.png: .*") as error:
        checked_dataset(root, "segmentation")
    assert len(str(error.value).splitlines()) == 22
    assert str(error.value).endswith("and 5 more")
