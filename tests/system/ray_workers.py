"""The processes in which Ray works for a command."""

import subprocess
from collections.abc import Iterator

import psutil


def workers(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and "MapWorker" in child.cmdline()[0]:
                yield child
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
