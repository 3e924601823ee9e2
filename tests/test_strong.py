import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import random_image
from training.augment import Augment
from training.config import AugmentSettings, PseudoSettings
from training.data import IGNORE
from training.strong import DRAWS, StrongAugment, cut_box

MEAN = (10, 20, 30)
KEYS = [(0, 0, index) for index in range(6)]
IS_PSEUDO = [False, True, True, False, True, False]


def strong(**changes: Any) -> StrongAugment:
    settings = PseudoSettings(round="somewhere", **changes)  # type: ignore[arg-type]
    return StrongAugment(settings, is_pseudo=IS_PSEUDO, mean_color=MEAN)


def samples() -> tuple[Tensor, Tensor]:
    images = [torch.from_numpy(random_image(40, 48, seed=seed)).permute(2, 0, 1) for seed in range(6)]
    return torch.stack(images), torch.ones(6, 40, 48, dtype=torch.uint8)


def test_labelled_samples_stay_as_they_are_and_the_others_do_not() -> None:
    before, masks = samples()
    images, _ = strong(recolor=1.0)(before.clone(), masks.clone(), KEYS)
    assert [torch.equal(*pair) for pair in zip(images, before, strict=True)] == [not each for each in IS_PSEUDO]


def test_a_sample_is_a_function_of_its_key_alone() -> None:
    """Not of its neighbours, and another one when it comes round again in the epoch."""
    before, masks = samples()
    images, changed = strong()(before.clone(), masks.clone(), KEYS)
    for place in (2, 4):
        alone, mask = strong()(before[[place]].clone(), masks[[place]].clone(), [KEYS[place]])
        assert torch.equal(alone[0], images[place]) and torch.equal(mask[0], changed[place])
    again, _ = strong()(before[[2]].clone(), masks[[2]].clone(), [(0, 0, 2 + len(IS_PSEUDO))])
    assert not torch.equal(again[0], images[2])


def test_what_is_cut_out_has_the_mean_color_and_no_loss() -> None:
    before, masks = samples()
    images, changed = strong(recolor=0, gray=0, blur=0, cutout=1)(before.clone(), masks.clone(), KEYS)
    for place in (1, 2, 4):
        cut_HW = changed[place] == IGNORE
        assert 0.01 < cut_HW.float().mean() < 0.42
        assert (images[place][:, cut_HW] == torch.tensor(MEAN)[:, None]).all()
        assert torch.equal(images[place][:, ~cut_HW], before[place][:, ~cut_HW])
        rows, columns = cut_HW.any(1).nonzero(), cut_HW.any(0).nonzero()
        assert cut_HW.sum() == len(rows) * len(columns), "a rectangle"


def test_gray_is_gray() -> None:
    before, masks = samples()
    images, _ = strong(recolor=0, gray=1, blur=0, cutout=0)(before.clone(), masks.clone(), KEYS)
    spread_HW = (images[1].int().amax(0) - images[1].int().amin(0)).max()
    assert spread_HW <= 1 and before[1].int().amax() > 200


def test_shares_are_those_asked_for() -> None:
    settings, images, masks = {"recolor": 0.0, "gray": 0.0, "blur": 0.0}, *samples()
    num_cut = 0
    for epoch in range(200):
        _, changed = strong(**settings, cutout=0.3)(
            images[:3].clone(), masks[:3].clone(), [(0, epoch, i) for i in range(3)]
        )
        num_cut += int((changed[1:] == IGNORE).flatten(1).any(1).sum())
    assert num_cut / 400 == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 400))


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("size", [(32, 32), (1, 7), (100, 33)])
def test_the_box_lies_inside(drawn: float, size: tuple[int, int]) -> None:
    top, left, height, width = cut_box(size, dict.fromkeys(DRAWS, drawn))
    assert min(top, left) >= 0 < min(height, width)
    assert top + height <= size[0] and left + width <= size[1]


def test_augment_hands_its_samples_over() -> None:
    before, masks = samples()
    plain = AugmentSettings(crop=(40, 48))
    augment = Augment(plain, mean_color=MEAN, num_classes=3, strong=strong(recolor=1.0))
    images, _ = augment(list(before), list(masks), keys=KEYS)
    assert [torch.equal(*pair) for pair in zip(images, before, strict=True)] == [not each for each in IS_PSEUDO]
    assert np.asarray(images).dtype == np.uint8
