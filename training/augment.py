"""Random changes to an image and its mask together, each decided by (seed, epoch, sample) and nothing else.

Geometry comes from torchvision's transforms, which change a `tv_tensors.Mask` as they change the image. Colours are one
affine map a pixel (brightness, contrast, saturation as torchvision defines them; hue as a turn around the gray axis, as
in Haeberli's "Matrix operations for image processing", 1993), which is tens of times faster than `v2.ColorJitter`.

Dimensions: C channels, H, W, N pixels.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from segserve.preprocess import resize_image
from training.config import AugmentSettings
from training.data import IGNORE, resize_mask

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in gray, ITU-R BT.601."""

BLUR_KERNEL, BLUR_SIGMA = 5, (0.1, 1.5)


class Augment:
    """What a recipe's [augment] section describes, as a function of an image, its truth and a key."""

    def __init__(self, settings: AugmentSettings, *, mean_color: tuple[int, int, int]) -> None:
        """`mean_color` (0 to 255) fills what lies outside an image; its mask is `IGNORE` there."""
        fill = {tv_tensors.Image: mean_color, tv_tensors.Mask: IGNORE}
        self.transforms = _transforms(settings, fill)

    def __call__(self, image_CHW: Tensor, truth: Tensor, *, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Change one sample.

        Args:
            image_CHW: (3, H, W) uint8.
            truth: mask (H, W) uint8, or a class index (), which is returned as it is.
            key: seed, epoch, index of the sample; the same key gives the same result.

        Returns:
            (3, h, w) uint8 with (h, w) the recipe's `crop`, and the truth, (h, w) or ().
        """
        image: Any = tv_tensors.Image(image_CHW)
        changed: Any = tv_tensors.Mask(truth) if truth.dim() == 2 else truth
        with seeded(*key):
            for transform in self.transforms:
                image, changed = transform(image, changed)
        return image.as_subclass(Tensor), changed.as_subclass(Tensor)


def _transforms(settings: AugmentSettings, fill: dict[type[Tensor], Any]) -> list[Any]:
    """Those that are switched on. Whatever changes the shape comes before the crop, which fixes it."""
    jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    degrees = settings.rotation
    switched: list[tuple[bool, Any]] = [
        (settings.quarter_turns, QuarterTurns()),
        (settings.scale != (1.0, 1.0), RandomScale(settings.scale)),
        (degrees > 0, v2.RandomRotation(degrees, interpolation=InterpolationMode.BILINEAR, fill=fill)),
        (True, v2.RandomCrop(settings.crop, pad_if_needed=True, fill=fill)),
        (settings.hflip, v2.RandomHorizontalFlip()),
        (settings.vflip, v2.RandomVerticalFlip()),
        (any(jitter), ColorJitter(*jitter)),
        (settings.blur > 0, v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, BLUR_SIGMA)], p=settings.blur)),
    ]
    return [transform for is_on, transform in switched if is_on]


class QuarterTurns(v2.Transform):  # type: ignore[misc]
    """Turns by 0, 90, 180 or 270 degrees, all equally likely."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], dims=(-2, -1)), like=inpt)


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resizes by a factor from `scale`, uniform in its logarithm; masks take the nearest pixel."""

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"factor": math.exp(_uniform(math.log(self.scale[0]), math.log(self.scale[1])))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = (max(1, round(side * params["factor"])) for side in inpt.shape[-2:])
        resize = resize_mask if isinstance(inpt, tv_tensors.Mask) else resize_image
        return tv_tensors.wrap(resize(inpt, (height, width)), like=inpt)


class ColorJitter(v2.Transform):  # type: ignore[misc]
    """Changes colours by random factors from 1 - x to 1 + x, and the hue by a random turn of up to `hue` circles."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__()
        self.ranges = (brightness, contrast, saturation, hue)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        brightness, contrast, saturation, hue = (_uniform(-x, x) for x in self.ranges)
        return {"brightness": 1 + brightness, "contrast": 1 + contrast, "saturation": 1 + saturation, "hue": hue}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(change_colors(inpt.as_subclass(Tensor), **params), like=inpt)


def change_colors(
    image_CHW: Tensor, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """One affine map for all pixels.

    Args:
        image_CHW: (3, H, W) uint8.
        brightness: factor on every value.
        contrast: factor on the distance from the image's mean gray.
        saturation: factor on the distance from the pixel's own gray.
        hue: turn around the gray axis, in circles.

    Returns:
        (3, H, W) uint8, rounded, values outside 0..255 cut off.
    """
    luma_C = torch.tensor(LUMA)
    pixels_CN = image_CHW.reshape(3, -1).float()
    saturate_CC = saturation * torch.eye(3) + (1 - saturation) * luma_C
    matrix_CC = brightness * contrast * (_hue_matrix(hue) @ saturate_CC)
    shift = (1 - contrast) * brightness * (luma_C @ pixels_CN.mean(dim=1))
    changed_CN = torch.addmm(shift.expand(3, 1), matrix_CC, pixels_CN)
    return changed_CN.round_().clamp_(0, 255).to(torch.uint8).reshape(image_CHW.shape)


def _hue_matrix(turn: float) -> Tensor:
    """Rotation of RGB space around its gray diagonal by `turn` circles (Rodrigues' formula); keeps gray gray."""
    cos, sin = math.cos(math.tau * turn), math.sin(math.tau * turn)
    cross_CC = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cos * torch.eye(3) + sin * cross_CC + (1 - cos) / 3 * torch.ones(3, 3)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's random numbers on the CPU depend on the key alone; outside, they go on as before."""
    # Not torch.random.fork_rng with torch.manual_seed: they visit every device, which takes longer than a transform.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_of(*key))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def seed_of(*key: int) -> int:
    """A 63-bit seed from whole numbers; keys that differ give seeds that have nothing to do with each other."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
