"""Files that are there whole or not at all: written beside their place, then renamed into it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_NAME = 200
"""Bytes. A temporary name has more than the name itself, and no file's name may have more than 255."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: that file takes the place of `path` at the end, or is deleted on an exception.

    The folder is made where it is missing. A link is followed.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed; it may be another name of a file that matters
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == temporary:  # a name that nobody gave
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Refuse, before the work is done, a place where no file can be written.

    Raises:
        ValueError: there is a folder, or the file's own folder cannot be written to.
    """
    if path.is_dir():
        raise ValueError(f"expected a file to write to, but {path} is a folder: name a file")
    nearest = next(parent for parent in path.resolve().parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(f"expected to write {path}, but {nearest} is no folder that can be written to: name another")


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file's content; text becomes UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
