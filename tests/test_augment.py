import time

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from training.augment import Augment, change_colors, seed_of, seeded
from training.config import AugmentSettings
from training.data import IGNORE

MEAN_COLOR = (200, 100, 50)
EVERYTHING = AugmentSettings(
    crop=(48, 64),
    scale=(0.5, 2.0),
    hflip=True,
    vflip=True,
    quarter_turns=True,
    rotation=20.0,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
    blur=0.5,
)
GEOMETRY = EVERYTHING.model_copy(update=dict.fromkeys(("brightness", "contrast", "saturation", "hue", "blur"), 0.0))


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def _mask(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth regions of the classes 0 to 3."""
    coarse_HW = torch.randint(0, 4, (height // 8 + 1, width // 8 + 1), generator=torch.Generator().manual_seed(seed))
    return coarse_HW.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].to(torch.uint8)


@pytest.mark.parametrize("size", [(48, 64), (20, 90), (1, 1), (130, 33)])
def test_every_size_comes_out_as_the_crop(size: tuple[int, int]) -> None:
    augment = Augment(EVERYTHING, mean_color=MEAN_COLOR)
    for epoch in range(5):
        image_CHW, mask_HW = augment(_image(*size), _mask(*size), key=(0, epoch, 0))
        assert image_CHW.shape == (3, 48, 64) and mask_HW.shape == (48, 64)
        assert type(image_CHW) is type(mask_HW) is Tensor
        assert image_CHW.dtype == mask_HW.dtype == torch.uint8
        assert set(mask_HW.unique().tolist()) <= {0, 1, 2, 3, IGNORE}


@pytest.mark.parametrize("setting", ["hflip", "vflip", "quarter_turns", "scale", "none"])
def test_the_mask_moves_with_the_image(setting: str) -> None:
    """An image that shows its own mask still shows it afterwards."""
    change = {"scale": (0.4, 2.5)} if setting == "scale" else {} if setting == "none" else {setting: True}
    augment = Augment(AugmentSettings(crop=(48, 64), **change), mean_color=(IGNORE, IGNORE, IGNORE))
    mask_HW = _mask(56, 56)
    for index in range(20):
        image_CHW, moved_HW = augment(mask_HW.expand(3, -1, -1).contiguous(), mask_HW, key=(0, 0, index))
        share_equal = (image_CHW[0] == moved_HW).float().mean().item()
        assert share_equal > 0.8 if setting == "scale" else share_equal == 1.0  # edges are blurred by resizing


def test_rotation_moves_both() -> None:
    augment = Augment(AugmentSettings(crop=(64, 64), rotation=45.0), mean_color=(IGNORE, IGNORE, IGNORE))
    mask_HW = _mask(64, 64)
    for index in range(10):
        image_CHW, moved_HW = augment(mask_HW.expand(3, -1, -1).contiguous(), mask_HW, key=(0, 0, index))
        assert (image_CHW[0].int() - moved_HW.int()).abs().lt(4).float().mean() > 0.9


def test_padding_is_ignored_and_has_the_mean_colour() -> None:
    augment = Augment(AugmentSettings(crop=(64, 64)), mean_color=MEAN_COLOR)
    image_CHW, mask_HW = augment(torch.zeros(3, 40, 64, dtype=torch.uint8), torch.zeros(40, 64).byte(), key=(0, 0, 0))
    is_padding_HW = mask_HW == IGNORE
    assert is_padding_HW.sum() == 24 * 64
    assert image_CHW[:, is_padding_HW].unique(dim=1).flatten().tolist() == list(MEAN_COLOR)
    assert image_CHW[:, ~is_padding_HW].max() == 0


def test_the_key_decides_everything() -> None:
    augment, sample = Augment(EVERYTHING, mean_color=MEAN_COLOR), (_image(60, 60), _mask(60, 60))
    first, again = augment(*sample, key=(1, 2, 3)), augment(*sample, key=(1, 2, 3))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first[0], augment(*sample, key=other)[0])


def test_the_sample_is_not_changed_in_place_and_the_global_generator_goes_on() -> None:
    image_CHW, mask_HW = _image(60, 60), _mask(60, 60)
    before = torch.get_rng_state()
    for index in range(5):
        Augment(EVERYTHING, mean_color=MEAN_COLOR)(image_CHW, mask_HW, key=(0, 0, index))
    assert torch.equal(image_CHW, _image(60, 60)) and torch.equal(mask_HW, _mask(60, 60))
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_pass_and_the_image_is_the_same_as_with_a_mask() -> None:
    augment = Augment(EVERYTHING, mean_color=MEAN_COLOR)
    labelled_CHW, label = augment(_image(60, 60), torch.tensor(7, dtype=torch.uint8), key=(0, 0, 0))
    masked_CHW, _ = augment(_image(60, 60), _mask(60, 60), key=(0, 0, 0))
    assert label.shape == () and label.item() == 7
    assert torch.equal(labelled_CHW, masked_CHW)


def test_colours_leave_the_mask_alone() -> None:
    augment = Augment(AugmentSettings(crop=(60, 60), brightness=0.5, hue=0.3), mean_color=MEAN_COLOR)
    image_CHW, mask_HW = augment(_image(60, 60), _mask(60, 60), key=(0, 0, 0))
    assert torch.equal(mask_HW, _mask(60, 60))
    assert not torch.equal(image_CHW, _image(60, 60))


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_changes_equal_those_of_torchvision(name: str, factor: float) -> None:
    image_CHW = _image(40, 50)
    reference_CHW = getattr(transforms, f"adjust_{name}")(image_CHW, factor)
    difference = (change_colors(image_CHW, **{name: factor}).int() - reference_CHW.int()).abs()
    assert difference.max() <= 1  # it truncates where we round


def test_a_third_of_the_circle_exchanges_the_channels() -> None:
    image_CHW = _image(8, 8)
    assert torch.equal(change_colors(image_CHW, hue=1 / 3), image_CHW[[2, 0, 1]])


def test_the_hue_of_gray_cannot_be_turned() -> None:
    gray_CHW = _image(8, 8)[:1].expand(3, -1, -1)
    assert torch.equal(change_colors(gray_CHW, hue=0.2), gray_CHW)


def test_seeds_differ_for_keys_that_could_be_confused() -> None:
    seeds = [seed_of(*key) for key in [(1, 23), (12, 3), (123,), (1, 2, 3), (3, 2, 1)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change() -> None:
    """Runs are only repeatable if they do not: `printf '(0, 1, 2)' | sha256sum`, 8 bytes of it, halved."""
    assert seed_of(0, 1, 2) == 8462395873746552714


def test_seeded_restores_the_generator_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_takes_little_time() -> None:
    """The budget is 2 ms; the best of many is compared with 4 ms, so that a busy machine does not fail the test."""
    settings = EVERYTHING.model_copy(update={"crop": (128, 128), "rotation": 0.0, "blur": 0.0, "scale": (0.8, 1.25)})
    augment, sample, seconds = Augment(settings, mean_color=MEAN_COLOR), (_image(128, 128), _mask(128, 128)), []
    for index in range(50):
        start = time.perf_counter()
        augment(*sample, key=(0, 0, index))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.004
