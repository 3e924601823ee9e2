"""Whether the device still computes.

After an illegal address, a failed assertion in a kernel or the loss of a GPU, CUDA fails every later call of the
process with the same error (https://docs.nvidia.com/cuda/cuda-runtime-api, "the process must be terminated and
relaunched"): only another process helps. PyTorch raises torch.AcceleratorError for it, or a RuntimeError from one of
CUDA's libraries; for other errors, from which a process recovers, it raises the same types.
"""

import torch

from segserve.memory import is_out_of_memory


class DeviceLost(RuntimeError):
    """The device computes nothing any more in this process."""


def is_lost(device: torch.device) -> bool:
    """Try the smallest computation on it. The CPU is never lost."""
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # without a driver, PyTorch raises an AssertionError
        return not is_out_of_memory(error)
    return False
