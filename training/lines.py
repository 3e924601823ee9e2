"""Files that grow by whole lines, whenever the process or the power ends."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO


def read_lines(path: Path) -> list[bytes]:
    """The whole lines, without their ends; a last one that was cut off does not count. None where there is no file."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines, given without their ends, in place of one that was cut off; on the disk when this returns."""
    with path.open("r+b" if path.is_file() else "w+b") as file:
        file.seek(_end_of_whole_lines(file))
        file.truncate()
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_whole_lines(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() in (b"\n", b""):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1
