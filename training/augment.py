"""Random changes to images and their truths, each sample's decided by its key (seed, epoch, sample) and nothing else.

All geometry is one affine map from the pixels of the crop to those of the image, read off by `grid_sample` for a whole
batch. Colours are one affine map a pixel (brightness, contrast, saturation as torchvision defines them; hue as a turn
around the gray axis, as in Haeberli's "Matrix operations for image processing", 1993). What is left, for labelled
images only, is torchvision's: RandAugment (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719), TrivialAugment
(Müller and Hutter 2021, https://arxiv.org/abs/2103.10158), random erasing (Zhong et al. 2017,
https://arxiv.org/abs/1708.04896), mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) and CutMix (Yun et al.
2019, https://arxiv.org/abs/1905.04899).

Dimensions: B batch, C channels, K classes, H, W.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from segserve.preprocess import Size
from training.config import AugmentSettings
from training.data import IGNORE

Key = tuple[int, int, int]
"""Seed, epoch, index of the sample; when it comes again in an epoch, plus the number of samples each time."""

DRAWS = (
    *("turns", "scale", "rotation", "top", "left", "hflip", "vflip"),
    *("brightness", "contrast", "saturation", "hue", "blur", "sigma"),
    *("foreground", "class", "pixel"),
)
"""What is drawn for every sample, in this order, whether it is used or not."""

PICTURE_STREAM = 1
"""Added to a key for torchvision's own draws."""

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in gray, ITU-R BT.601."""

BLUR_KERNEL, BLUR_SIGMA = 5, (0.1, 1.5)

Matrix = NDArray[np.float64]
Place = tuple[int, int]
"""Row and column of a pixel."""

QUARTER_TURN: Matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


Strong = Callable[[Tensor, Tensor, Sequence[Key]], tuple[Tensor, Tensor]]
"""Images (B, 3, h, w) and masks (B, h, w), uint8, and their keys, to the same; may change them in place."""


class Augment:
    """What a recipe's [augment] section describes, as functions of images, their truths and keys."""

    def __init__(
        self,
        settings: AugmentSettings,
        *,
        mean_color: tuple[int, int, int],
        num_classes: int,
        strong: Strong | None = None,
    ) -> None:
        """`mean_color` (0 to 255) fills what lies outside an image; its mask is `IGNORE` there. `strong` comes last."""
        self.settings, self.mean_color, self.strong = settings, mean_color, strong
        self.picture_transforms = _picture_transforms(settings, mean_color)
        self.mixes = [
            mix(alpha=alpha, num_classes=num_classes)
            for mix, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
            if alpha > 0
        ]

    def __call__(
        self, images: Sequence[Tensor], truths: Sequence[Tensor], *, keys: Sequence[Key]
    ) -> tuple[Tensor, Tensor]:
        """Change samples.

        Args:
            images: B of (3, H, W) uint8, of any sizes.
            truths: their masks (H, W) uint8, or class indices (), which are returned as they are.
            keys: one for each; the same key gives the same result. (On the CPU, bit for bit whatever the other samples
                if these have the same size, else within a rounding.)

        Returns:
            (B, 3, h, w) uint8 with (h, w) the recipe's `crop`, and the truths, (B, h, w) or (B,), where the images are.
        """
        draws, crop = [draw(key) for key in keys], self.settings.crop
        maps = [
            crop_map((image.shape[-2], image.shape[-1]), self.settings, drawn, over=self._over(truth, drawn))
            for image, truth, drawn in zip(images, truths, draws, strict=True)
        ]
        changed_BCHW = self._recolored(warp(images, maps, size=crop, fill=self.mean_color, mode="bilinear"), draws)
        if truths[0].dim() == 2:
            masks = [mask_HW[None] for mask_HW in truths]
            masks_BHW = warp(masks, maps, size=crop, fill=(IGNORE,), mode="nearest")[:, 0].to(torch.uint8)
            return (changed_BCHW, masks_BHW) if self.strong is None else self.strong(changed_BCHW, masks_BHW, keys)
        if self.picture_transforms:
            changed_BCHW = torch.stack([self._picture(*pair) for pair in zip(changed_BCHW, keys, strict=True)])
        return changed_BCHW, torch.stack(list(truths))

    def mix(self, images_BCHW: Tensor, labels_B: Tensor, *, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mix each sample with the one before it (the first with the last), where the recipe says so.

        Args:
            images_BCHW: uint8.
            labels_B: class indices.
            key: decides how; the same for all.

        Returns:
            Images float32, 0 to 255, and shares of the classes (B, K) float32; or both as they are, without `mixup` and
            `cutmix`. With both, each key chooses one of them.
        """
        if not self.mixes:
            return images_BCHW, labels_B
        with seeded(*key):
            chosen = self.mixes[int(torch.randint(len(self.mixes), ()))]
            mixed_BCHW, shares_BK = chosen(images_BCHW.float(), labels_B.long())
        return mixed_BCHW, shares_BK

    def _over(self, truth: Tensor, drawn: Mapping[str, float]) -> Place | None:
        return foreground_pixel(truth, drawn) if drawn["foreground"] < self.settings.foreground else None

    def _recolored(self, images_BCHW: Tensor, draws: Sequence[Mapping[str, float]]) -> Tensor:
        """Colours and blur; float32 in, uint8 out."""
        chosen = self.settings
        if chosen.brightness or chosen.contrast or chosen.saturation or chosen.hue:
            images_BCHW = change_colors(images_BCHW, [_color_factors(chosen, drawn) for drawn in draws])
        blurred = [index for index, drawn in enumerate(draws) if drawn["blur"] < chosen.blur]
        if blurred:
            sigmas = [_between(*BLUR_SIGMA, draws[index]["sigma"]) for index in blurred]
            images_BCHW[blurred] = blur(images_BCHW[blurred], sigmas)
        return images_BCHW.round_().to(torch.uint8)

    def _picture(self, image_CHW: Tensor, key: Key) -> Tensor:
        changed: Any = tv_tensors.Image(image_CHW)
        with seeded(*key, PICTURE_STREAM):
            for transform in self.picture_transforms:
                changed = transform(changed)
        return changed.as_subclass(Tensor)  # type: ignore[no-any-return]


def _picture_transforms(settings: AugmentSettings, mean_color: tuple[int, int, int]) -> list[Any]:
    policies = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
    found: list[Any] = []
    if settings.policy != "none":
        fill = {tv_tensors.Image: mean_color}
        found.append(policies[settings.policy](interpolation=InterpolationMode.BILINEAR, fill=fill))
    if settings.erasing > 0:
        found.append(v2.RandomErasing(settings.erasing, value=mean_color))
    return found


def draw(key: Key) -> dict[str, float]:
    """Numbers from 0 to 1, equally distributed and independent, by the names of `DRAWS`."""
    generator = torch.Generator().manual_seed(seed_of(*key))
    return dict(zip(DRAWS, torch.rand(len(DRAWS), generator=generator, dtype=torch.float64).tolist(), strict=True))


# --- geometry ---


def foreground_pixel(mask_HW: Tensor, drawn: Mapping[str, float]) -> Place | None:
    """A pixel of a class drawn evenly among a mask's, its most frequent one and `IGNORE` left out; None without any.

    Foreground oversampling as in nnU-Net, Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z.
    """
    counts_K = torch.bincount(mask_HW.flatten(), minlength=IGNORE + 1)[:IGNORE]
    classes = [index for index in counts_K.nonzero().flatten().tolist() if index != int(counts_K.argmax())]
    if not classes:
        return None
    pixels_N2 = (mask_HW == classes[int(len(classes) * drawn["class"])]).nonzero()
    row, column = pixels_N2[int(len(pixels_N2) * drawn["pixel"])].tolist()
    return row, column


def crop_map(size: Size, settings: AugmentSettings, drawn: Mapping[str, float], *, over: Place | None = None) -> Matrix:
    """From places (x, y, 1) in the crop to places in the image; the centre of a first pixel is (0.5, 0.5).

    Seen from the image: quarter turns counterclockwise; enlargement by a factor uniform in its logarithm (to whole
    pixels); rotation about the centre; a crop, at any place inside or, where the image is smaller, around it; flips.
    The crop has the pixel `over` in it, at any place, unless rotation turned it out of the image.
    """
    turns = int(4 * drawn["turns"]) if settings.quarter_turns else 0
    angle = _between(-settings.rotation, settings.rotation, drawn["rotation"])
    smallest, largest = settings.scale
    factor = smallest * (largest / smallest) ** drawn["scale"]
    turned = size if turns % 2 == 0 else (size[1], size[0])
    scaled = [max(1, round(side * factor)) for side in turned]
    crop_height, crop_width = settings.crop
    centered_to_image: Matrix = (
        _shift(size[1] / 2, size[0] / 2)
        @ np.linalg.matrix_power(QUARTER_TURN, turns)
        @ _stretch(turned[1] / scaled[1], turned[0] / scaled[0])
        @ _rotation(angle)
    )
    y, x = (None, None) if over is None else _seen_at(over, centered_to_image, scaled)
    top, left = _start(scaled[0], crop_height, drawn["top"], y), _start(scaled[1], crop_width, drawn["left"], x)
    crop_to_image: Matrix = (
        centered_to_image
        @ _shift(left + (crop_width - scaled[1]) / 2, top + (crop_height - scaled[0]) / 2)
        @ _stretch(_sign(settings.hflip, drawn["hflip"]), _sign(settings.vflip, drawn["vflip"]))
        @ _shift(-crop_width / 2, -crop_height / 2)
    )
    return crop_to_image


def warp(
    images: Sequence[Tensor],
    maps: Sequence[Matrix],
    *,
    size: Size,
    fill: tuple[int, ...],
    mode: Literal["bilinear", "nearest"],
) -> Tensor:
    """See images through affine maps.

    Args:
        images: B of (C, H, W) uint8, of any sizes, on one device.
        maps: one for each, from places (x, y, 1) in the result to places in the image, as `crop_map` gives them.
        size: height and width of the result.
        fill: value of each channel outside the image.
        mode: how pixels between pixels are made. There is no antialiasing: below a scale of 0.5, pixels are left out.

    Returns:
        (B, C, h, w) float32, whole numbers from 0 to 255.
    """
    device = images[0].device
    fill_C11 = torch.tensor(fill, dtype=torch.float32, device=device)[:, None, None]
    canvas_BCHW = _canvas(images, fill_C11)
    height, width = canvas_BCHW.shape[-2:]
    to_sampler = _shift(-1.0, -1.0) @ _stretch(2 / width, 2 / height)
    maps_B23 = torch.from_numpy(np.stack([(to_sampler @ map_33)[:2] for map_33 in maps])).float().to(device)
    # `grid_sample` puts zeros outside, and so they mean the fill.
    sampled_BCHW = functional.grid_sample(canvas_BCHW, _grid(maps_B23, size), mode=mode, align_corners=False)
    return sampled_BCHW.add_(fill_C11).round_()


def _canvas(images: Sequence[Tensor], fill_C11: Tensor) -> Tensor:
    """All images from the top left, less the fill, with zeros beside the smaller ones: (B, C, H, W)."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    canvas_BCHW = torch.zeros(len(images), len(fill_C11), height, width, device=fill_C11.device)
    for target_CHW, image_CHW in zip(canvas_BCHW, images, strict=True):
        torch.sub(image_CHW, fill_C11, out=target_CHW[:, : image_CHW.shape[-2], : image_CHW.shape[-1]])
    return canvas_BCHW


def _grid(maps_B23: Tensor, size: Size) -> Tensor:
    """Where each pixel of the result is read: (B, h, w, 2). No matrix product: its rounding may depend on the batch."""
    y_H, x_W = (torch.arange(side, device=maps_B23.device) + 0.5 for side in size)
    by_x_B21, by_y_B21, start_B21 = (maps_B23[:, :, column, None] for column in range(3))
    along_x_B2W, along_y_B2H = by_x_B21 * x_W, by_y_B21 * y_H + start_B21
    return (along_x_B2W[:, :, None, :] + along_y_B2H[:, :, :, None]).permute(0, 2, 3, 1)


def _seen_at(pixel: Place, centered_to_image: Matrix, scaled: Sequence[int]) -> Place:
    """Row and column of an image's pixel once the image is turned, enlarged to `scaled` and rotated."""
    x, y, _ = np.linalg.solve(centered_to_image, [pixel[1] + 0.5, pixel[0] + 0.5, 1.0])
    return math.floor(y + scaled[0] / 2), math.floor(x + scaled[1] / 2)


def _start(whole: int, part: int, drawn: float, over: int | None = None) -> int:
    """Where a part begins that lies anywhere in the whole or, where it is the larger of the two, anywhere around it.

    With `over`, that place is in it, equally likely at each of its own, as far as it stays in the whole.
    """
    room = abs(whole - part)
    if whole < part:
        return -int(drawn * (room + 1))
    return int(drawn * (room + 1)) if over is None else min(max(over - int(drawn * part), 0), room)


def _sign(can_flip: bool, drawn: float) -> float:
    return -1.0 if can_flip and drawn < 0.5 else 1.0


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _stretch(x: float, y: float) -> Matrix:
    return np.diag([x, y, 1.0])


def _rotation(degrees: float) -> Matrix:
    """Undoes a turn counterclockwise, as one sees it (y points down)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


# --- colours ---


def change_colors(images_BCHW: Tensor, factors: Sequence[Mapping[str, float]]) -> Tensor:
    """One affine map for all pixels of an image.

    Args:
        images_BCHW: (B, 3, H, W), whole numbers from 0 to 255, of any dtype.
        factors: for each image, any of
            brightness: factor on every value;
            contrast: factor on the distance from the image's mean gray;
            saturation: factor on the distance from the pixel's own gray;
            hue: turn around the gray axis, in circles.

    Returns:
        (B, 3, H, W) float32, values outside 0..255 cut off.
    """
    device, (height, width) = images_BCHW.device, images_BCHW.shape[-2:]
    pixels_BCHW = images_BCHW.float()
    matrices_BCC = torch.from_numpy(np.stack([_color_matrix(**factor) for factor in factors])).float().to(device)
    lifts_B = [factor.get("brightness", 1.0) * (1 - factor.get("contrast", 1.0)) for factor in factors]
    # Sums of whole numbers are exact in any order, as long as float32 holds those of a row.
    mean_BC = pixels_BCHW.sum(dim=-1).double().sum(dim=-1) / (height * width)
    gray_B = (mean_BC * torch.tensor(LUMA, dtype=torch.float64, device=device)).sum(dim=1)
    shift_B = (torch.tensor(lifts_B, dtype=torch.float64, device=device) * gray_B).float()
    changed_BCHW = shift_B[:, None, None, None].repeat(1, 3, height, width)
    for channel in range(3):
        changed_BCHW.addcmul_(matrices_BCC[:, :, channel, None, None], pixels_BCHW[:, channel, None])
    return changed_BCHW.clamp_(0, 255)


def _color_factors(settings: AugmentSettings, drawn: Mapping[str, float]) -> dict[str, float]:
    ranges = {"brightness": settings.brightness, "contrast": settings.contrast, "saturation": settings.saturation}
    factors = {name: 1 + _between(-most, most, drawn[name]) for name, most in ranges.items()}
    return {**factors, "hue": _between(-settings.hue, settings.hue, drawn["hue"])}


def _color_matrix(
    *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Matrix:
    saturate_CC = saturation * np.eye(3) + (1 - saturation) * np.array(LUMA)
    changed_CC: Matrix = brightness * contrast * (_hue_matrix(hue) @ saturate_CC)
    return changed_CC


def _hue_matrix(turn: float) -> Matrix:
    """Rotation of RGB space around its gray diagonal by `turn` circles (Rodrigues' formula); keeps gray gray."""
    cos, sin = math.cos(math.tau * turn), math.sin(math.tau * turn)
    cross_CC = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    turned_CC: Matrix = cos * np.eye(3) + sin * cross_CC + (1 - cos) / 3 * np.ones((3, 3))
    return turned_CC


def blur(images_BCHW: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur over 5 x 5 pixels, mirrored at the edges: (B, C, H, W) float32, a sigma in pixels for each."""
    reach = BLUR_KERNEL // 2
    sigma_B1 = torch.tensor(sigmas, dtype=torch.float64)[:, None]
    weights_BT = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_B1) ** 2)
    weights_BT = (weights_BT / weights_BT.sum(dim=1, keepdim=True)).float().to(images_BCHW.device)
    for axis in (-1, -2):
        side = images_BCHW.shape[axis]
        padding = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded_BCHW = functional.pad(images_BCHW, padding, mode="reflect")
        images_BCHW = torch.zeros_like(images_BCHW)
        for tap in range(BLUR_KERNEL):
            images_BCHW.addcmul_(weights_BT[:, tap, None, None, None], padded_BCHW.narrow(axis, tap, side))
    return images_BCHW


def _between(low: float, high: float, drawn: float) -> float:
    return low + (high - low) * drawn


# --- keys ---


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
