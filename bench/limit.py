"""What a forward pass takes and what the machine could do at most: a large matrix product of each precision."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 7
PRECISIONS = ("float32", "bfloat16", "int8")
SIDE = 2048
"""Of the matrices."""


def network_operations(network: nn.Module, images_BCHW: Tensor) -> int:
    """Of one forward pass, multiplications and additions counted apart, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images_BCHW)
    return int(counter.get_total_flops())


def matrix_operations() -> int:
    """Of one such product."""
    return 2 * SIDE**3


def matrix_product(precision: str) -> Callable[[], Tensor]:
    """A call that multiplies two matrices of `SIDE` x `SIDE`; those of int8 give int32."""
    if precision == "int8":
        left, right = (torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(left, right)
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, precision)) for _ in range(2))
    return lambda: a @ b


def alternating(works: Mapping[str, Callable[[], object]], *, seconds: float = 0.0) -> dict[str, float]:
    """Median seconds of each, of `ROUNDS` and of more until so many seconds are over; the first round warms up."""
    took: dict[str, list[float]] = {name: [] for name in works}
    begin, rounds = time.perf_counter(), 0
    while rounds <= ROUNDS or time.perf_counter() < begin + seconds:
        for name, work in works.items():
            start = time.perf_counter()
            work()
            took[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(found[1:]) for name, found in took.items()}
