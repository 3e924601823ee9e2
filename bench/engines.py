"""How fast an artifact's engines are, and how near the machine's limit: images/s, GFLOP/s, ratios.

    python -m bench.engines ARTIFACT [--batch 8] [--size 256 256]

One process, all the threads that torch takes, random images, alternating runs, medians. The operations are those of the
network as torch counts them (two a multiplication with its addition), whatever an engine makes of them. The limit
beside each engine is a large matrix product of its precision, measured in the same run.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.limit import PRECISIONS, alternating, matrix_operations, matrix_product, network_operations
from segserve.artifact import ENGINE_FOLDER, Artifact, load_artifact
from segserve.choice import build_engine
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine, fastest_precision
from segserve.predictor import Engine
from training.certificate import machine

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
    operations = network_operations(artifact.network, images_BCHW)
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
        rate, limit = operations / seconds[name], matrix_operations() / seconds[precision]
        print(
            f"{name:24} {given.batch / seconds[name]:8.1f} images/s {rate / 1e9:8.0f} GFLOP/s, "
            f"{plain / seconds[name]:5.2f} times torch float32, {rate / limit:5.2f} of the limit of {precision}"
        )
    for precision in limits:
        print(f"limit: matrix product {precision:9} {matrix_operations() / seconds[precision] / 1e9:8.0f} GFLOP/s")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
