"""One process at a time in a folder: of those that ask, the second is told so."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, *, work: str, otherwise: str) -> Iterator[None]:
    """Inside, the folder, which must exist, is this process's own; killed, it lets go of it.

    Args:
        folder: of a run, a round.
        work: what the other process does there, in a word.
        otherwise: what to do instead of waiting for it.

    Raises:
        ValueError: another process is inside.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise ValueError(
                f"expected {folder} to be free, but another {work} is at work in it: wait for it, {otherwise}"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
