"""Other tools decode our answers, each in an environment of its own: their requirements do not fit beside ours.

An environment is made when first asked for, from the lock file beside this one, and kept in build/judges. The first
lines of a lock file say how to renew it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "build" / "judges"
UV = Path(sys.executable).with_name("uv")
OFFLINE = ("dns error", "failed to fetch", "tcp connect", "timed out", "network", "not found in the registry")

Decoded = list[tuple[str, NDArray[np.bool_]]]
"""Class names and where they are, (H, W)."""
Judge = Callable[[Sequence[bytes]], list[Decoded]]
"""Takes several answers, since a judge needs seconds to start."""


@pytest.fixture(scope="session")
def label_studio() -> Judge:
    return _judge("label-studio", HERE / "decode_label_studio.py")


@pytest.fixture(scope="session")
def datumaro() -> Judge:
    return _judge("datumaro", HERE / "decode_cvat.py")


def _judge(name: str, script: Path) -> Judge:
    python = _environment(name)

    def decode(answers: Sequence[bytes]) -> list[Decoded]:
        return _run(python, script, answers)

    return decode


def _environment(name: str) -> Path:
    """The Python of an environment with exactly what the lock file names; skips where nothing can be downloaded."""
    folder, lock = ENVIRONMENTS / name, HERE / f"{name}.txt"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not (installed.is_file() and installed.read_text() == lock.read_text()):
        _uv("venv", "--clear", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--python", str(python), "--require-hashes", "-r", str(lock))
        installed.write_text(lock.read_text())
    return python


def _uv(*command: str) -> None:
    done = subprocess.run([UV, *command], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode and any(sign in done.stderr.lower() for sign in OFFLINE):
        pytest.skip(f"the judge's packages cannot be downloaded here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def _run(python: Path, script: Path, answers: Sequence[bytes]) -> list[Decoded]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.answer" for number in range(len(answers))]
        for file, answer in zip(files, answers, strict=True):
            file.write_bytes(answer)
        done = subprocess.run([python, script, *files], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return [_read(file.with_suffix(".npz")) for file in files]


def _read(file: Path) -> Decoded:
    with np.load(file) as masks:
        return [(name.partition(" ")[2], masks[name]) for name in masks.files]
