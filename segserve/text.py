"""Text files that people write, on whatever system."""

from pathlib import Path


def read_text(path: Path) -> str:
    """A UTF-8 file without the mark that Windows puts before it.

    Raises:
        ValueError: it is coded in another way.
        OSError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ValueError(f"expected {path} to be UTF-8, but line {line} is not: save it as UTF-8") from None


def is_utf8(name: str) -> bool:
    """Whether a file's name is; Python reads the bytes of one that is not as characters that no text has."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
