"""Ranks: the processes that share a training, started by torchrun; without it there is one, which needs none of this.

Everything distributed is torch's own: process group (gloo on the CPU, nccl on GPUs), DistributedDataParallel,
SyncBatchNorm.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

LONGEST_WAIT = timedelta(hours=2)
"""How long the others wait for the first rank, which alone evaluates and writes."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, tells and evaluates."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, which all must ask for it."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def any(self, value: bool, device: torch.device) -> bool:
        """Whether it is true for one of the processes, which all must ask."""
        return value if self.count == 1 else bool(self.sum(torch.tensor(float(value), device=device)))

    def replica(self, network: nn.Module, device: torch.device) -> nn.Module:
        """What is called in place of the network, so that each process ends with the mean of all gradients.

        On GPUs the network's batch norms are made `SyncBatchNorm`, in place: their statistics are the whole batch's. On
        the CPU torch has no such thing: each process normalises by its own part, and the first one's running
        statistics are kept.
        """
        if self.count == 1:
            return network
        if device.type == "cpu":
            return DistributedDataParallel(network)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synced, device_ids=[device])


def unshared(replica: nn.Module) -> AbstractContextManager[object]:
    """Inside, gradients stay in this process; the next one outside carries them along."""
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone where it did not.

    Its end is reached by all of them together: what the first one wrote is there. It can be entered within itself, but
    not again after it was left: torch's store keeps the first time's addresses.

    Args:
        device: on which it computes, see `device_of_rank`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
    elif distributed.is_initialized():
        yield Ranks(rank=distributed.get_rank(), count=distributed.get_world_size())
        distributed.barrier()
    else:
        distributed.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=LONGEST_WAIT)
        try:
            yield Ranks(rank=distributed.get_rank(), count=distributed.get_world_size())
            distributed.barrier()
        finally:
            distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the process that tells, before and after ranks are joined."""
    return os.environ.get("RANK", "0") == "0"


def device_of_rank(device: torch.device) -> torch.device:
    """The GPU that belongs to this process where there are several processes; else the device as it is."""
    if device.type == "cpu" or "LOCAL_RANK" not in os.environ:
        return device
    chosen = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(chosen)
    return chosen
