"""Batches of augmented samples for training, each a function of (seed, epoch, step) whatever is done in parallel.

Dimensions: B batch (of all ranks), b batch of one rank, C channels, H, W.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from training.augment import Augment, seed_of

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Images (3, H, W) and truths (H, W) or (), uint8, of any sizes."""


class Batches:
    """A training set in random order, augmented; every epoch has another order."""

    def __init__(
        self,
        data: Pairs,
        augment: Augment,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            data: the samples; a batch is never larger than the set.
            augment: what is done to each of them.
            seed: decides, with epoch and sample, all that is random.
            batch_size: of a step, over all ranks.
            rank: which part of each batch is wanted, from 0.
            num_ranks: in how many equal parts each batch is divided.
            device: where the batches are wanted; the CPU, if not given.

        Raises:
            ValueError: a batch cannot be divided into equal parts.
        """
        self.data, self.augment, self.seed = data, augment, seed
        self.batch_size = min(batch_size, len(data))
        self.device = device or torch.device("cpu")
        if self.batch_size % num_ranks:
            raise ValueError(
                f"expected a batch that {num_ranks} processes can share equally, but it has {self.batch_size} samples: "
                "change optim.batch_size or the number of processes"
            )
        share = self.batch_size // num_ranks
        self.part = slice(rank * share, (rank + 1) * share)

    @property
    def steps_per_epoch(self) -> int:
        """Samples that do not fill the last batch are left to other epochs, which have another order."""
        return len(self.data) // self.batch_size

    def batches(self, epoch: int, *, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of each batch of an epoch, from a step on.

        Yields:
            Images (b, 3, h, w) uint8 and truths (b, h, w) or (b,) uint8, on the device.
        """
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed_of(self.seed, epoch)))
        for step in range(first_step, self.steps_per_epoch):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size][self.part].tolist()
            pairs = [self.augment(*self.data[i], key=(self.seed, epoch, i)) for i in indices]
            images, truths = zip(*pairs, strict=True)
            yield torch.stack(images).to(self.device), torch.stack(truths).to(self.device)
