import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.masks_and_logits import example, valid_pixels
from training.data import IGNORE
from training.losses.border import border_weights, boundary_loss, relaxed_cross_entropy, signed_distances
from training.losses.cross_entropy import cross_entropy

BLOBS_HW = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0, IGNORE],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, IGNORE, 0, 0, 0, 2],
    ]
)


def _masks(seed: int) -> Tensor:
    """(3, 9, 11): noise, blobs with a lone pixel of class 2, and an image of one class; some pixels do not count."""
    _, masks_BHW = example(seed=seed, size=(9, 11))
    blobs_HW = torch.zeros(9, 11, dtype=torch.long)
    blobs_HW[2:7, 3:8] = 1
    blobs_HW[8, 10] = 2
    blobs_HW[4, 4] = blobs_HW[0, 0] = IGNORE
    return torch.stack([masks_BHW[0], blobs_HW, torch.ones(9, 11, dtype=torch.long)])


def _places(chosen_HW: Tensor) -> list[list[int]]:
    return chosen_HW.nonzero().tolist()


def _nearest(place: list[int], others: list[list[int]]) -> float:
    return min((math.dist(place, other) for other in others), default=math.inf)


# --- border weights ---


@pytest.mark.parametrize("seed", range(2))
def test_border_weights_equal_the_slow_version(seed: int) -> None:
    masks_BHW = _masks(seed)
    weights_BHW = border_weights(masks_BHW, w0=8, sigma=3)
    height, width = masks_BHW.shape[1:]
    for mask_HW, weights_HW in zip(masks_BHW, weights_BHW, strict=True):
        changes = []
        for y, x in np.ndindex(height, width):
            sides = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            around = {int(mask_HW[i, j]) for i, j in sides if 0 <= i < height and 0 <= j < width} - {IGNORE}
            if mask_HW[y, x] != IGNORE and around - {int(mask_HW[y, x])}:
                changes.append([y, x])
        for y, x in np.ndindex(height, width):
            distance = _nearest([y, x], changes)
            assert weights_HW[y, x].item() == pytest.approx(8 * math.exp(-((2 * distance) ** 2) / (2 * 3**2)), abs=1e-6)


def test_border_weights_of_one_class_are_zero() -> None:
    assert border_weights(torch.zeros(1, 4, 5, dtype=torch.long)).eq(0).all()


# --- relaxation ---


@pytest.mark.parametrize("radius", [1, 2])
def test_relaxation_equals_the_slow_version(radius: int) -> None:
    logits_BKHW, masks_BHW = example(size=(6, 8))
    weights_K = torch.tensor([1.0, 2.0, 3.0, 4.0])
    total = weight = 0.0
    for b, y, x, truth, probs in valid_pixels(logits_BKHW, masks_BHW):
        window = masks_BHW[b, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        accepted = set(window.flatten().tolist()) - {IGNORE}
        total -= float(weights_K[truth]) * math.log(sum(probs[k] for k in accepted))
        weight += float(weights_K[truth])
    found = relaxed_cross_entropy(logits_BKHW, masks_BHW, radius=radius, class_weights_K=weights_K)
    assert found.item() == pytest.approx(total / weight, rel=1e-5)


def test_relaxation_without_a_radius_is_cross_entropy() -> None:
    logits_BKHW, masks_BHW = example()
    relaxed, plain = relaxed_cross_entropy(logits_BKHW, masks_BHW, radius=0), cross_entropy(logits_BKHW, masks_BHW)
    assert relaxed.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_border_that_is_off_by_one_pixel_costs_nothing_when_relaxed() -> None:
    """Annotated between columns 3 and 4, found between 4 and 5."""
    masks_BHW = (torch.arange(8) > 3).long().expand(1, 8, 8)
    found_HW = (torch.arange(8) > 4).long().expand(8, 8)
    logits_BKHW = 30.0 * torch.stack([1 - found_HW, found_HW])[None].float()
    assert cross_entropy(logits_BKHW, masks_BHW).item() > 3
    assert relaxed_cross_entropy(logits_BKHW, masks_BHW).item() == pytest.approx(0, abs=1e-6)


# --- boundary loss ---


@pytest.mark.parametrize("seed", range(2))
def test_signed_distances_equal_the_slow_version(seed: int) -> None:
    masks_BHW = _masks(seed)
    signed_BKHW = signed_distances(masks_BHW, num_classes=4)
    assert signed_BKHW[:, 3].eq(0).all()  # absent everywhere
    assert signed_BKHW[2].eq(0).all()  # an image of one class
    for mask_HW, signed_KHW in zip(masks_BHW[:2], signed_BKHW, strict=False):
        for k in range(3):
            inside = _places(mask_HW == k)
            outside = _places((mask_HW != k) & (mask_HW != IGNORE))
            for y, x in inside:
                assert signed_KHW[k, y, x].item() == pytest.approx(1 - _nearest([y, x], outside), rel=1e-6)
            for y, x in outside:
                assert signed_KHW[k, y, x].item() == pytest.approx(_nearest([y, x], inside), rel=1e-6)


def test_signed_distances_by_hand() -> None:
    signed_KHW = signed_distances(torch.tensor([[[0, 0, 0, 1, 1]]]), num_classes=3)[0]
    assert signed_KHW[:, 0].tolist() == [[-2, -1, 0, 1, 2], [3, 2, 1, 0, -1], [0, 0, 0, 0, 0]]


def test_boundary_loss_equals_the_slow_version() -> None:
    logits_BKHW, masks_BHW = example()
    signed_BKHW = signed_distances(masks_BHW, num_classes=4)
    costs = [
        sum(prob * float(signed_BKHW[b, k, y, x]) for k, prob in enumerate(probs)) / 4
        for b, y, x, _, probs in valid_pixels(logits_BKHW, masks_BHW)
    ]
    found = boundary_loss(logits_BKHW, masks_BHW, signed_BKHW)
    assert found.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_boundary_loss_is_least_where_the_network_is_right() -> None:
    masks_BHW = BLOBS_HW[None]
    signed_BKHW = signed_distances(masks_BHW, num_classes=3)
    losses = []
    for shift in (0, 1, 2):
        found_HW = masks_BHW[0].roll(shift, dims=1)
        logits_BKHW = torch.stack([40.0 * (found_HW == k) for k in range(3)])[None]
        losses.append(boundary_loss(logits_BKHW, masks_BHW, signed_BKHW).item())
    assert losses[0] < 0
    assert losses == sorted(losses)
