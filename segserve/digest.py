"""By what a file is known to be the one that was meant."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
