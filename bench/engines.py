"""How fast an artifact's engines are, and how near the machine's limit: images/s, GFLOP/s, ratios.

    python -m bench.engines ARTIFACT [--batch 8] [--size 256 256] [--compile]

On the GPU where there is one. One process, all the threads that torch takes, random images, alternating runs, medians.
The operations are those of the network as torch counts them (two a multiplication with its addition), whatever an
engine makes of them. The limits beside each engine are measured in the same run: a large matrix product of its
precision, and the roofline of the network's convolutions and linear layers, for which memory's rate is that of a large
copy. `--compile` adds torch.compile's max-autotune, for which some minutes and a C++ compiler are needed.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.limit import (
    COPIED_BYTES,
    CPU,
    PRECISIONS,
    Roofline,
    alternating,
    finished,
    large_copy,
    layers_of,
    matrix_operations,
    matrix_product,
    network_operations,
)
from segserve.artifact import ENGINE_FOLDER, Artifact, load_artifact
from segserve.choice import build_engine
from segserve.engines.folding import folded
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import Precision, TorchEngine, autocast, best_device, fastest_precision
from training.certificate import machine

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
COPY = "copy"

Call = Callable[[Tensor], object]


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.engines", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    given = parser.parse_args()
    try:
        artifact = load_artifact(given.artifact)
    except ValueError as error:
        print(f"bench.engines: {error}", file=sys.stderr)
        return 2
    device = best_device()
    images_BCHW = torch.randn(given.batch, 3, *given.size)
    operations, layers = network_operations(artifact.network, images_BCHW), layers_of(artifact.network, images_BCHW)
    engines = engines_of(artifact, device=device, with_compiled=given.compile)
    limits = {precision: matrix_product(precision, device=device) for precision in PRECISIONS}
    images_BCHW = images_BCHW.to(device)
    seconds = alternating(
        {name: partial(engine, images_BCHW) for name, (engine, _) in engines.items()}
        | limits
        | {COPY: large_copy(device)}
    )
    rates = {precision: matrix_operations(device) / seconds[precision] for precision in limits}
    memory = 2 * COPIED_BYTES / seconds[COPY]
    where = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    print(f"{machine()}{where}; chosen precision {fastest_precision(device)}")
    print(f"{artifact.spec.name}, batch {given.batch}, {given.size[0]}x{given.size[1]}, {operations / 1e9:.1f} GFLOP")
    plain = seconds["torch float32"]
    for name, (_, precision) in engines.items():
        roofline = Roofline(operations_per_second=rates[precision], bytes_per_second=memory)
        least = roofline.seconds(layers, bytes_per_value=BYTES[precision])
        rate = operations / seconds[name]
        print(
            f"{name:24} {given.batch / seconds[name]:8.1f} images/s {rate / 1e9:8.0f} GFLOP/s, "
            f"{plain / seconds[name]:5.2f} times torch float32, {rate / rates[precision]:5.2f} of the limit of "
            f"{precision}, {least / seconds[name]:5.2f} of the roofline"
        )
    for precision, rate in rates.items():
        print(f"limit: matrix product {precision:9} {rate / 1e9:8.0f} GFLOP/s")
    print(f"limit: memory {memory / 1e9:25.0f} GB/s")
    return 0


def engines_of(
    artifact: Artifact, *, device: torch.device = CPU, with_compiled: bool = False
) -> dict[str, tuple[Call, str]]:
    """Each way to run it there, with the precision that most of its operations have."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    found: dict[str, tuple[Call, str]] = {
        f"torch {precision}": (TorchEngine(artifact.network, device=device, precision=precision), precision)
        for precision in precisions
    }
    if with_compiled:
        found["torch.compile bfloat16"] = _compiled(artifact, device), "bfloat16"
    if device.type == "cuda":
        graphs = TorchEngine(artifact.network, device=device, precision="bfloat16", cuda_graphs=True)
        return found | {"torch bfloat16, graphs": (graphs, "bfloat16")}
    return found | _exported(artifact)


def _compiled(artifact: Artifact, device: torch.device) -> Call:
    network = torch.compile(folded(artifact.network).to(device, memory_format=torch.channels_last), mode="max-autotune")

    @torch.inference_mode()
    def run(images_BCHW: Tensor) -> Tensor:
        with autocast(device, "bfloat16"):
            return finished(network(images_BCHW.to(memory_format=torch.channels_last)))

    return run


def _exported(artifact: Artifact) -> dict[str, tuple[Call, str]]:
    exported = artifact.spec.engine
    if exported is None:
        return {}
    if exported.name == "openvino-int8":
        return {exported.name: (build_engine(artifact, device=CPU, choice=exported.name), "int8")}
    model = artifact.path / ENGINE_FOLDER / "model.xml"
    return {
        f"openvino {precision}": (OpenVINOEngine(model, precision=precision), precision)
        for precision in ("float32", "bfloat16")
    }


if __name__ == "__main__":
    sys.exit(main())
