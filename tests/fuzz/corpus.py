"""What both fuzzers share: the seeds are written into the corpus, then libFuzzer runs."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import atheris


def fuzz(arguments: list[str], check: Callable[[bytes], None], seeds: Mapping[str, bytes], **options: Any) -> None:
    """Run until libFuzzer's own limits (`-runs`, `-max_total_time`) end it.

    Args:
        arguments: the command line; its last word, unless it is a flag, names the corpus folder.
        check: raises where an input breaks a promise.
        seeds: the first inputs, by name.
        options: for `atheris.Setup`.
    """
    if not arguments[-1].startswith("-"):
        _write(Path(arguments[-1]), seeds)
    atheris.Setup(arguments, check, **options)
    atheris.Fuzz()


def _write(folder: Path, seeds: Mapping[str, bytes]) -> None:
    """Named as libFuzzer names its files, so that a second run adds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in seeds.values():
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
