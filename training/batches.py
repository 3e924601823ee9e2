"""Batches of augmented samples for training, each a function of (seed, epoch, step) whatever is done in parallel.

Small sets are held in memory as uint8. On the CPU they are augmented where they are wanted, sample by sample; on a GPU
they lie in its memory and are augmented there, a batch at once. Large sets, and torchvision's policies on a GPU's
behalf, go through worker processes. The result is the same: to the bit on the CPU, to a rounding on a GPU.

Dimensions: B batch (of all ranks), b batch of one rank, C channels, K classes, H, W.
"""

import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segserve.cores import available_cores
from segserve.memory import machine_memory
from segserve.spec import PreprocessSpec
from training.augment import Augment, Key, seed_of
from training.data import load_sample
from training.layouts import Sample
from training.ranks import Ranks
from training.stop import SIGNALS

Pair = tuple[Tensor, Tensor]
"""Image (3, H, W) and truth (H, W) or (), uint8; samples may have different sizes."""

ALONE = Ranks()

SHARE_OF_MEMORY = 0.25
"""Of the machine's, or the device's: what a training set may take up there, in all processes together."""

MOST_WORKERS = 8

PSEUDO_STREAM = 4
"""Added to the key (seed, epoch) of the order of the pseudo-labelled samples."""

MIX_STREAM = 2
"""Added to the key (seed, epoch, step) of a batch that is mixed."""


class DecodedSamples(Sequence[Pair]):
    """Samples at the working size that are read and decoded whenever they are asked for."""

    def __init__(self, samples: Sequence[Sample], *, ignore_index: int | None, preprocess: PreprocessSpec) -> None:
        self.samples, self.ignore_index, self.preprocess = samples, ignore_index, preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return load_sample(self.samples[index], ignore_index=self.ignore_index, preprocess=self.preprocess)


def held(data: Sequence[Pair], *, num_ranks: int = 1) -> Sequence[Pair]:
    """The samples as a list in memory where they fit (`SHARE_OF_MEMORY`), or else as they were given.

    Args:
        data: samples that are decoded whenever they are asked for.
        num_ranks: processes that do the same on this machine.
    """
    room, pairs = SHARE_OF_MEMORY * _memory(torch.device("cpu")) / num_ranks, []
    for pair in data:
        room -= _size([pair])
        if room < 0:
            return data
        pairs.append(pair)
    return pairs


def _memory(device: torch.device) -> int:
    """Bytes there are, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


def _size(pairs: Sequence[Pair]) -> int:
    return sum(image_CHW.nbytes + truth.nbytes for image_CHW, truth in pairs)


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order an epoch takes the samples: a new one each time, and from the start again where they run out.

    Where the pseudo-labelled ones are more than the others, the others come round more often: every other sample is one
    of them, unless `oversample` is False.
    """

    num_samples: int
    num_pseudo: int = 0
    """So many of them, the last ones, are pseudo-labelled."""
    oversample: bool = True
    num_steps: int | None = None
    """Of an epoch; None: as many as `num_places` fill."""

    @property
    def num_labelled(self) -> int:
        return self.num_samples - self.num_pseudo

    @property
    def is_alternating(self) -> bool:
        return self.oversample and 0 < self.num_labelled < self.num_pseudo

    @property
    def num_places(self) -> int:
        """How many samples an epoch takes, unless `num_steps` says it."""
        return 2 * self.num_pseudo if self.is_alternating else self.num_samples

    def of_epoch(self, seed: int, epoch: int, *, num_places: int) -> list[int]:
        """Indices of the samples, plus `num_samples` each time that one comes again: see `training.augment.Key`."""
        if not self.is_alternating:
            return list(islice(self._stream(range(self.num_samples), (seed, epoch)), num_places))
        labelled = self._stream(range(self.num_labelled), (seed, epoch))
        pseudo = self._stream(range(self.num_labelled, self.num_samples), (seed, epoch, PSEUDO_STREAM))
        return list(islice(chain.from_iterable(zip(labelled, pseudo, strict=True)), num_places))

    def _stream(self, samples: range, key: tuple[int, ...]) -> Iterator[int]:
        """The samples in random order, again and again, without end."""
        for time in count():
            generator = torch.Generator().manual_seed(seed_of(*key, time) if time else seed_of(*key))
            for place in torch.randperm(len(samples), generator=generator).tolist():
                yield samples[place] + time * self.num_samples


class Batches:
    """A training set in random order, augmented; every epoch has another order."""

    def __init__(
        self,
        data: Sequence[Pair],
        augment: Augment,
        *,
        seed: int,
        batch_size: int,
        ranks: Ranks = ALONE,
        device: torch.device | None = None,
        order: Order | None = None,
    ) -> None:
        """
        Args:
            data: the samples; a list is in memory, and goes into the device's if it fits there. A batch is never larger
                than the set, unless the order says how many steps an epoch has.
            augment: what is done to each of them.
            seed: decides, with epoch and sample, all that is random.
            batch_size: of a step, over all ranks.
            ranks: into how many equal parts each batch is divided, and which one is wanted.
            device: where the batches are wanted; the CPU, if not given.
            order: in which the samples come; each once an epoch, if not given.

        Raises:
            ValueError: a batch cannot be divided into equal parts.
        """
        self.data, self.augment, self.seed = data, augment, seed
        self.order = order or Order(num_samples=len(data))
        self.batch_size = min(batch_size, len(data)) if self.order.num_steps is None else batch_size
        self.device = device or torch.device("cpu")
        if self.batch_size % ranks.count:
            raise ValueError(
                f"expected a batch that {ranks.count} processes can share equally, but it has {self.batch_size} "
                "samples: change optim.batch_size or the number of processes"
            )
        self.part_size = self.batch_size // ranks.count
        self.part_start = ranks.rank * self.part_size
        self.is_held, is_on_cpu = isinstance(data, list), self.device.type == "cpu"
        self.is_resident = (
            self.is_held
            and not is_on_cpu
            and not augment.picture_transforms
            and _size(data) <= SHARE_OF_MEMORY * _memory(self.device)
        )
        if self.is_resident:
            self.data = [(image_CHW.to(self.device), truth.to(self.device)) for image_CHW, truth in data]
        needs_workers = not self.is_held if is_on_cpu else not self.is_resident
        self.num_workers = max(1, min(MOST_WORKERS, available_cores() // ranks.count)) if needs_workers else 0
        self._stream: Iterator[Pair] = iter(())
        self._next_step = -1

    @property
    def steps_per_epoch(self) -> int:
        """Samples that do not fill the last batch are left to other epochs, which have another order."""
        return self.order.num_steps or self.order.num_places // self.batch_size

    @property
    def place(self) -> str:
        """Where the samples are and who augments them, as a sentence for the log."""
        where = (
            f"held in memory ({_size(self.data) / 2**20:.0f} MiB)" if self.is_held else "decoded anew in every epoch"
        )
        worker = f"{self.num_workers} worker process(es)" if self.num_workers else f"{self.device} itself"
        return f"{len(self.data)} training images, {where}, augmented by {worker}"

    def batches(self, epoch: int, *, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of each batch of an epoch, from a step on.

        Yields:
            Images (b, 3, h, w) uint8 and truths (b, h, w) or (b,) uint8, on the device; where the recipe mixes labelled
            images, images float32, 0 to 255, and shares of the classes (b, K) float32.
        """
        for step in range(epoch * self.steps_per_epoch + first_step, (epoch + 1) * self.steps_per_epoch):
            images_BCHW, truths_B = self._take(step)
            if self.augment.mixes:
                # Each is mixed with the one before it, wherever that is: the first here is the last of the rank before.
                key = (self.seed, *divmod(step, self.steps_per_epoch), MIX_STREAM)
                images_BCHW, truths_B = self.augment.mix(images_BCHW, truths_B, key=key)
                images_BCHW, truths_B = images_BCHW[1:], truths_B[1:]
            yield images_BCHW, truths_B

    def close(self) -> None:
        """End the worker processes, which hold whatever this process has open; the next batch begins them anew."""
        stream, self._stream, self._next_step = self._stream, iter(()), -1
        if isinstance(stream, Generator):
            stream.close()

    def _take(self, step: int) -> Pair:
        """A batch of the stream, which is begun anew only where another step is wanted than the next one."""
        if step != self._next_step:
            self._stream = _ahead(self._resident(step)) if self.is_resident else self._loaded(step)
        batch = next(self._stream)
        self._next_step = step + 1
        return batch

    def _resident(self, first_step: int) -> Iterator[Pair]:
        for keys in self._keys(first_step):
            images, truths = zip(*(self.data[index % len(self.data)] for _, _, index in keys), strict=True)
            yield self.augment(images, truths, keys=keys)

    def _loaded(self, first_step: int) -> Iterator[Pair]:
        loader: DataLoader[Pair] = DataLoader(
            _AugmentedSamples(self.data, self.augment),  # type: ignore[arg-type]
            batch_sampler=self._keys(first_step),
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            # Without one of its own it would draw from torch's.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals,
        )
        for images_BCHW, truths_B in loader:
            yield images_BCHW.to(self.device, non_blocking=True), truths_B.to(self.device, non_blocking=True)

    def _keys(self, first_step: int) -> Iterator[list[Key]]:
        """Of this rank's part of each batch, without end; before them, if they are to be mixed, the sample before."""
        first_epoch, skipped = divmod(first_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            order = self.order.of_epoch(self.seed, epoch, num_places=self.steps_per_epoch * self.batch_size)
            for step in range(skipped if epoch == first_epoch else 0, self.steps_per_epoch):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                part = batch[self.part_start : self.part_start + self.part_size]
                wanted = [batch[self.part_start - 1], *part] if self.augment.mixes else part
                yield [(self.seed, epoch, index) for index in wanted]


def _leave_signals(_: int) -> None:
    """A signal to the process group reaches the workers, too, but the parent decides when they end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _AugmentedSamples:
    """Samples by their keys, one at a time: on the CPU that is fastest, as a sample's pixels stay in its cache."""

    def __init__(self, data: Sequence[Pair], augment: Augment) -> None:
        self.data, self.augment = data, augment

    def __getitem__(self, key: Key) -> Pair:
        image_CHW, truth = self.data[key[2] % len(self.data)]
        images_BCHW, truths_B = self.augment([image_CHW], [truth], keys=[key])
        return images_BCHW[0], truths_B[0]


def _ahead(batches: Iterator[Pair]) -> Iterator[Pair]:
    """The same without end, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, batches)
        while True:
            batch = upcoming.result()
            upcoming = pool.submit(next, batches)
            yield batch
