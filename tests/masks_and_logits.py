"""Logits and masks for the tests of the losses, and softmax in plain Python."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from training.data import IGNORE


def example(*, classes: int = 4, seed: int = 0, size: tuple[int, int] = (5, 6)) -> tuple[Tensor, Tensor]:
    """Logits (2, K, H, W) and masks (2, H, W) in which the last class is absent and some pixels do not count."""
    generator = torch.Generator().manual_seed(seed)
    logits_BKHW = torch.randn(2, classes, *size, generator=generator)
    masks_BHW = torch.randint(classes - 1, (2, *size), generator=generator)
    masks_BHW[torch.rand(2, *size, generator=generator) < 0.2] = IGNORE
    return logits_BKHW, masks_BHW


def valid_pixels(logits_BKHW: Tensor, masks_BHW: Tensor) -> Iterator[tuple[int, int, int, int, list[float]]]:
    """Image, row, column, truth and probabilities of each pixel that counts."""
    for b, y, x in torch.cartesian_prod(*(torch.arange(size) for size in masks_BHW.shape)).tolist():
        truth = int(masks_BHW[b, y, x])
        if truth != IGNORE:
            exps = [math.exp(value) for value in logits_BKHW[b, :, y, x].tolist()]
            yield b, y, x, truth, [value / sum(exps) for value in exps]
