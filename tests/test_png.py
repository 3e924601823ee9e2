import base64
import io

import numpy as np
import pytest
from PIL import Image

from segserve.png import NO_CLASS, encode_gray_png, encode_index_png, encode_overlay_png, to_base64
from tests.conftest import CLASSES, random_image


def test_an_index_png_is_for_eye_and_program() -> None:
    mask_HW = np.random.default_rng(0).integers(0, 4, (7, 5), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_index_png(mask_HW, CLASSES)))
    assert (image.format, image.mode, image.size) == ("PNG", "P", (5, 7))
    np.testing.assert_array_equal(np.asarray(image), mask_HW)
    colors = np.array([entry.color for entry in CLASSES])
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[mask_HW])


@pytest.mark.parametrize("index", [len(CLASSES), 9, NO_CLASS])
def test_what_is_no_class_keeps_its_index_and_is_black(index: int) -> None:
    mask_HW = np.array([[0, index], [3, 3]], dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_index_png(mask_HW, CLASSES)))
    np.testing.assert_array_equal(np.asarray(image), mask_HW)
    assert np.asarray(image.convert("RGB"))[0].tolist() == [list(CLASSES[0].color), [0, 0, 0]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 3)])
def test_index_pngs_of_one_class_keep_size_and_mode(shape: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(encode_index_png(np.zeros(shape, dtype=np.uint8), CLASSES)))
    assert (image.mode, image.size) == ("P", shape[::-1])


def test_a_gray_png_keeps_its_values() -> None:
    values_HW = random_image(4, 6)[..., 0]
    image = Image.open(io.BytesIO(encode_gray_png(values_HW)))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), values_HW)


def test_an_overlay_is_half_image_half_colour() -> None:
    image_HWC = random_image(6, 8)
    mask_HW = np.random.default_rng(1).integers(0, 4, (6, 8), dtype=np.uint8)
    mask_HW[0] = NO_CLASS
    image = Image.open(io.BytesIO(encode_overlay_png(image_HWC, mask_HW, CLASSES)))
    found = np.asarray(image)
    colors = np.array([entry.color for entry in CLASSES])
    assert image.mode == "RGB"
    np.testing.assert_allclose(found[1:], (image_HWC[1:] / 2 + colors[mask_HW[1:]] / 2), atol=0.5)
    np.testing.assert_array_equal(found[0], image_HWC[0])


def test_base64_is_the_standard_one() -> None:
    assert base64.b64decode(to_base64(b"\xfb\xff\x00"), validate=True) == b"\xfb\xff\x00"
