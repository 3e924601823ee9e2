"""The fuzzers run, and what broke the parsers once does not do so again."""

import subprocess
import sys
from pathlib import Path

import pytest

from segserve.api import Request, parse_request
from segserve.problem import Problem

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["fuzz_decode", "fuzz_options"])
def test_a_fuzzer_tries_its_seeds_and_some_hundred_inputs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / f"{name}.py", "-runs=500", "-seed=1", tmp_path / "corpus"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 500 runs" in done.stderr
    assert len(list((tmp_path / "corpus").iterdir())) > 40


def test_a_fuzzer_ends_with_an_error_at_the_first_broken_promise(tmp_path: Path) -> None:
    script = "import sys; from corpus import fuzz; fuzz(sys.argv, lambda data: 1 // (b'q' not in data), {'seed': b'q'})"
    command = [sys.executable, "-c", script, "-runs=500", tmp_path / "corpus"]
    environment = {"PYTHONPATH": str(FOLDER)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout + done.stderr


@pytest.mark.parametrize("carrier", ["json", "header"])
def test_a_deadline_of_four_hundred_digits_is_refused(carrier: str) -> None:
    """It cannot be divided by 1000 to seconds; found by hand, 2026-11-23."""
    digits = "9" * 400
    headers, body = {"x-segserve-deadline-ms": digits}, b""
    if carrier == "json":
        headers, body = {"content-type": "application/json"}, f'{{"image": "", "deadline_ms": {digits}}}'.encode()
    with pytest.raises(Problem, match="expected 'deadline_ms' to be less than or equal to 86400000"):
        parse_request(Request(headers=headers, fields={"body": body}))
