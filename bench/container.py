"""Runs the image as a cluster would, asks it for masks, stops it under load, and writes what that took.

    python -m bench.container IMAGE --ask /predictions/NAME [--store DIR] [--tool "docker"] [--network host]
                              [--manifest FILE.yaml] [--token NAME.SECRET] --out FILE.md

The container has a read-only root, no capabilities, no new privileges, a seccomp filter and limits of memory and
processes; `--manifest` leaves all that to rendered manifests, whose Deployment `podman play kube` starts on the host's
network. `--tool` may have options of its own, such as podman's `--runtime runc`; `--option` gives `run` more of them.
The archives are in the image, or in `--store`. Exit code 1: a promise was not kept, and the section says which.
"""

import argparse
import base64
import io
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import numpy as np
import yaml
from PIL import Image

from bench.section import add_section

NAME = f"segserve-bench-{os.getpid()}"
CLIENTS = 8
LOAD_SECONDS = 10.0
READY_SECONDS = 300.0
STOP_SECONDS = 60
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
LIMITS = ("--memory", "6g", "--pids-limit", "512")
PORTS = (8080, 8082)
INFERENCE, OPS = (f"http://127.0.0.1:{port}" for port in PORTS)
IMAGE_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one container did."""

    ready_seconds: float
    """From the command that started it until /ready said so."""
    first_seconds: float
    """Of the first request."""
    process: Mapping[str, str]
    """Fields of process 1 from /proc: Uid, CapEff, NoNewPrivs, Seccomp."""
    root_writable: bool
    healthy: bool
    before: Counter[int]
    """Answers to requests sent before the stop, by status; 0: none."""
    after: Counter[int]
    median_seconds: float
    """Of those with status 200; NaN: there were none."""
    stop_seconds: float
    exit_code: int

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept."""
        promises = {
            "the user is 10001": self.process.get("Uid", "").split()[:1] == ["10001"],
            "there are no capabilities": int(self.process.get("CapEff", "1"), 16) == 0,
            "no new privileges": self.process.get("NoNewPrivs") == "1",
            "there is a seccomp filter": self.process.get("Seccomp") == "2",
            "the root is read-only": not self.root_writable,
            "the health check passes": self.healthy,
            "every request before the stop is answered": set(self.before) == {HTTPStatus.OK},
            "requests after it are answered or refused": set(self.after) <= {0, HTTPStatus.OK, 503},
            "the exit code is 0": self.exit_code == 0,
        }
        return [promise for promise, kept in promises.items() if not kept]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Docker's command line, or one like it."""

    tool: tuple[str, ...]

    def __call__(self, *arguments: str) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run([*self.tool, *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join((*self.tool, *arguments))}: {done.stderr.strip()}")
        return done.stdout

    def succeeds(self, *arguments: str) -> bool:
        return subprocess.run([*self.tool, *arguments], capture_output=True).returncode == 0

    def inspect(self, what: str, name: str) -> dict[str, object]:
        """Of a `container` or an `image`."""
        [found] = json.loads(self(what, "inspect", name))
        return dict(found)

    def state(self, container: str) -> Mapping[str, object]:
        return cast(Mapping[str, object], self.inspect("container", container)["State"])


class Client(threading.Thread):
    """Sends one request after another until one is refused or not answered."""

    def __init__(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.url, self.body, self.headers = url, body, headers
        self.outcomes: list[tuple[float, int, float]] = []
        """When it was sent, the status, and the seconds it took."""

    def run(self) -> None:
        with httpx.Client(timeout=60, headers=self.headers) as client:
            while not self.outcomes or self.outcomes[-1][1] == HTTPStatus.OK:
                sent = time.monotonic()
                try:
                    status = client.post(self.url, content=self.body).status_code
                except httpx.TransportError:
                    status = 0
                self.outcomes.append((sent, status, time.monotonic() - sent))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; returns the exit code."""
    given = _parser().parse_args(arguments)
    engine = Engine(tool=tuple(shlex.split(given.tool)))
    try:
        found = run(engine, given)
        section = _section(engine, given, found)
    except (RuntimeError, OSError, httpx.HTTPError) as error:
        print(f"bench.container: {error}", file=sys.stderr)
        return 1
    add_section(given.out, section, title="The container")
    return 1 if found.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.container", description=__doc__)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--ask", required=True, metavar="PATH", help="where images are posted, /predictions/NAME")
    parser.add_argument("--store", type=Path, metavar="DIR", help="a folder of archives, mounted at /models")
    parser.add_argument("--tool", default="docker", metavar="COMMAND")
    parser.add_argument("--network", choices=("ports", "host"), default="ports")
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="of `run`")
    parser.add_argument("--manifest", type=Path, metavar="FILE.yaml", help="rendered; `play kube` instead of `run`")
    parser.add_argument("--token", metavar="NAME.SECRET", help="for a gateway")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="a section is added to it")
    return parser


def run(engine: Engine, given: argparse.Namespace) -> Found:
    """Start, ask, load, stop.

    Raises:
        RuntimeError: the tool failed, or the first answer is no mask of the image's size.
        TimeoutError: it was not ready in `READY_SECONDS`.
    """
    begin = time.monotonic()
    with _started(engine, given) if given.manifest is None else _played(engine, given) as container:
        _wait_until_ready(engine, container)
        ready = time.monotonic() - begin
        return _asked(engine, container, given, ready_seconds=ready)


@contextmanager
def _played(engine: Engine, given: argparse.Namespace) -> Iterator[str]:
    """The name of the container of the manifests' Deployment."""
    with tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
        file = Path(folder) / "pod.yaml"
        file.write_text(yaml.safe_dump(playable(given.manifest.read_text(), folder=Path(folder))))
        try:
            engine("play", "kube", "--network", "host", *given.option, str(file))
            running = [line.split() for line in engine("ps", "--format", "{{.Image}} {{.Names}}").splitlines()]
            found = [name for image, name in running if image.endswith(given.image)]
            if len(found) != 1:
                raise RuntimeError(f"expected one container of {given.image} to run, but there are {len(found)}")
            yield found[0]
        finally:
            engine("play", "kube", "--down", str(file))


def playable(manifests: str, *, folder: Path) -> dict[str, Any]:
    """The Deployment among rendered manifests, as podman 4 can play it.

    On the host's network it takes no ports, and of projected volumes it knows nothing: their ConfigMaps' and Secrets'
    files are written below `folder` and mounted from there.

    Raises:
        RuntimeError: there is not exactly one Deployment.
    """
    documents = list(yaml.safe_load_all(manifests))
    deployments = [document for document in documents if document["kind"] == "Deployment"]
    if len(deployments) != 1:
        raise RuntimeError(f"expected one Deployment in the manifests, but got {len(deployments)}: render one overlay")
    [deployment] = deployments
    named = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    pod = deployment["spec"]["template"]["spec"]
    for container in pod["containers"]:
        container.pop("ports", None)
    for volume in pod["volumes"]:
        for source in volume.pop("projected", {}).get("sources", []):
            place = folder / volume["name"]
            place.mkdir(exist_ok=True)
            [(kind, reference)] = source.items()
            found = named[kind[0].upper() + kind[1:], reference["name"]]
            for key, text in found["data"].items():
                (place / key).write_bytes(base64.b64decode(text) if kind == "secret" else text.encode())
            volume["hostPath"] = {"path": str(place), "type": "Directory"}
    folder.chmod(0o755)  # the container's user is another one
    return dict(deployment)


@contextmanager
def _started(engine: Engine, given: argparse.Namespace) -> Iterator[str]:
    """The name of a container by `run`."""
    network = ["--network", "host"] if given.network == "host" else []
    published = [word for port in PORTS for word in ("--publish", f"127.0.0.1:{port}:{port}")]
    store = [] if given.store is None else ["--volume", f"{given.store.resolve()}:/models:ro"]
    options = [*HARDENED, *LIMITS, *(network or published), *store, *given.option]
    try:
        engine("run", "--detach", "--name", NAME, *options, given.image)
        yield NAME
    finally:
        engine.succeeds("rm", "--force", NAME)  # it may be there though `run` failed, as where a port is taken


def _wait_until_ready(engine: Engine, container: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{OPS}/ready", timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        if not engine.state(container)["Running"]:
            break
    raise TimeoutError(f"expected the container to be ready, but it is not:\n{engine('logs', container)[-2000:]}")


def _asked(engine: Engine, container: str, given: argparse.Namespace, *, ready_seconds: float) -> Found:
    """Everything between ready and the exit code."""
    body = _image()
    headers = {"Content-Type": "image/png"} | ({"Authorization": f"Bearer {given.token}"} if given.token else {})
    url = INFERENCE + given.ask
    begin = time.monotonic()
    answer = httpx.post(url, content=body, headers=headers, timeout=60)
    first = time.monotonic() - begin
    if answer.status_code != HTTPStatus.OK or Image.open(io.BytesIO(answer.content)).size != (IMAGE_SIDE, IMAGE_SIDE):
        raise RuntimeError(f"expected a mask from {url}, but got {answer.status_code}: {answer.text[:300]}")
    process = dict(
        line.split(":\t", 1) for line in engine("exec", container, "cat", "/proc/1/status").splitlines() if "\t" in line
    )
    writable = engine.succeeds("exec", container, "touch", "/written")
    healthy = _healthy(engine, container)

    clients = [Client(url, body=body, headers=headers) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(LOAD_SECONDS)
    signalled = time.monotonic()
    engine("stop", "--time", str(STOP_SECONDS), container)
    stop = time.monotonic() - signalled
    for client in clients:
        client.join(timeout=60)
    outcomes = [outcome for client in clients for outcome in client.outcomes]
    answered = [seconds for _, status, seconds in outcomes if status == HTTPStatus.OK]
    return Found(
        ready_seconds=ready_seconds,
        first_seconds=first,
        process=process,
        root_writable=writable,
        healthy=healthy,
        before=Counter(status for sent, status, _ in outcomes if sent < signalled),
        after=Counter(status for sent, status, _ in outcomes if sent >= signalled),
        median_seconds=statistics.median(answered) if answered else math.nan,
        stop_seconds=stop,
        exit_code=cast(int, engine.state(container)["ExitCode"]),
    )


def _image() -> bytes:
    """A PNG of a colour ramp."""
    ramp = np.linspace(0, 255, IMAGE_SIDE).astype(np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    file = io.BytesIO()
    Image.fromarray(np.stack([red, green, 255 - red], axis=2)).save(file, "PNG")
    return file.getvalue()


def _healthy(engine: Engine, container: str) -> bool:
    """Whether the image's own health check passes inside; asked by hand, as not every tool has a timer for it."""
    image = engine.inspect("image", str(engine.inspect("container", container)["Image"]))
    place = image if "Healthcheck" in image else image["Config"]  # podman's place, Docker's place
    kind, *command = cast(Mapping[str, Mapping[str, list[str]]], place)["Healthcheck"]["Test"]
    assert kind == "CMD"
    return engine.succeeds("exec", container, *command)


def _section(engine: Engine, given: argparse.Namespace, found: Found) -> str:
    size = cast(int, engine.inspect("image", given.image)["Size"])
    how = f"`{given.manifest.name}`, `play kube`" if given.manifest is not None else " ".join((*HARDENED, *LIMITS))
    rows = {
        "image, unpacked": f"{size / 1e9:.2f} GB",
        "start to ready": f"{found.ready_seconds:.1f} s",
        "first mask": f"{found.first_seconds:.2f} s",
        f"masks of {IMAGE_SIDE} x {IMAGE_SIDE}, {CLIENTS} clients, median": f"{found.median_seconds:.2f} s",
        "requests before SIGTERM": _counts(found.before),
        "requests after it (0: refused by the system)": _counts(found.after),
        "SIGTERM to the end": f"{found.stop_seconds:.1f} s, exit code {found.exit_code}",
        "process 1": ", ".join(f"{key} {found.process.get(key, '?')}" for key in ("Uid", "CapEff", "Seccomp")),
        "promises not kept": ", ".join(found.broken) or "none",
    }
    lines = [f"## {given.image}, {time.strftime('%Y-%m-%d')}", "", f"{how}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _counts(statuses: Counter[int]) -> str:
    return ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
