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
    data_digest,
    load_sample,
    read_image,
    read_mask,
    resize_mask,
)
from training.layouts import Sample, open_dataset
from training.synthetic import write_segmentation_set

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


def _digest(root: Path) -> str:
    return data_digest(open_dataset(root, "segmentation"), ["train"])


def test_the_digest_depends_on_names_and_bytes_of_its_splits_only(root: Path) -> None:
    before = _digest(root)
    (root / "images/val/0000.png").unlink()
    (root / "notes.txt").write_text("anything")
    assert _digest(root) == before
    for folder in ("images", "masks"):
        (root / folder / "train/0000.png").rename(root / folder / "train/000.png")
    renamed = _digest(root)
    (root / "masks/train/0001.png").write_bytes(b"other")
    changed = _digest(root)
    (root / "classes.json").write_text((root / "classes.json").read_text() + "\n")
    assert len({before, renamed, changed, _digest(root)}) == 4
