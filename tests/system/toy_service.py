"""`segserve serve` with the real TorchServe and a toy model: a real process, real signals, real sockets."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from handlers.settings import ServeSettings
from handlers.torchserve import free_ports

ROOT = Path(__file__).parents[2]
START = """
import sys
from handlers.settings import ServeSettings
from handlers.supervisor import serve
sys.exit(serve(ServeSettings.model_validate_json(sys.argv[1])))
"""
TOY_HANDLER = '''
import os
import signal
import time

from prometheus_client import Counter, Gauge

IN_FLIGHT = Gauge("segserve_in_flight", "Requests in the workers", ["model"], multiprocess_mode="livesum")
REQUESTS = Counter("segserve_requests_total", "Requests answered", ["model", "outcome"])


class ToyHandler:
    """Sleeps and says what it got. Obeys the drain flag as segserve's own handlers do, and bodies that harm it."""

    def initialize(self, context):
        self.model = context.manifest["model"]["modelName"]
        if self.model == "broken":
            raise ValueError("the example did not reproduce")
        self.seconds = float(os.environ.get(f"{self.model.upper()}_SECONDS", "0.035"))
        IN_FLIGHT.labels(self.model).set(0)

    def handle(self, rows, context):
        for index in range(len(rows)):
            context.set_response_header(index, "X-Segserve-Model", self.model)
        if os.path.exists(os.environ["SEGSERVE_DRAIN_FLAG"]):
            for index in range(len(rows)):
                context.set_response_status(503, "Service Unavailable", index)
                context.set_response_header(index, "Retry-After", "1")
            return ["stopping"] * len(rows)
        IN_FLIGHT.labels(self.model).inc(len(rows))
        try:
            self._obey([bytes(row["body"][:9]) for row in rows])
            time.sleep(self.seconds)
            REQUESTS.labels(self.model, "ok").inc(len(rows))
            return [self._answer(index, row, context, len(rows)) for index, row in enumerate(rows)]
        finally:
            IN_FLIGHT.labels(self.model).dec(len(rows))

    def _obey(self, orders):
        if b"die" in orders:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"hang" in orders:
            time.sleep(3600)

    def _answer(self, index, row, context, batch):
        for status in (422, 500, 504, 507):
            if row["body"][:9] == b"%d" % status:
                context.set_response_status(status, "Toy", index)
        headers = {name.lower(): text for name, text in context.get_all_request_header(index).items()}
        fields = {name: bytes(value).decode() for name, value in row.items() if name not in ("body", "url_path")}
        kind = type(row["body"]).__name__
        return {"batch": batch, "kind": kind, "pid": os.getpid(), "headers": headers, "fields": fields}
'''


def write_toy_archive(
    store: Path,
    *,
    name: str = "toy",
    version: str = "1.0",
    handler: str = "toy_handler.py",
    runtime: str = "python",
    **config: int,
) -> None:
    """`config`: TorchServe's names, where the values are to be others than here."""
    store.mkdir(exist_ok=True)
    model = {
        "modelName": name,
        "modelVersion": version,
        "handler": handler,
        "configFile": "model-config.yaml",
    }
    manifest = {"createdOn": "01/01/2026 00:00:00", "archiverVersion": "0.12.0", "runtime": runtime, "model": model}
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 5, "responseTimeout": 30, **config}
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr(handler, TOY_HANDLER)
        archive.writestr("model-config.yaml", "".join(f"{key}: {value}\n" for key, value in config.items()))


@dataclass
class Service:
    """A supervisor in a process of its own."""

    settings: ServeSettings
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @property
    def ops(self) -> str:
        return f"http://127.0.0.1:{self.settings.ops_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.inference_port}"

    def prediction_url(self, model: str = "toy") -> str:
        return f"{self.url}/predictions/{model}"

    def ready(self) -> httpx.Response | None:
        assert self.process.poll() is None, self.text()
        try:
            return httpx.get(f"{self.ops}/ready")
        except httpx.TransportError:
            return None

    def wait_ready(self) -> None:
        until(lambda: (answer := self.ready()) is not None and answer.status_code == 200, 90, self.text)

    def text(self) -> str:
        return "".join(self.output)

    def end(self) -> tuple[int, str]:
        """Wait for the end; the exit code and all output."""
        code = self.process.wait(timeout=90)
        self.reader.join(timeout=5)
        return code, self.text()

    def processes(self) -> list[int]:
        """Java and its workers, nginx and its own."""
        own = children(self.process.pid)
        return own + [worker for pid in own for worker in children(pid)]

    def torchserve(self) -> tuple[int, ...]:
        """Java first, then its workers."""
        java = next(pid for pid in children(self.process.pid) if psutil.Process(pid).name() == "java")
        return java, *children(java)

    def read(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.output.extend(lines)


def until(
    condition: Callable[[], Any], seconds: float, detail: Callable[[], str] = str, *, pause: float = 0.05
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, detail()
        time.sleep(pause)


def nginx_or_skip() -> None:
    """Skip a test that needs the gateway where there is none; fail it in CI."""
    if shutil.which("nginx") is None:
        assert not os.environ.get("CI"), "CI must install nginx (Debian's package nginx-light)"
        pytest.skip("nginx is not installed (Debian's package nginx-light)")


def is_gone(pid: int) -> bool:
    """Ended, even if nobody has asked how."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] in ("", "Z")


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@contextmanager
def serving(
    store: Path,
    *,
    temporary: Path,
    environment: dict[str, str] | None = None,
    within: Sequence[str] = (),
    **options: Any,
) -> Iterator[Service]:
    """Start a service on free ports; end it whatever happens, without its drain.

    `within`: a command that runs its arguments.
    """
    ports = dict(zip(("inference_port", "management_port", "ops_port"), free_ports(3), strict=True))
    settings = ServeSettings(store=store, **{**ports, **options})
    process = subprocess.Popen(
        [*within, sys.executable, "-c", START, settings.model_dump_json()],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = Service(settings, process)
    service.read()
    try:
        yield service
    finally:
        process.terminate()
        time.sleep(0.2)
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        service.reader.join(timeout=5)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder for sockets, whose paths must be short; pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="sst-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@dataclass(frozen=True)
class Sent:
    """One request of the hammering clients."""

    at: float
    status: int | str
    retry_after: str | None = None


def hammer(url: str, stop: threading.Event, record: list[Sent]) -> None:
    """Send requests one after the other until the service is gone."""
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            at = time.monotonic()
            try:
                answer = client.post(url, content=b"x" * 50_000, headers={"Content-Type": "image/jpeg"})
            except httpx.TransportError as error:
                record.append(Sent(at, type(error).__name__))
                if isinstance(error, httpx.ConnectError):
                    return
            else:
                record.append(Sent(at, answer.status_code, answer.headers.get("Retry-After")))
