import pytest
import torch
from torch import Tensor

from training.augment import Augment
from training.batches import Batches
from training.config import AugmentSettings

AUGMENT = AugmentSettings(crop=(32, 40), scale=(0.7, 1.4), hflip=True, rotation=10.0, brightness=0.3, blur=0.5)


def _data(count: int = 11) -> list[tuple[Tensor, Tensor]]:
    """Images of different sizes; the first mask value is the sample's number."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(30 + 3 * i, 50 - 2 * i) for i in range(count)]
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return [(image, torch.full(image.shape[1:], i, dtype=torch.uint8)) for i, image in enumerate(images)]


def _batches(data: list[tuple[Tensor, Tensor]], *, batch_size: int = 4, rank: int = 0, num_ranks: int = 1) -> Batches:
    augment = Augment(AUGMENT, mean_color=(9, 8, 7))
    return Batches(data, augment, seed=3, batch_size=batch_size, rank=rank, num_ranks=num_ranks)


def _samples(batches: Batches, epoch: int) -> dict[int, Tensor]:
    """Each sample's augmented image."""
    return {
        int(mask_HW.min()): image_CHW
        for images_BCHW, masks_BHW in batches.batches(epoch)
        for image_CHW, mask_HW in zip(images_BCHW, masks_BHW, strict=True)
    }


def test_a_batch_is_never_larger_than_the_set() -> None:
    steps = [_batches(_data(5), batch_size=size).steps_per_epoch for size in (2, 5, 16)]
    assert steps == [2, 1, 1]


def test_shapes() -> None:
    for images_BCHW, masks_BHW in _batches(_data()).batches(0):
        assert images_BCHW.shape == (4, 3, 32, 40) and masks_BHW.shape == (4, 32, 40)
        assert images_BCHW.dtype == masks_BHW.dtype == torch.uint8


def test_a_sample_is_the_same_whatever_the_batch() -> None:
    whole = _samples(_batches(_data(), batch_size=11), epoch=2)
    assert set(whole) == set(range(11))
    for batch_size in (1, 2, 3, 4):
        for index, image_CHW in _samples(_batches(_data(), batch_size=batch_size), epoch=2).items():
            assert torch.equal(image_CHW, whole[index])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_ranks_parts_make_the_batch(num_ranks: int) -> None:
    whole = list(_batches(_data()).batches(1))
    parts = [list(_batches(_data(), rank=rank, num_ranks=num_ranks).batches(1)) for rank in range(num_ranks)]
    for step, (images_BCHW, masks_BHW) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images_BCHW)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), masks_BHW)


def test_an_epoch_can_be_entered_at_any_step() -> None:
    whole = list(_batches(_data(), batch_size=2).batches(0))
    entered = list(_batches(_data(), batch_size=2).batches(0, first_step=3))
    assert len(entered) == 2
    for found, expected in zip(entered, whole[3:], strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    first, second = (_samples(_batches(_data(), batch_size=11), epoch=epoch) for epoch in (0, 1))
    assert list(first) != list(second)
    assert not any(torch.equal(first[index], second[index]) for index in first)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch that 3 processes can share equally, but it has 4 samples: change"):
        _batches(_data(), num_ranks=3)
