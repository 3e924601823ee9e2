"""A `segserve serve` in a process of its own, on free ports: for the demo, load test, benchmark and tests."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from handlers.leash import leashed
from handlers.torchserve import free_ports

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
def local_service(
    store: Path, *, arguments: Sequence[str] = (), within: Sequence[str] = (), log: IO[bytes] | None = None
) -> Iterator[LocalService]:
    """Start the service, wait until it is ready, and stop it at the end if nobody did.

    Args:
        store: its archives.
        arguments: of `segserve serve`, beside the store and the ports.
        within: a command that runs its arguments.
        log: where it writes, errors included; None: where this process does.
    """
    inference, management, ops = free_ports(3)
    ports = ["--inference-port", str(inference), "--management-port", str(management), "--ops-port", str(ops)]
    command = [*within, sys.executable, "-m", "cli", "serve", "--store", str(store), *ports, *arguments]
    process = subprocess.Popen(leashed(command), stdout=log, stderr=None if log is None else subprocess.STDOUT)
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
