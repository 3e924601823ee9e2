"""A `segserve serve` in a process of its own, on free ports: for the demo, load test, benchmark and tests."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from handlers.torchserve import free_port

START_SECONDS = 180
STOP_SECONDS = 90


@dataclass(frozen=True, kw_only=True)
class LocalService:
    """Where it answers, and its process."""

    inference: str
    ops: str
    process: subprocess.Popen[bytes]

    def predictions(self, model: str) -> str:
        return f"{self.inference}/predictions/{model}"

    def stop(self) -> int:
        """Tell it to stop, wait until it has; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_SECONDS)


@contextmanager
def local_service(store: Path) -> Iterator[LocalService]:
    """Start the service, wait until it is ready, and stop it at the end if nobody did."""
    inference, management, ops = free_port(), free_port(), free_port()
    ports = ["--inference-port", str(inference), "--management-port", str(management), "--ops-port", str(ops)]
    process = subprocess.Popen([sys.executable, "-m", "cli", "serve", "--store", str(store), *ports])
    service = LocalService(inference=f"http://127.0.0.1:{inference}", ops=f"http://127.0.0.1:{ops}", process=process)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        if process.poll() is None:
            service.stop()


def _wait_until_ready(service: LocalService) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            raise RuntimeError(f"expected the service to start, but it ended with code {service.process.returncode}")
        try:
            urllib.request.urlopen(f"{service.ops}/ready", timeout=2).close()
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"expected the service to be ready within {START_SECONDS} s, but {service.ops}/ready says no")
