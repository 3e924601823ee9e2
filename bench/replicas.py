"""Two replicas behind their gateways and one nginx, measured, and the same simulated: is the simulation true?

    python -m bench.replicas --store runs/demo/model_store --report docs/benchmarks/DATE-capacity.md

Each replica has a core of its own, as if it were a machine. The profile `fit` loads both; from the workers' logs come
the service times, which are left in OUT/service-time.json for `loadtest.capacity`. Then other loads, of other images,
are measured and simulated. Throughput is to agree within 10 %, the 95th percentile within 20 %, and no request is to
fail: exit code 0; else 1.
"""

import argparse
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import processor
from bench.section import add_section
from handlers.local_service import local_service
from handlers.nginx import find_nginx
from handlers.settings import GatewaySettings
from handlers.store import read_spec
from handlers.torchserve import free_port
from loadtest.__main__ import send
from loadtest.profile import Ask, Profile, Step, read_profile
from loadtest.record import Record, Run, Sent
from loadtest.service_time import ServiceTime, fit, read_batches
from loadtest.simulation import Cluster, Request, Simulation, closed_loop, open_loop
from loadtest.summary import StepResult, summarise
from segserve.spec import ServingSpec, Task
from segserve.whole import write_whole

REPLICAS = 2
MASKS = (Ask(weight=3), Ask(weight=1, accept="application/json"), Ask(weight=1, tta="hflip"))
"""What is checked: not the images that were fitted."""
USERS = (4, 16, 48)
SHARES = (0.5, 0.8)
"""Of what the replicas can do, in an open loop."""
THROUGHPUT, P95 = 0.10, 0.20
"""How far the simulation may be off."""
FRONT = """daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{ {servers} keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""
GATEWAY = "requests_per_second = 100000\nburst = 100000\nconnections = 10000\n"
"""One address sends everything here."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One step of a load, measured and simulated."""

    load: str
    measured: StepResult
    simulated: StepResult

    @property
    def throughput_off(self) -> float:
        """Relative to what was measured."""
        return self.simulated.per_second / self.measured.per_second - 1

    @property
    def p95_off(self) -> float:
        """Likewise."""
        assert self.measured.latency is not None and self.simulated.latency is not None
        return self.simulated.latency.p95_ms / self.measured.latency.p95_ms - 1

    @property
    def failed(self) -> float:
        """Share of the requests that got no right answer, which a simulation knows nothing of."""
        return self.measured.shares.get("failed", 0.0)

    @property
    def agrees(self) -> bool:
        """Both within their limits, and nothing failed."""
        return abs(self.throughput_off) <= THROUGHPUT and abs(self.p95_off) <= P95 and not self.failed

    def line(self) -> str:
        """Of a Markdown table."""
        assert self.measured.latency is not None and self.simulated.latency is not None
        refused = [f"{step.shares.get('refused', 0.0):.1%}" for step in (self.measured, self.simulated)]
        return (
            f"| {self.load} | {self.measured.per_second:.2f} | {self.simulated.per_second:.2f} | "
            f"{self.throughput_off:+.1%} | {self.measured.latency.p95_ms:.0f} | {self.simulated.latency.p95_ms:.0f} | "
            f"{self.p95_off:+.1%} | {refused[0]} | {refused[1]} | {self.failed:.1%} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, simulate, compare; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        serving = read_serving(given.store, given.model)
        with replicas(given.store, folder=given.out) as (url, logs):
            service = _fitted(given, url, logs, serving)
            cluster = cluster_of(service, serving)
            records = [_sent(given, url, profile) for profile in checks(service, serving, seconds=given.seconds)]
    except (ValueError, RuntimeError) as error:
        print(f"bench.replicas: {error}", file=sys.stderr)
        return 2
    compared = [found for record in records for found in compare(record, service, cluster)]
    section = _section(service, compared, given)
    if given.report is None:
        print(section)
    else:
        add_section(given.report, section, title="Capacity: the simulation and two real replicas")
    return 0 if all(found.agrees for found in compared) else 1


def read_serving(store: Path, model: str) -> ServingSpec:
    """How the archive of a model is served.

    Raises:
        ValueError: there is no such archive, or it has several workers, whose logs could not be told apart.
    """
    path = store / f"{model}.mar"
    if not path.is_file():
        raise ValueError(f"expected an archive {path}, but there is none: run `make demo`, or name --store and --model")
    serving = read_spec(path).serving
    if serving.workers != 1:
        raise ValueError(f"expected one worker a replica, but {path} asks for {serving.workers}: package it anew")
    return serving


@contextlib.contextmanager
def replicas(store: Path, *, folder: Path) -> Iterator[tuple[str, Sequence[Path]]]:
    """Start them, each on a core; the address of the nginx in front, and the files of their logs."""
    folder.mkdir(parents=True, exist_ok=True)
    gateway = folder / "gateway.toml"
    gateway.write_text(GATEWAY)
    cores = sorted(os.sched_getaffinity(0))
    logs = [folder / f"replica-{number}.log" for number in range(REPLICAS)]
    with contextlib.ExitStack() as stack:
        services = []
        for number, log in enumerate(logs):
            file = stack.enter_context(log.open("wb"))
            pinned = ("taskset", "--cpu-list", str(cores[number % len(cores)]))
            arguments = ("--gateway", str(gateway))
            services.append(stack.enter_context(local_service(store, arguments=arguments, within=pinned, log=file)))
        addresses = [service.inference for service in services]
        yield stack.enter_context(front(addresses, folder=(folder / "front").resolve())), logs


@contextlib.contextmanager
def front(addresses: Sequence[str], *, folder: Path) -> Iterator[str]:
    """nginx, which gives requests to each in turn; its address."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    servers = " ".join(f"server {address.removeprefix('http://')} max_fails=0;" for address in addresses)
    configuration = folder / "nginx.conf"
    configuration.write_text(FRONT.format(folder=folder, servers=servers, port=port))
    process = subprocess.Popen([find_nginx(), "-e", "stderr", "-p", f"{folder}/", "-c", str(configuration)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _fitted(given: argparse.Namespace, url: str, logs: Sequence[Path], serving: ServingSpec) -> ServiceTime:
    profile = read_profile("fit")
    steps = tuple(step.model_copy(update={"seconds": step.seconds * given.seconds / 60}) for step in profile.steps)
    record = _sent(given, url, profile.model_copy(update={"steps": steps}))
    batches = [batch for log in logs for batch in read_batches(log.read_text().splitlines(), record, model=given.model)]
    measured = f"{time.strftime('%Y-%m-%d')}, a core of {processor()}, {given.model}"
    service = fit(batches, max_batch_delay=serving.max_batch_delay_ms / 1000, measured=measured)
    write_whole(given.out / "service-time.json", service.model_dump_json(indent=1))
    return service


def _sent(given: argparse.Namespace, url: str, profile: Profile) -> Record:
    models: dict[Task, str] = {"segmentation": given.model, "classification": given.model}
    return send(Run(profile=profile, models=models, record=(given.out / "record.json").resolve()), url=url)


def cluster_of(service: ServiceTime, serving: ServingSpec) -> Cluster:
    """What was started here."""
    return Cluster(
        replicas=REPLICAS,
        batch_size=serving.batch_size,
        max_batch_delay=serving.max_batch_delay_ms / 1000,
        places=serving.batch_size * (1 + GatewaySettings().waiting_batches),
        outside_seconds=service.outside_seconds,
    )


def checks(service: ServiceTime, serving: ServingSpec, *, seconds: float) -> Iterator[Profile]:
    """Loads that were not fitted, each step so long."""
    weight = sum(ask.weight for ask in MASKS)
    megapixels = sum(ask.weight * sum(w * h / 1e6 for w, h in ask.sizes) / len(ask.sizes) for ask in MASKS) / weight
    views = sum(ask.weight * (2 if ask.tta == "hflip" else 1) for ask in MASKS) / weight
    size = serving.batch_size
    most = REPLICAS * size / service.mean(megapixels=size * megapixels, views=size * views)
    closed = tuple(Step(seconds=seconds, load=users) for users in USERS)
    yield Profile(about="Users.", loop="closed", steps=closed, requests=MASKS)
    opened = tuple(Step(seconds=seconds, load=share * most) for share in SHARES)
    yield Profile(about="Rates.", loop="open", steps=opened, requests=MASKS)


def simulate(record: Record, service: ServiceTime, cluster: Cluster, *, seed: int = 0) -> Record:
    """The record that the same load leaves on simulated replicas; of the same images, due when they were due."""
    profile = record.run.profile
    simulation = Simulation(cluster=cluster, service=service, seed=seed)
    sent = sorted(record.sent, key=lambda entry: entry.number)
    if profile.loop == "open":
        requests = [Request(due=e.due, megapixels=e.megapixels, views=e.views) for e in sorted(sent, key=_due)]
        result = open_loop(simulation, requests)
    else:
        images = (Request(due=0.0, megapixels=e.megapixels, views=e.views) for e in itertools.cycle(sent))
        steps = [(start, int(step.load)) for start, step in zip(profile.starts, profile.steps, strict=False)]
        result = closed_loop(simulation, images, steps=steps, seconds=profile.seconds)
    return record.model_copy(update={"sent": tuple(map(_as_sent, itertools.count(), result.requests)), "scrapes": ()})


def _due(sent: Sent) -> float:
    return sent.due


def _as_sent(number: int, request: Request) -> Sent:
    refused = request.seconds is None
    return Sent(
        number=number,
        name="simulated",
        due=request.due,
        seconds=request.seconds or 0.0,
        kind="refused" if refused else "ok",
        outcome="refused" if refused else "ok",
        megapixels=request.megapixels,
        views=request.views,
        bytes_up=0,
        bytes_down=0,
    )


def compare(record: Record, service: ServiceTime, cluster: Cluster) -> Iterator[Compared]:
    """Each step of a record with its simulation.

    Raises:
        ValueError: a step has no good answer.
    """
    unit = "users" if record.run.profile.loop == "closed" else "a second"
    for measured, simulated in zip(summarise(record), summarise(simulate(record, service, cluster)), strict=True):
        load = f"{measured.load:.3g} {unit}"
        if measured.latency is None or simulated.latency is None:
            raise ValueError(f"expected good answers to {load}, but there was none")
        yield Compared(load=load, measured=measured, simulated=simulated)


def _section(service: ServiceTime, compared: Sequence[Compared], given: argparse.Namespace) -> str:
    good = sum(found.agrees for found in compared)
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M')}, {given.model}",
        "",
        f"{processor()}, {os.cpu_count()} cores, of which each of {REPLICAS} replicas has one; the load test runs "
        f"on them, too. Steps of {given.seconds:g} s. `python -m bench.replicas`.",
        "",
        f"Fitted to {service.batches} batches: {1000 * service.seconds_per_megapixel:.4g} ms a megapixel, "
        f"{1000 * service.seconds_per_view:.4g} ms a view, {1000 * service.seconds_per_batch:.4g} ms a batch; "
        f"{1000 * service.outside_seconds:.3g} ms of a request outside.",
        "",
        "| load | images/s | simulated | off | p95, ms | simulated | off | refused | simulated | failed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(found.line() for found in compared),
        "",
        f"{good} of {len(compared)} within {THROUGHPUT:.0%} of the throughput and {P95:.0%} of the 95th percentile.",
        "",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replicas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo/model_store"), help="with NAME.mar")
    parser.add_argument("--model", default="demo-segmentation", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60, help="of each step")
    parser.add_argument("--out", type=Path, default=Path("runs/capacity"), metavar="FOLDER")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="a section is added to it; else it is printed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
