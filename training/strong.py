"""Strong changes to pseudo-labelled samples, after those that all samples get: colours, gray, blur, cutout.

Yang et al. 2022 (ST++), https://arxiv.org/abs/2106.05095, whose shares and ranges are the defaults of
`training.config.PseudoSettings`. Labelled samples are left as they are: there, such changes do harm. Cutout: DeVries
and Taylor 2017, https://arxiv.org/abs/1708.04552.

Dimensions: B batch, C channels, H, W.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.augment import BLUR_SIGMA, Key, blur, change_colors, seed_of
from training.config import PseudoSettings
from training.data import IGNORE

STREAM = 3
"""Added to a key for what is drawn here."""

DRAWS = (
    *("recolor", "brightness", "contrast", "saturation", "hue", "gray", "blur", "sigma"),
    *("cutout", "area", "aspect", "top", "left"),
)
"""What is drawn for every pseudo-labelled sample, in this order, whether it is used or not."""

CUT_AREA, CUT_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Share of the image, and height over width, of the rectangle that is cut out."""


class StrongAugment:
    """A recipe's [pseudo] section as a function of augmented samples and their keys, see `training.augment.Strong`."""

    def __init__(
        self, settings: PseudoSettings, *, is_pseudo: Sequence[bool], mean_color: tuple[int, int, int]
    ) -> None:
        """
        Args:
            settings: the section.
            is_pseudo: of each training sample.
            mean_color: 0 to 255, of what is cut out.
        """
        self.settings, self.is_pseudo, self.mean_color = settings, tuple(is_pseudo), mean_color

    def __call__(self, images_BCHW: Tensor, masks_BHW: Tensor, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Change the pseudo-labelled ones of a batch, in place.

        Args:
            images_BCHW: uint8.
            masks_BHW: uint8, with `IGNORE`; becomes that where something is cut out.
            keys: one for each; the same key gives the same result.
        """
        chosen = [place for place, (_, _, index) in enumerate(keys) if self.is_pseudo[index % len(self.is_pseudo)]]
        draws = [_draw(keys[place]) for place in chosen]
        if chosen:
            images_BCHW[chosen] = self._recolored(images_BCHW[chosen], draws)
        for place, drawn in zip(chosen, draws, strict=True):
            if drawn["cutout"] < self.settings.cutout:
                self._cut(images_BCHW[place], masks_BHW[place], drawn)
        return images_BCHW, masks_BHW

    def _recolored(self, images_BCHW: Tensor, draws: Sequence[Mapping[str, float]]) -> Tensor:
        changed_BCHW = change_colors(images_BCHW, [self._factors(drawn) for drawn in draws])
        blurred = [place for place, drawn in enumerate(draws) if drawn["blur"] < self.settings.blur]
        if blurred:
            low, high = BLUR_SIGMA
            sigmas = [low + (high - low) * draws[place]["sigma"] for place in blurred]
            changed_BCHW[blurred] = blur(changed_BCHW[blurred], sigmas)
        return changed_BCHW.round_().to(torch.uint8)

    def _factors(self, drawn: Mapping[str, float]) -> dict[str, float]:
        settings, factors = self.settings, dict[str, float]()
        if drawn["recolor"] < settings.recolor:
            for name in ("brightness", "contrast", "saturation"):
                factors[name] = 1 + settings.jitter * (2 * drawn[name] - 1)
            factors["hue"] = settings.hue * (2 * drawn["hue"] - 1)
        if drawn["gray"] < settings.gray:
            factors["saturation"] = 0.0
        return factors

    def _cut(self, image_CHW: Tensor, mask_HW: Tensor, drawn: Mapping[str, float]) -> None:
        top, left, height, width = cut_box((mask_HW.shape[0], mask_HW.shape[1]), drawn)
        place = (..., slice(top, top + height), slice(left, left + width))
        image_CHW[place] = torch.tensor(self.mean_color, dtype=torch.uint8, device=image_CHW.device)[:, None, None]
        mask_HW[place] = IGNORE


def cut_box(size: tuple[int, int], drawn: Mapping[str, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a rectangle inside an image of `size`, of at least one pixel."""
    area = (CUT_AREA[0] + (CUT_AREA[1] - CUT_AREA[0]) * drawn["area"]) * size[0] * size[1]
    aspect = CUT_ASPECT[0] * (CUT_ASPECT[1] / CUT_ASPECT[0]) ** drawn["aspect"]
    height, width = (
        max(1, min(side, round(length)))
        for side, length in zip(size, (math.sqrt(area * aspect), math.sqrt(area / aspect)), strict=True)
    )
    return int(drawn["top"] * (size[0] - height + 1)), int(drawn["left"] * (size[1] - width + 1)), height, width


def _draw(key: Key) -> dict[str, float]:
    """Numbers from 0 to 1, equally distributed and independent, by the names of `DRAWS`."""
    generator = torch.Generator().manual_seed(seed_of(*key, STREAM))
    return dict(zip(DRAWS, torch.rand(len(DRAWS), generator=generator, dtype=torch.float64).tolist(), strict=True))
