"""Whether bfloat16 is faster than float32 here: processor time of the ResNet50-UNet, forward and training step.

    OMP_NUM_THREADS=1 python -m bench.precision

Medians of alternating runs; a ratio above 1 says that bfloat16 takes longer.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from segserve.engines.torch_engine import Precision, autocast, fastest_precision
from segserve.networks import build_network
from segserve.spec import NetworkSpec

ROUNDS = 7
CPU = torch.device("cpu")


def main() -> int:
    """Measure and print; returns the exit code."""
    network = build_network(NetworkSpec(encoder="resnet50"), task="segmentation", num_classes=3)
    network.to(memory_format=torch.channels_last)
    images_BCHW = torch.randn(8, 3, 128, 128).to(memory_format=torch.channels_last)

    def forward(precision: Precision) -> Tensor:
        with torch.inference_mode(), autocast(CPU, precision):
            logits_BKHW: Tensor = network.eval()(images_BCHW)
        return logits_BKHW

    def step(precision: Precision) -> None:
        with autocast(CPU, precision):
            logits_BKHW = network.train()(images_BCHW)
        logits_BKHW.float().square().mean().backward()

    cpu = torch.cpu.get_capabilities()
    print(f"{cpu.get('cpu_name')}, avx512_bf16 {cpu.get('avx512_bf16')}, amx_bf16 {cpu.get('amx_bf16')}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), chosen: {fastest_precision(CPU)}")
    for name, work in (("forward", forward), ("training step", step)):
        plain, short = _medians(work)
        print(f"{name}: float32 {plain:.3f} s, bfloat16 {short:.3f} s, ratio {short / plain:.2f}")
    return 0


def _medians(work: Callable[[Precision], object]) -> tuple[float, float]:
    """Processor seconds in float32 and in bfloat16; the first round warms up."""
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(ROUNDS):
        for precision, found in seconds.items():
            begin = time.process_time()
            work(precision)
            found.append(time.process_time() - begin)
    return statistics.median(seconds["float32"][1:]), statistics.median(seconds["bfloat16"][1:])


if __name__ == "__main__":
    sys.exit(main())
