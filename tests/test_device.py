import pytest
import torch

from segserve.device import is_lost

NOWHERE = torch.device("cuda", 99)
"""A GPU that no machine has: what is asked of it really fails."""


def test_a_device_that_computes_is_there_and_one_that_does_not_is_lost() -> None:
    assert not is_lost(torch.device("cpu"))
    assert is_lost(NOWHERE)


@pytest.mark.gpu
def test_a_gpu_is_lost_after_an_error_that_stays() -> None:
    """In a process of its own, whose GPU it breaks."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    import subprocess
    import sys

    script = """
import torch
from segserve.device import is_lost
device = torch.device("cuda")
assert not is_lost(device)
try:
    torch.ones(4, device=device)[torch.tensor([9], device=device)].sum().item()
except RuntimeError as error:
    print(type(error).__name__, str(error).splitlines()[0])
assert is_lost(device)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "device-side assert" in done.stdout


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_device_without_memory_is_not_lost(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "ones", fail)
    assert not is_lost(NOWHERE)
