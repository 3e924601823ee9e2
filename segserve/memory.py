"""Running out of memory, and giving back what is not needed now."""

import ctypes

import torch

OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "bad_alloc",
    "CUDA error: out of memory",
)


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
