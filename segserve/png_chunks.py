"""A PNG file's chunks (https://www.w3.org/TR/png-3/#5DataRep): those that its pixels are made of."""

import itertools
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"tRNS", b"eXIf")
"""Beside the critical chunks: what is transparent, and which way is up."""
MAX_CHUNKS = 65_536
"""A file of 64 MiB in the usual pieces of 8 KiB has an eighth as many."""


def without_descriptions(data: bytes) -> bytes:
    """The file without texts, profiles, frames and whatever else the pixels can do without.

    Args:
        data: an image file; one that is no PNG, or has more than `MAX_CHUNKS` chunks, comes back as it is.
    """
    if not data.startswith(SIGNATURE):
        return data
    chunks = list(itertools.islice(_chunks(data), MAX_CHUNKS + 1))
    if len(chunks) > MAX_CHUNKS:
        return data
    return b"".join([SIGNATURE, *(chunk for chunk in chunks if chunk[4:5].isupper() or chunk[4:8] in KEPT)])


def _chunks(data: bytes) -> Iterator[bytes]:
    """Each with its length, name and checksum; the last one may be cut short."""
    start = len(SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start:end]
        start = end
