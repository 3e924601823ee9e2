"""How fast an artifact's engines are, and how near the machine's limit: images/s, GFLOP/s, ratios.

    python -m bench.engines ARTIFACT [--batch 8] [--size 256 256]

One process, all the threads that torch takes, random images, alternating runs, medians. The operations are those of the
network as torch counts them (two a multiplication with its addition), whatever an engine makes of them. The limit
beside each engine is a large matrix product of its precision, measured in the same run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segserve.artifact import ENGINE_FOLDER, Artifact, load_artifact
from segserve.choice import build_engine
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine, fastest_precision
from segserve.predictor import Engine
from training.certificate import machine

ROUNDS = 7
PRECISIONS = ("float32", "bfloat16", "int8")
SIDE = 2048
"""Of the matrices."""
CPU = torch.device("cpu")


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.engines", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    given = parser.parse_args()
    artifact = load_artifact(given.artifact)
    images_BCHW = torch.randn(given.batch, 3, *given.size)
    operations = network_operations(artifact, images_BCHW)
    engines = engines_of(artifact)
    limits = {precision: matrix_product(precision) for precision in PRECISIONS}
    works: dict[str, Callable[[], object]] = {
        **{name: partial(engine, images_BCHW) for name, (engine, _) in engines.items()},
        **limits,
    }
    seconds = alternating(works)
    print(f"{machine()}; chosen precision {fastest_precision(CPU)}")
    print(f"{artifact.spec.name}, batch {given.batch}, {given.size[0]}x{given.size[1]}, {operations / 1e9:.1f} GFLOP")
    plain = seconds["torch float32"]
    for name, (_, precision) in engines.items():
        rate, limit = operations / seconds[name], 2 * SIDE**3 / seconds[precision]
        print(
            f"{name:24} {given.batch / seconds[name]:8.1f} images/s {rate / 1e9:8.0f} GFLOP/s, "
            f"{plain / seconds[name]:5.2f} times torch float32, {rate / limit:5.2f} of the limit of {precision}"
        )
    for precision in limits:
        print(f"limit: matrix product {precision:9} {2 * SIDE**3 / seconds[precision] / 1e9:8.0f} GFLOP/s")
    return 0


def network_operations(artifact: Artifact, images_BCHW: Tensor) -> int:
    """Of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        artifact.network.eval()(images_BCHW)
    return int(counter.get_total_flops())


def engines_of(artifact: Artifact) -> dict[str, tuple[Engine, str]]:
    """Each way to run it, with the precision that most of its operations have."""
    found: dict[str, tuple[Engine, str]] = {
        f"torch {precision}": (TorchEngine(artifact.network, precision=precision), precision)
        for precision in ("float32", "bfloat16")
    }
    exported = artifact.spec.engine
    if exported is None:
        return found
    if exported.name == "openvino-int8":
        return found | {exported.name: (build_engine(artifact, device=CPU, choice=exported.name), "int8")}
    model = artifact.path / ENGINE_FOLDER / "model.xml"
    return found | {
        f"openvino {precision}": (OpenVINOEngine(model, precision=precision), precision)
        for precision in ("float32", "bfloat16")
    }


def matrix_product(precision: str) -> Callable[[], Tensor]:
    """A call that multiplies two matrices of `SIDE` x `SIDE`; those of int8 give int32."""
    if precision == "int8":
        left, right = (torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(left, right)
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, precision)) for _ in range(2))
    return lambda: a @ b


def alternating(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + ROUNDS):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
