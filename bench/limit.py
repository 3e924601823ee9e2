"""What a forward pass takes and what the machine could do at most: a large matrix product of each precision, a large
copy, and the roofline that both draw over a network."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 7
PRECISIONS = ("float32", "bfloat16", "int8")
SIDES = {"cpu": 2048, "cuda": 8192}
"""Of the matrices, by the type of the device."""
COPIED_BYTES = 2**28
"""More than caches hold."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear layer in a forward pass."""

    operations: int
    """Multiplications and additions counted apart."""
    values: int
    """Read and written at least: its input, its weights and its output, once each."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What the machine can do: Williams et al. 2009, https://doi.org/10.1145/1498765.1498785."""

    operations_per_second: float
    bytes_per_second: float

    def seconds(self, layers: list[Layer], *, bytes_per_value: int) -> float:
        """The least that these layers take one after the other, if all that is between them is free."""
        return sum(
            max(layer.operations / self.operations_per_second, layer.values * bytes_per_value / self.bytes_per_second)
            for layer in layers
        )


def network_operations(network: nn.Module, images_BCHW: Tensor) -> int:
    """Of one forward pass, multiplications and additions counted apart, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images_BCHW)
    return int(counter.get_total_flops())


def layers_of(network: nn.Module, images_BCHW: Tensor) -> list[Layer]:
    """The convolutions and linear layers of one forward pass, in order."""
    found: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        weight = module.weight
        values = inputs[0].numel() + weight.numel() + output.numel()
        found.append(Layer(operations=2 * output.numel() * weight[0].numel(), values=values))

    hooks = [
        module.register_forward_hook(note) for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network.eval()(images_BCHW)
    for hook in hooks:
        hook.remove()
    return found


def matrix_operations(device: torch.device = CPU) -> int:
    """Of one such product."""
    return 2 * SIDES[device.type] ** 3


def matrix_product(precision: str, *, device: torch.device = CPU) -> Callable[[], Tensor]:
    """A call that multiplies two square matrices; those of int8 give int32."""
    shape = SIDES[device.type], SIDES[device.type]
    if precision == "int8":
        left, right = (torch.randint(-127, 128, shape, dtype=torch.int8, device=device) for _ in range(2))
        return lambda: finished(torch._int_mm(left, right))
    a, b = (torch.randn(shape, dtype=getattr(torch, precision), device=device) for _ in range(2))
    return lambda: finished(a @ b)


def large_copy(device: torch.device = CPU) -> Callable[[], Tensor]:
    """A call that reads `COPIED_BYTES` and writes as many."""
    source, target = (torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: finished(target.copy_(source))


def finished(result: Tensor) -> Tensor:
    """The same, when a GPU has computed it."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


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
