"""The drawings: repeatable, and a question of shape rather than of colour."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.drawing import CLASS_NAMES, LABEL_NAMES, draw_labelled, draw_sample

NUM_CLASSES = len(CLASS_NAMES)
Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample(np.random.default_rng([3, i])) for i in range(24)]


@pytest.mark.parametrize("side", [32, 97, 128])
def test_a_sample_has_the_documented_shapes_types_and_classes(side: int) -> None:
    image_HWC, mask_HW = draw_sample(np.random.default_rng(0), side=side)
    assert (image_HWC.shape, image_HWC.dtype) == ((side, side, 3), np.uint8)
    assert (mask_HW.shape, mask_HW.dtype) == ((side, side), np.uint8)
    assert mask_HW.max() < NUM_CLASSES


@pytest.mark.parametrize("label", range(len(LABEL_NAMES)))
def test_a_labelled_picture_is_repeatable_and_changes_with_its_label(label: int) -> None:
    first_HWC, again_HWC = (draw_labelled(np.random.default_rng(5), label=label) for _ in range(2))
    other_HWC = draw_labelled(np.random.default_rng(5), label=(label + 1) % len(LABEL_NAMES))
    assert (first_HWC.shape, first_HWC.dtype) == ((96, 96, 3), np.uint8)
    assert np.array_equal(first_HWC, again_HWC)
    assert not np.array_equal(first_HWC, other_HWC)


def test_the_same_generator_state_gives_the_same_sample() -> None:
    first, again, other = (draw_sample(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_most_pictures_hold_every_class(samples: list[Sample]) -> None:
    present_NK = np.array([np.bincount(mask_HW.ravel(), minlength=NUM_CLASSES) > 0 for _, mask_HW in samples])
    assert present_NK.all(axis=1).mean() > 0.7
    assert present_NK.mean(axis=0).min() > 0.8


def test_every_class_has_its_share_of_the_pixels(samples: list[Sample]) -> None:
    masks_NHW = np.stack([mask_HW for _, mask_HW in samples])
    share_K = np.bincount(masks_NHW.ravel(), minlength=NUM_CLASSES) / masks_NHW.size
    assert 0.6 < share_K[0] < 0.9
    assert share_K[1:].min() > 0.02


def test_objects_stand_out_from_the_tray(samples: list[Sample]) -> None:
    gray_pairs = [(image_HWC.mean(axis=2), mask_HW) for image_HWC, mask_HW in samples]
    gaps = [np.abs(gray[mask > 0] - np.median(gray[mask == 0])).mean() for gray, mask in gray_pairs]
    assert min(gaps) > 25


def test_colour_alone_does_not_tell_the_classes_apart(
    samples: list[Sample],
) -> None:
    """A nearest-mean-colour classifier, scored on the very pixels it was fitted to, stays far below a network."""
    colours_P3 = np.concatenate([image_HWC.reshape(-1, 3) for image_HWC, _ in samples]).astype(np.float32)
    truth_P = np.concatenate([mask_HW.ravel() for _, mask_HW in samples])
    means_K3 = np.stack([colours_P3[truth_P == k].mean(axis=0) for k in range(NUM_CLASSES)])
    guess_P = np.linalg.norm(colours_P3[:, None] - means_K3, axis=2).argmin(axis=1)
    confusion_KK = np.bincount(truth_P * NUM_CLASSES + guess_P, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, -1)
    hits_K = confusion_KK.diagonal()
    assert (hits_K / (confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - hits_K)).mean() < 0.25


@pytest.mark.parametrize("label", [-1, 4])
def test_an_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"expected a label from 0 to 3, but got {label}: see LABEL_NAMES"):
        draw_labelled(np.random.default_rng(0), label=label)


def test_a_tiny_side_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a side of at least 32 pixels, but got 31: ask for a larger picture"):
        draw_sample(np.random.default_rng(0), side=31)
