from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.layouts import open_dataset
from training.lint.survey import mask_facts, over_files, pack, read_stored, survey, unpack
from training.synthetic import write_classification_set, write_segmentation_set


def test_packed_colours_come_back() -> None:
    colors_N3 = np.random.default_rng(0).integers(0, 256, (20, 3))
    assert pack(np.array([[1, 2, 3]])).tolist() == [0x010203]
    assert np.array_equal(unpack(pack(colors_N3)), colors_N3)


@pytest.mark.parametrize(
    ("mode", "value", "stored"),
    [
        ("L", 7, 7),
        ("P", 7, 7),
        ("1", 1, 255),
        ("RGB", (1, 2, 3), 0x010203),
        ("RGBA", (1, 2, 3, 0), 0x010203),
        ("LA", (9, 9), 0x090909),
    ],
)
def test_every_mode_is_read_as_it_is_stored(
    tmp_path: Path, mode: str, value: int | tuple[int, ...], stored: int
) -> None:
    image = Image.new(mode, (4, 3), value)
    if mode == "P":
        image.putpalette([0] * 768)
    image.save(tmp_path / "a.png")
    mask = read_stored(tmp_path / "a.png")
    assert (mask.format, mask.mode, mask.pixels.shape) == ("PNG", mode, (3, 4))
    assert np.unique(mask.pixels).tolist() == [stored]
    assert mask.has_colors == (mode in ("RGB", "RGBA", "LA"))


def test_16_bits_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1, 60000]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_stored(tmp_path / "a.png").pixels.tolist() == [[1, 60000]]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"no image", "it is no image"),
        (lambda data: data[:60], "expected a whole image, but it cannot be"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, damage: object, sentence: str) -> None:
    assert callable(damage)
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (20, 20), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(damage((tmp_path / "a.png").read_bytes()))
    with pytest.raises(ValueError, match=sentence):
        read_stored(tmp_path / "a.png")


@pytest.mark.parametrize("colors", [False, True])
def test_values_are_counted(tmp_path: Path, colors: bool) -> None:
    pixels_HW = np.random.default_rng(0).integers(0, 5, (20, 30), dtype=np.uint8)
    stored = np.repeat(pixels_HW[..., None], 3, axis=2) if colors else pixels_HW
    Image.fromarray(stored).save(tmp_path / "a.png")
    facts = mask_facts(tmp_path / "a.png", tmp_path)
    assert (facts.name, facts.size) == ("a.png", (20, 30))
    assert (facts.values_V & 255).tolist() == list(range(5))
    assert facts.counts_V.tolist() == [int((pixels_HW == value).sum()) for value in range(5)]


def test_a_palettes_colours_stand_beside_the_indices(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[2, 0]], dtype=np.uint8))
    mask.putpalette([1, 1, 1, 0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "a.png")
    facts = mask_facts(tmp_path / "a.png", tmp_path)
    assert facts.values_V.tolist() == [0, 2]
    assert facts.colors_V is not None and facts.colors_V.tolist() == [0x010101, 0xFF0000]


def test_every_sample_is_looked_at_in_order(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "masks", seed=0, num_train=3, num_val=2, side=32)
    dataset = open_dataset(tmp_path / "masks", "segmentation")
    looks = survey(dataset)
    assert [look.name for look in looks] == [
        *(f"images/train/{index:04d}.png" for index in range(3)),
        *(f"images/val/{index:04d}.png" for index in range(2)),
    ]
    assert all(look.image and look.image.size == (32, 32) and not look.faults for look in looks)
    write_classification_set(tmp_path / "labels", seed=0, num_train=4, num_val=4, side=32)
    looks = survey(open_dataset(tmp_path / "labels", "classification"))
    assert [look.truth for look in looks] == [0, 1, 2, 3] * 2


def test_the_pool_keeps_the_order_and_does_not_swallow_errors() -> None:
    assert over_files(lambda number: number * 2, range(50)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        over_files(lambda number: 1 // number, [1, 0])
