"""Running out of memory, and giving back what is not needed now."""

import ctypes
import os
from pathlib import Path

import torch

OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "bad_alloc",
    "CUDA error: out of memory",
)

LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a control group of version 2, in bytes, https://docs.kernel.org/admin-guide/cgroup-v2.html."""


def machine_memory(limit: Path = LIMIT) -> int:
    """Bytes that there are, used or not: the machine's, or fewer where a container may have only those."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        most = limit.read_text().strip()
    except FileNotFoundError:
        return there
    return there if most == "max" else min(there, int(most))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking: on the CPU, PyTorch and oneDNN say so in words only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in OUT_OF_MEMORY_WORDS
    )


def release_memory(device: torch.device) -> None:
    """Give back to the system what is kept for later: of a GPU's memory by PyTorch, of the machine's by the heap."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give back freed blocks that lie between blocks in use; takes milliseconds.

    glibc keeps them, so that a process which allocates many sizes grows for minutes. Where the C library has no such
    call, nothing is done.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
