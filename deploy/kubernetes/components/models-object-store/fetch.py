"""Fetch the archives that a list names, and keep those only whose digest is the list's; Python's own library suffices.

STORE_URL=https://store/folder python fetch.py models.txt /models
"""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{64})  ?[ *]?([A-Za-z0-9][A-Za-z0-9_.+-]*\.mar)")
_TRIES, _PAUSE_SECONDS, _TIMEOUT_SECONDS = 3, 2.0, 30.0


def main(listed: Path, folder: Path) -> None:
    """Fetch everything; a sentence and exit code 1 if something is not as expected."""
    base = os.environ["STORE_URL"].rstrip("/")
    if not base.startswith(("https://", "http://")):
        sys.exit(f"fetch: expected STORE_URL to begin with https://, but got {base}")
    entries = list(_entries(listed))
    if not entries:
        sys.exit(f"fetch: expected archives in {listed}, but it names none: add lines of `sha256sum *.mar`")
    for digest, name in entries:
        _fetch(f"{base}/{urllib.parse.quote(name)}", folder / name, digest=digest)


def _entries(listed: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(listed.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            sys.exit(f"fetch: expected line {number} of {listed} to be a SHA-256 and NAME.mar, but got {line!r}")
        yield found[1], found[2]


def _fetch(url: str, target: Path, *, digest: str) -> None:
    partial = target.with_suffix(".partial")
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            _download(url, partial)
            break
        except (OSError, http.client.HTTPException) as error:
            if last:
                partial.unlink(missing_ok=True)
                sys.exit(f"fetch: expected {url}, but it did not come in {_TRIES} tries: {error}")
            time.sleep(_PAUSE_SECONDS)
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        partial.unlink()
        sys.exit(f"fetch: expected {url} to have SHA-256 {digest}, but it has {found}")
    partial.rename(target)
    print(f"fetch: {target.name} {digest}", flush=True)


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, target.open("wb") as file:
        while chunk := answer.read(2**20):
            file.write(chunk)
        length = answer.headers["Content-Length"]  # what ends early is no error of read(size)
        if length is not None and file.tell() < int(length):
            raise OSError(f"expected {length} bytes, but the connection closed after {file.tell()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
