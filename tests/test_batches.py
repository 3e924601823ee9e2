from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segserve.spec import PreprocessSpec
from training import batches as module
from training.augment import Augment, seed_of
from training.batches import Batches, DecodedSamples, Order, held
from training.config import AugmentSettings
from training.layouts import open_dataset
from training.ranks import Ranks
from training.synthetic import write_segmentation_set

AUGMENT = AugmentSettings(crop=(32, 40), scale=(0.7, 1.4), hflip=True, rotation=10.0, brightness=0.3, blur=0.5)
MIXED = AUGMENT.model_copy(update={"mixup": 0.4, "cutmix": 1.0})

Data = Sequence[tuple[Tensor, Tensor]]


def _data(count: int = 11) -> list[tuple[Tensor, Tensor]]:
    """Images of different sizes; all values of a mask are the sample's number."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(30 + 3 * i, 50 - 2 * i) for i in range(count)]
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return [(image, torch.full(image.shape[1:], i, dtype=torch.uint8)) for i, image in enumerate(images)]


def _labelled(count: int = 11) -> list[tuple[Tensor, Tensor]]:
    return [(image_CHW, mask_HW[0, 0]) for image_CHW, mask_HW in _data(count)]


def _batches(
    data: Data, *, chosen: AugmentSettings = AUGMENT, batch_size: int = 4, rank: int = 0, num_ranks: int = 1
) -> Batches:
    augment = Augment(chosen, mean_color=(9, 8, 7), num_classes=11)
    return Batches(data, augment, seed=3, batch_size=batch_size, ranks=Ranks(rank=rank, count=num_ranks))


def _samples(batches: Batches, epoch: int) -> dict[int, Tensor]:
    """Each sample's augmented image."""
    return {
        int(mask_HW.min()): image_CHW
        for images_BCHW, masks_BHW in batches.batches(epoch)
        for image_CHW, mask_HW in zip(images_BCHW, masks_BHW, strict=True)
    }


def _assert_same(found: Any, expected: Any) -> None:
    for batch, same in zip(found, expected, strict=True):
        assert torch.equal(batch[0], same[0]) and torch.equal(batch[1], same[1])


@pytest.fixture
def decoded(tmp_path: Path) -> DecodedSamples:
    root = tmp_path / "set"
    write_segmentation_set(root, seed=0, num_train=5, num_val=1, side=32)
    preprocess = PreprocessSpec(working_side=48, mean=(0, 0, 0), std=(1, 1, 1))
    return DecodedSamples(open_dataset(root, "segmentation").split("train"), ignore_index=None, preprocess=preprocess)


# --- what a batch is ---


def test_a_batch_is_never_larger_than_the_set() -> None:
    steps = [_batches(_data(5), batch_size=size).steps_per_epoch for size in (2, 5, 16)]
    assert steps == [2, 1, 1]


def test_shapes() -> None:
    for images_BCHW, masks_BHW in _batches(_data()).batches(0):
        assert images_BCHW.shape == (4, 3, 32, 40) and masks_BHW.shape == (4, 32, 40)
        assert images_BCHW.dtype == masks_BHW.dtype == torch.uint8


def test_an_epoch_holds_each_sample_once_and_leaves_out_the_rest() -> None:
    assert set(_samples(_batches(_data(), batch_size=11), epoch=0)) == set(range(11))
    assert len(_samples(_batches(_data(), batch_size=4), epoch=0)) == 8


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    first, second = (_samples(_batches(_data(), batch_size=11), epoch=epoch) for epoch in (0, 1))
    assert list(first) != list(second)
    assert not any(torch.equal(first[index], second[index]) for index in first)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(share=st.integers(1, 4), ranks=st.integers(1, 3), epoch=st.integers(0, 10**6), rank=st.integers(0, 2))
def test_a_sample_is_a_function_of_its_key_alone(share: int, ranks: int, epoch: int, rank: int) -> None:
    """Whatever the batch, the number of processes, and the place in both."""
    data, part = _data(), {"rank": rank % ranks, "num_ranks": ranks}
    batches = _batches(data, batch_size=min(share * ranks, 9 // ranks * ranks), **part)
    samples = _samples(batches, epoch)
    assert len(samples) == batches.steps_per_epoch * batches.batch_size // ranks
    for index, image_CHW in samples.items():
        alone_BCHW, _ = batches.augment([data[index][0]], [data[index][1]], keys=[(3, epoch, index)])
        assert torch.equal(image_CHW, alone_BCHW[0])


def test_an_epoch_can_be_entered_at_any_step() -> None:
    whole = list(_batches(_data(), batch_size=2).batches(0))
    _assert_same(_batches(_data(), batch_size=2).batches(0, first_step=3), whole[3:])


def test_epochs_may_come_in_any_order() -> None:
    """The stream that goes on from one epoch to the next gives what a new one gives."""
    batches = _batches(_data())
    for epoch in (0, 1, 2, 0, 3):
        _assert_same(batches.batches(epoch), list(_batches(_data()).batches(epoch)))
    left_early = batches.batches(5)
    first = next(left_early)
    _assert_same(batches.batches(5), list(_batches(_data()).batches(5)))
    _assert_same([first, next(left_early)], list(_batches(_data()).batches(5)))


def test_torchs_own_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(_batches(_labelled(), chosen=MIXED.model_copy(update={"policy": "randaugment"})).batches(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- ranks ---


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize(("chosen", "labelled"), [(AUGMENT, False), (AUGMENT, True), (MIXED, True)])
def test_the_ranks_parts_make_the_batch(chosen: AugmentSettings, labelled: bool, num_ranks: int) -> None:
    data = _labelled() if labelled else _data()
    whole = list(_batches(data, chosen=chosen).batches(1))
    parts = [
        list(_batches(data, chosen=chosen, rank=rank, num_ranks=num_ranks).batches(1)) for rank in range(num_ranks)
    ]
    joined = [[torch.cat(pieces) for pieces in zip(*ranks, strict=True)] for ranks in zip(*parts, strict=True)]
    _assert_same(joined, whole)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch that 3 processes can share equally, but it has 4 samples: change"):
        _batches(_data(), num_ranks=3)


def test_mixed_batches_are_torchvisions_of_the_whole_batch() -> None:
    batches, plain = _batches(_labelled(), chosen=MIXED), _batches(_labelled())
    for step, ((images_BCHW, shares_BK), unmixed) in enumerate(zip(batches.batches(0), plain.batches(0), strict=True)):
        expected_BCHW, expected_BK = batches.augment.mix(*unmixed, key=(3, 0, step, module.MIX_STREAM))
        assert torch.equal(images_BCHW, expected_BCHW) and torch.equal(shares_BK, expected_BK)
        assert shares_BK.shape == (4, 11) and shares_BK.sum(dim=1).tolist() == pytest.approx([1] * 4)


# --- where the samples are ---


def test_workers_give_what_memory_gives(decoded: DecodedSamples) -> None:
    batches, in_memory = _batches(decoded, batch_size=2), _batches(held(decoded), batch_size=2)
    assert batches.num_workers >= 1 and in_memory.num_workers == 0
    for epoch in (0, 1):
        _assert_same(batches.batches(epoch), list(in_memory.batches(epoch)))


def test_a_gpus_way_gives_the_same_to_a_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches, made ahead in a thread; here on the CPU."""
    batches, plain = _batches(_data()), _batches(_data())
    monkeypatch.setattr(batches, "is_resident", True)
    for epoch in (0, 1):
        for (images_BCHW, masks_BHW), (same_BCHW, same_BHW) in zip(
            batches.batches(epoch), plain.batches(epoch), strict=True
        ):
            difference = (images_BCHW.int() - same_BCHW.int()).abs()
            assert difference.max() <= 1 and difference.float().mean() < 1e-3
            assert (masks_BHW == same_BHW).float().mean() > 0.999


def test_a_fault_in_the_thread_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches(_data())
    monkeypatch.setattr(batches, "is_resident", True)
    monkeypatch.setattr(batches.augment, "mean_color", (1, 2, 3, 4))
    with pytest.raises(RuntimeError, match="size"):
        next(batches.batches(0))


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["none", "trivialaugment"])
def test_a_gpu_gets_the_same_to_a_rounding(policy: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    chosen = AUGMENT.model_copy(update={"policy": policy})
    on_gpu = _batches(_labelled(), chosen=chosen, device=torch.device("cuda"))  # type: ignore[arg-type]
    assert on_gpu.is_resident == (policy == "none")
    for found, expected in zip(on_gpu.batches(0), _batches(_labelled(), chosen=chosen).batches(0), strict=True):
        assert found[0].device.type == "cuda"
        assert ((found[0].cpu().int() - expected[0].int()).abs() > 1).float().mean() < 1e-3


def test_samples_are_held_where_they_fit(decoded: DecodedSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(held(decoded), list) and len(held(decoded)) == 5
    size = 5 * 4 * 48 * 48
    monkeypatch.setattr(module, "_memory", lambda device: 4 * size)
    assert isinstance(held(decoded), list)
    assert held(decoded, num_ranks=2) is decoded
    monkeypatch.setattr(module, "_memory", lambda device: 4 * size - 4)
    assert held(decoded) is decoded


def test_the_log_can_tell(decoded: DecodedSamples) -> None:
    assert _batches(held(decoded)).place == "5 training images, held in memory (0 MiB), augmented by cpu itself"
    workers = _batches(decoded).num_workers
    assert _batches(decoded).place == (
        f"5 training images, decoded anew in every epoch, augmented by {workers} worker process(es)"
    )


# --- order ---


def test_without_pseudo_labels_the_order_is_what_it_was() -> None:
    """The one that runs from before had: torch's permutation by the seed of (seed, epoch)."""
    for epoch in range(3):
        generator = torch.Generator().manual_seed(seed_of(3, epoch))
        assert (
            Order(num_samples=11).of_epoch(3, epoch, num_places=8)
            == torch.randperm(11, generator=generator)[:8].tolist()
        )


def test_pseudo_labels_are_every_other_sample_where_they_are_more() -> None:
    order = Order(num_samples=10, num_pseudo=7)
    found = order.of_epoch(0, 0, num_places=order.num_places)
    labelled, pseudo = found[::2], found[1::2]
    assert sorted(pseudo) == list(range(3, 10)), "each once"
    assert [index % 10 < 3 for index in labelled] == [True] * 7
    assert sorted(labelled)[:6] == [0, 1, 2, 10, 11, 12], "each once, then each a second time"
    assert len(set(found)) == 14, "whoever comes again has another key"
    assert found != order.of_epoch(0, 1, num_places=order.num_places)


def test_few_pseudo_labels_are_mixed_among_the_others() -> None:
    order = Order(num_samples=10, num_pseudo=4)
    assert sorted(order.of_epoch(0, 0, num_places=order.num_places)) == list(range(10))


def test_an_epoch_has_as_many_steps_as_it_is_told() -> None:
    data = _data(3)
    augment = Augment(AUGMENT, mean_color=(9, 8, 7), num_classes=11)
    batches = Batches(data, augment, seed=3, batch_size=4, order=Order(num_samples=3, num_steps=5))
    found = list(batches.batches(0))
    assert len(found) == batches.steps_per_epoch == 5
    assert all(len(images_BCHW) == 4 for images_BCHW, _ in found), "even where the set is smaller than a batch"
    _assert_same(batches.batches(0, first_step=2), found[2:])
    taken = [int(mask_HW.min()) for _, masks_BHW in found for mask_HW in masks_BHW]
    assert [taken.count(index) for index in range(3)] in ([7, 7, 6], [7, 6, 7], [6, 7, 7])
