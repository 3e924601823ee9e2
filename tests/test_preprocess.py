import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from segserve import preprocess
from segserve.preprocess import (
    Size,
    aligned,
    normalise,
    pad,
    resize_image,
    to_tensor,
    upright_bands,
    working_size,
)
from segserve.spec import PreprocessSpec
from tests.conftest import random_image

MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.5, 1.0)


def preprocess_spec(resize: str = "always") -> PreprocessSpec:
    return PreprocessSpec(resize=resize, working_side=64, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("always", (1, 1), (64, 64)),
        ("always", (1, 5000), (1, 64)),
        ("always", (5000, 1), (64, 1)),
        ("always", (3, 129), (1, 64)),
        ("always", (33, 47), (45, 64)),
        ("always", (64, 64), (64, 64)),
        ("always", (100, 200), (32, 64)),
        ("always", (640, 480), (64, 48)),
        ("always", (12000, 9001), (64, 48)),
        ("larger", (1, 1), (1, 1)),
        ("larger", (64, 10), (64, 10)),
        ("larger", (63, 64), (63, 64)),
        ("larger", (65, 10), (64, 10)),
        ("larger", (1, 5000), (1, 64)),
        ("larger", (640, 480), (64, 48)),
    ],
)
def test_working_size(resize: str, size: Size, expected: Size) -> None:
    assert working_size(size, preprocess_spec(resize)) == expected


@pytest.mark.parametrize(
    "view", [np.s_[:], np.s_[::-1], np.s_[:, ::-1], np.s_[::2, 1:]], ids=["whole", "flipped", "mirrored", "cut"]
)
def test_to_tensor_takes_any_layout_and_copies(view: object) -> None:
    image_HWC = random_image(5, 7)
    image_HWC.flags.writeable = False
    image_CHW = to_tensor(image_HWC[view])
    np.testing.assert_array_equal(image_CHW.numpy(), image_HWC[view].transpose(2, 0, 1))
    assert image_CHW.dtype == torch.uint8


def test_normalise_equals_numpy() -> None:
    image_CHW = np.random.randint(0, 256, (3, 6, 5), dtype=np.uint8)
    before = image_CHW.copy()
    expected = np.stack([(image_CHW[c] / 255.0 - MEAN[c]) / STD[c] for c in range(3)])
    found = normalise(torch.from_numpy(image_CHW), preprocess_spec())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(image_CHW, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_leaves_what_it_is_given(dtype: torch.dtype) -> None:
    """Mixed images are floats, and a teacher normalises the same batch after the student."""
    images_BCHW = torch.arange(3 * 16).reshape(1, 3, 4, 4).to(dtype)
    before_BCHW = images_BCHW.clone()
    normalise(images_BCHW, preprocess_spec())
    assert torch.equal(images_BCHW, before_BCHW)


def test_normalise_takes_no_hint_from_the_pixels() -> None:
    dark = torch.ones(3, 2, 2, dtype=torch.uint8)
    bright = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    step = normalise(bright, preprocess_spec()) - normalise(dark, preprocess_spec())
    torch.testing.assert_close(step[:, 0, 0], 254 / 255 / torch.tensor(STD))


@pytest.mark.parametrize("size", [(64, 48), (31, 90), (200, 150), (1, 1)])
def test_resize_equals_pillows_antialiased_bilinear(size: Size) -> None:
    image_HWC = np.asarray(Image.effect_noise((100, 75), 80).resize((150, 90)).convert("RGB"))
    expected = Image.fromarray(image_HWC).resize(size[::-1], Image.Resampling.BILINEAR)
    found_CHW = resize_image(to_tensor(image_HWC), size)
    difference = found_CHW.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
    assert found_CHW.dtype == torch.uint8


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (31, 90), (200, 150), (1, 9), (100, 75)])
def test_resize_equals_torchvision_s(size: Size, contiguous: bool) -> None:
    image_CHW = to_tensor(random_image(100, 75, 0))
    image_CHW = image_CHW.contiguous() if contiguous else image_CHW
    expected_CHW = transforms.resize(image_CHW, list(size), antialias=True)
    assert torch.equal(resize_image(image_CHW, size), expected_CHW)


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (32, 32)), ((32, 64), (32, 64)), ((33, 64), (64, 64)), ((45, 100), (64, 128))]
)
def test_aligned(size: Size, expected: Size) -> None:
    assert aligned(size, 32) == expected


@pytest.mark.parametrize("size", [(1, 1), (31, 32), (5, 9), (32, 64)])
def test_pad_repeats_the_edge(size: Size) -> None:
    images_BCHW = torch.randn(2, 3, *size)
    target = aligned(size, 32)
    expected = np.pad(
        images_BCHW.numpy(), [(0, 0), (0, 0), (0, target[0] - size[0]), (0, target[1] - size[1])], mode="edge"
    )
    np.testing.assert_array_equal(pad(images_BCHW, target).numpy(), expected)


@pytest.mark.parametrize("band_elements", [1, 500, 2**25])
@pytest.mark.parametrize("target", [(1, 1), (1, 50), (48, 64), (129, 201), (7, 300), (96, 64), (47, 64), (30, 20)])
@pytest.mark.parametrize("source", [(1, 1), (1, 64), (48, 64), (33, 7)])
def test_bands_equal_interpolation_of_the_whole(
    source: Size, target: Size, band_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "BAND_ELEMENTS", band_elements)
    probs_KHW = torch.rand(3, *source)
    joined_KHW = torch.full((3, *target), math.nan)
    for band_KHW, top, left in upright_bands(probs_KHW, target):
        joined_KHW[:, top : top + band_KHW.shape[1], left : left + band_KHW.shape[2]] = band_KHW
    whole_KHW = functional.interpolate(probs_KHW[None], target, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(joined_KHW, whole_KHW, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("elements", "shape"), [(1, (1, 1)), (3 * 50, (1, 50)), (3 * 200, (1, 200)), (3 * 200 * 10, (10, 200))]
)
def test_a_band_holds_no_more_than_its_share(elements: int, shape: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an image of one row, which may be as wide as it likes."""
    monkeypatch.setattr(preprocess, "BAND_ELEMENTS", elements)
    bands = list(upright_bands(torch.rand(3, 20, 20), (100, 200)))
    assert {tuple(band_KHW.shape) for band_KHW, _, _ in bands} == {(3, *shape)}
    assert len(bands) == 100 * 200 // math.prod(shape)
