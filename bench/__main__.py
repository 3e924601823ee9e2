"""segserve beside other servers with the same network, and beside the bare engine: one page of figures (`make bench`).

    python -m bench [ARTIFACT] [--rounds 3] [--seconds 8] [--clients 16] [--only NAME,NAME] [--out FILE.md]

Same image, same client, same cores. Every round measures the bare engine and the limit of the machine and starts each
server anew, so that what disturbs the machine disturbs all; figures are medians of the rounds. Peers run with torch, as
their documentation has it, and with our engine; their packages are installed under runs/bench. The artifact must have a
fixed working size, and an exported engine if that is what is to be measured (docs/engines.md).
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

from bench.comparison import LOADED, Bare, Comparison, Extra, Measurement
from bench.limit import alternating, matrix_operations, matrix_product, network_operations
from bench.load import open_loop
from bench.machine import processor
from bench.section import add_section
from bench.servers import Server, ours, peers, running
from bench.tail import tail
from handlers.load import closed_loop
from segserve.api import Request
from segserve.artifact import EXAMPLE_INPUT, Artifact, load_artifact
from segserve.choice import build_engine
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import Engine, build_predictor
from segserve.service import Service
from segserve.spec import ServingSpec
from segserve.whole import check_place

ARTIFACT = Path("runs/demo/artifacts/demo-segmentation")
OUT = Path("runs/bench/page.md")
LOG = Path("runs/bench/servers.log")
WARM_UP_SECONDS = 2.0
NO_PEER = "none"
"""As a name for `--only`."""
FAULTS = (RuntimeError, OSError, HTTPException, subprocess.SubprocessError, psutil.Error)
"""What a server that is not installed, does not answer or breaks off ends in."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        check(given)
        check_place(given.out)
        artifact = load_artifact(given.artifact)
        image = image_of(artifact)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    LOG.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
            comparison = measure(servers_of(given, artifact.spec.serving, Path(folder)), artifact, image, given)
    except FAULTS as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    plot = given.out.with_suffix(f".{artifact.spec.name}.png")
    lines = [
        heading(artifact, given),
        comparison.table(),
        "",
        *comparison.ratios(),
        "",
        f"![Images a second]({plot.name})",
    ]
    add_section(given.out, "\n".join([*lines, ""]), title="segserve beside other servers")
    comparison.plot(plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, nargs="?", default=ARTIFACT, metavar="ARTIFACT", help=f"({ARTIFACT})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load (8)")
    parser.add_argument("--clients", type=int, default=16, help="that wait for their answers (16)")
    parser.add_argument(
        "--only", default="", metavar="NAME,NAME", help="peers whose names contain one of these; none: no peer"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.md", help=f"a section is added to it ({OUT})")
    return parser


def check(given: argparse.Namespace) -> None:
    """Refuse what cannot be measured, by a ValueError."""
    if min(given.rounds, given.clients) < 1 or given.seconds <= 0:
        raise ValueError(
            f"expected at least one round and one client, and some seconds, but got {given.rounds}, {given.clients} "
            f"and {given.seconds:g}: correct --rounds, --clients or --seconds"
        )
    known = {peer.name for peer in peers("torch")}
    for name in given.only.split(","):
        if name != NO_PEER and not any(name in one for one in known):
            raise ValueError(f"expected --only to name some of {', '.join(sorted(known))}, but got {name}")


def image_of(artifact: Artifact) -> bytes:
    """The artifact's example at its working size, as a JPEG file.

    Raises:
        ValueError: images keep their size.
    """
    preprocess = artifact.spec.preprocess
    if preprocess.resize != "always":
        raise ValueError(
            f"expected an artifact with a fixed working size, for peers do not resize, but {artifact.path} has "
            f"resize = {preprocess.resize!r}: give one trained with resize = 'always'"
        )
    side = (preprocess.working_side, preprocess.working_side)
    file = io.BytesIO()
    Image.open(artifact.path / EXAMPLE_INPUT).convert("RGB").resize(side).save(file, format="JPEG", quality=90)
    return file.getvalue()


def heading(artifact: Artifact, given: argparse.Namespace) -> str:
    """What was measured, when and where."""
    side, engine, size = artifact.spec.preprocess.working_side, artifact.spec.engine, artifact.spec.serving.batch_size
    return (
        f"## {artifact.spec.name}, {side}x{side}, {time.strftime('%Y-%m-%d')}\n\n"
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}; our engine is "
        f"{'torch' if engine is None else engine.name}. JPEG in, index PNG out, batches of {size} at most, "
        f"{given.clients} clients on the same cores, {given.rounds} rounds of {given.seconds:g} s, medians.\n"
    )


def servers_of(given: argparse.Namespace, serving: ServingSpec, folder: Path) -> list[Server]:
    """segserve with its engine first, then with torch, then the peers, which make batches as the artifact's are."""
    names = given.only.split(",")
    found = [ours(given.artifact, engine, folder=folder) for engine in ("ours", "torch")]
    asked = [peer for engine in ("ours", "torch") for peer in peers(engine, serving)]
    return found + [peer for peer in asked if any(name in peer.name for name in names)]


def measure(servers: Sequence[Server], artifact: Artifact, image: bytes, given: argparse.Namespace) -> Comparison:
    """Every server, by its title, and the bare engine, once a round. A peer that fails is not asked again."""
    measured, failed, bare = defaultdict[str, list[Measurement]](list), set[str](), list[Bare]()
    with tqdm(total=given.rounds * (1 + len(servers)), disable=None) as bar:
        for _ in range(given.rounds):
            bar.set_description("bare engine")
            bare.append(bare_of(artifact, image, seconds=given.seconds))
            bar.update()
            for server in servers:
                bar.set_description(server.title)
                try:
                    if server.title not in failed:
                        measured[server.title].append(_measured(server, given, image))
                except FAULTS as error:
                    if server.is_ours:
                        raise
                    tqdm.write(f"{server.title}: {error}", file=sys.stderr)
                    failed.add(server.title)
                bar.update()
    answered = {title: rounds for title, rounds in measured.items() if title not in failed}
    extra = ask_more(servers[0], artifact, image, given)
    return Comparison(measured=answered, failed=sorted(failed), bare=bare, extra=extra)


def _measured(server: Server, given: argparse.Namespace, image: bytes) -> Measurement:
    with running(server, artifact=given.artifact, image=image, log=LOG) as found:
        closed_loop(found.target, clients=given.clients, seconds=WARM_UP_SECONDS)
        load = closed_loop(found.target, clients=given.clients, seconds=given.seconds)
        return Measurement(load=load, start_seconds=found.start_seconds, megabytes=found.megabytes)


def bare_of(artifact: Artifact, image: bytes, *, seconds: float) -> Bare:
    """The engine and the service in this process, in full batches, on all the cores that they take."""
    engine, size = build_engine(artifact, device="cpu"), artifact.spec.serving.batch_size
    service = Service(artifact, build_predictor(artifact.spec, engine), name="bench", version="1.0")
    requests = [Request(headers={"content-type": "image/jpeg"}, fields={"body": image})] * size
    images_BCHW = torch.randn(size, 3, *np.array(Image.open(io.BytesIO(image))).shape[:2])
    precision = precision_of(engine)
    found = alternating(
        {
            "engine": partial(engine, images_BCHW),
            "alone": partial(engine, images_BCHW[:1]),
            "service": partial(service.handle, requests),
            "limit": matrix_product(precision),
        },
        seconds=seconds,
    )
    operations = network_operations(artifact.network.cpu(), images_BCHW)
    return Bare(
        engine_images_per_second=size / found["engine"],
        service_images_per_second=size / found["service"],
        tail=tail(alone=found["alone"], together=found["engine"], batch_size=size, load=LOADED),
        share_of_limit=(operations / found["engine"]) / (matrix_operations() / found["limit"]),
    )


def precision_of(engine: Engine) -> str:
    """In which most of its operations are done."""
    if isinstance(engine, OpenVINOEngine) and engine.name == "openvino-int8":
        return "int8"
    assert isinstance(engine, OpenVINOEngine | TorchEngine)
    return engine.precision


def ask_more(server: Server, artifact: Artifact, image: bytes, given: argparse.Namespace) -> Extra:
    """Latency at `LOADED` of what it can do, and what test-time augmentation costs."""
    with running(server, artifact=given.artifact, image=image, log=LOG) as found:
        closed_loop(found.target, clients=given.clients, seconds=WARM_UP_SECONDS)
        plain = closed_loop(found.target, clients=given.clients, seconds=given.seconds)
        loaded = open_loop(found.target, rate=LOADED * plain.images_per_second, seconds=4 * given.seconds, seed=0)
        turned = replace(found.target, headers={**found.target.headers, "X-Segserve-Tta": "d4"})
        augmented = closed_loop(turned, clients=given.clients, seconds=4 * given.seconds)
    return Extra(
        p50_ms=loaded.milliseconds(50),
        p99_ms=loaded.milliseconds(99),
        tta_cost=plain.images_per_second / augmented.images_per_second,
    )


if __name__ == "__main__":
    sys.exit(main())
