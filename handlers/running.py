"""Where a running `segserve serve` says how it is reached, for the commands that change what it serves."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from handlers.management import is_alive
from handlers.settings import ServeSettings
from handlers.torchserve import RunFolder
from segserve.settings import Settings
from segserve.whole import write_whole

PREFIX = "segserve-"
"""Of the run folders' names."""


class Running(Settings):
    """One service, as it has started."""

    pid: int
    settings: ServeSettings
    inner: ServeSettings
    """TorchServe's own view: behind a gateway it listens elsewhere."""


def announce(folder: RunFolder, *, settings: ServeSettings, inner: ServeSettings) -> None:
    """Say in the run folder, which only its user may enter, what this process serves."""
    absolute = settings.model_copy(update={"store": settings.store.resolve()})
    running = Running(pid=os.getpid(), settings=absolute, inner=inner)
    write_whole(folder.announcement, running.model_dump_json())


def find(store: Path) -> tuple[Running, RunFolder]:
    """The service of this user that serves from `store`.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [
        (running, folder)
        for folder in _own_folders()
        if (running := _read(folder)) and running.settings.store == store.resolve() and is_alive(running.pid)
    ]
    if len(found) != 1:
        raise ValueError(
            f"expected one running `segserve serve` of yours with --store {store} and its run folder below "
            f"{tempfile.gettempdir()}, but found {len(found)}: start it, or set --store, and TMPDIR, as it was started"
        )
    return found[0]


@contextlib.contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """Hold what only one process may hold at a time; the system lets go of it when the process ends.

    Raises:
        ValueError: another process holds it.
    """
    with folder.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError("expected to be the only deploy or rollback, but another one runs: wait for it") from None
        yield


def forget_left(folder: RunFolder) -> None:
    """Delete what a killed deployment has left behind: images, and the link to its archive."""
    if folder.sample.exists() or any(folder.store.iterdir()):
        with contextlib.suppress(ValueError), alone(folder):
            folder.withdraw()
            shutil.rmtree(folder.sample, ignore_errors=True)


def _own_folders() -> list[RunFolder]:
    """A folder of somebody else could say anything."""
    entries = os.scandir(tempfile.gettempdir())
    found = (entry for entry in entries if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False))
    return [RunFolder(Path(entry.path)) for entry in found if entry.stat().st_uid == os.geteuid()]


def _read(folder: RunFolder) -> Running | None:
    try:
        return Running.model_validate_json(folder.announcement.read_bytes())
    except FileNotFoundError:
        return None
