"""A command of `segserve` that runs on Ray, and the processes in which Ray works for it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def started(arguments: Sequence[str], *, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs in the folder; what still runs at the end is killed, and the cluster that it started ends with it."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and "MapWorker" in child.cmdline()[0]:
                yield child
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
