"""Where a running `segserve serve` says how it is reached, for the commands that change what it serves."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from handlers.settings import ServeSettings
from handlers.torchserve import RunFolder
from segserve.settings import Settings
from segserve.whole import write_whole

PREFIX = "segserve-"
"""Of the run folders' names."""


class Running(Settings):
    """One service, as it has started."""

    settings: ServeSettings
    inner: ServeSettings
    """TorchServe's own view: behind a gateway it listens elsewhere."""


@contextlib.contextmanager
def alive(folder: RunFolder) -> Iterator[None]:
    """Hold what says that this service lives, until it ends, however it does.

    A process number would say nothing: in a container it is the same after each start. The file has its name only once
    it is locked, so that nobody takes a service that begins for a dead one. Java and nginx do not inherit it.
    """
    begun = folder.alive.with_suffix(".new")
    with begun.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun.rename(folder.alive)
        yield


def delete_dead() -> None:
    """Delete the run folders that killed services of this user have left: unpacked archives, and what clients sent."""
    for folder in _own_folders():
        with contextlib.suppress(OSError), folder.alive.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder.root, ignore_errors=True)


def announce(folder: RunFolder, *, settings: ServeSettings, inner: ServeSettings) -> None:
    """Say in the run folder, which only its user may enter, what this process serves."""
    absolute = settings.model_copy(update={"store": settings.store.resolve()})
    running = Running(settings=absolute, inner=inner)
    write_whole(folder.announcement, running.model_dump_json())


def find(store: Path) -> tuple[Running, RunFolder]:
    """The service of this user that serves from `store`.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [
        (running, folder)
        for folder in _own_folders()
        if (running := _read(folder)) and running.settings.store == store.resolve() and _is_alive(folder)
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
    return [RunFolder(Path(entry.path)) for entry in os.scandir(tempfile.gettempdir()) if _is_own(entry)]


def _is_own(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):  # a service has just ended
        is_folder = entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
        return is_folder and entry.stat().st_uid == os.geteuid()
    return False


def _is_alive(folder: RunFolder) -> bool:
    try:
        with folder.alive.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _read(folder: RunFolder) -> Running | None:
    try:
        return Running.model_validate_json(folder.announcement.read_bytes())
    except (FileNotFoundError, ValidationError):  # of another version's service: not one that this can talk to
        return None
