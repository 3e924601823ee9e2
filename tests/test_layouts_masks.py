import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.layouts.masks import IGNORE, RelabelledMask, read_mask

STORED_HW = np.array([[1, 2, 2], [3, 1, 7]], dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(STORED_HW).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_stored_values_become_class_indices(path: Path) -> None:
    mask = RelabelledMask(path=path, indices={1: 4, 2: 0, 3: IGNORE, 7: 1})
    assert mask.read().tolist() == [[4, 0, 0], [IGNORE, 4, 1]]
    assert mask.read().dtype == np.uint8
    assert str(mask) == str(path)


def test_workers_can_be_sent_one(path: Path) -> None:
    mask = RelabelledMask(path=path, indices={1: 4, 2: 0, 3: 1, 7: 1})
    assert np.array_equal(pickle.loads(pickle.dumps(mask)).read(), mask.read())


def test_values_that_the_layout_does_not_know_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"mask.png: expected only the values 1, 2, but got 3, 7: take the masks"):
        RelabelledMask(path=path, indices={1: 0, 2: 1}).read()


def test_palettes_are_read_as_indices_and_colours_are_refused(path: Path, tmp_path: Path) -> None:
    image = Image.fromarray(STORED_HW, mode=None).convert("L")
    image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    image.save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as saved:
        assert saved.mode == "P"
    assert np.array_equal(read_mask(tmp_path / "palette.png"), STORED_HW)
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(ValueError, match=r"mask.png: expected a mask whose pixels are class indices .* mode is RGB"):
        read_mask(path)
