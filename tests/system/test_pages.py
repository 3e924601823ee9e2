"""The README and the pages under docs/ are true: their commands are executed here, against the demo's models."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.conftest import ROOT, Demo

pytestmark = pytest.mark.system

README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


COMMANDS = commands_of(README)
CURLS = [
    command
    for name, page in PAGES.items()
    for command in commands_of(page)
    if command.startswith("curl") and name != "gateway.md"  # test_gateway.py
]
SERVE = ".venv/bin/segserve serve --store runs/demo/model_store"
MAKES = ["make demo", "make test"]
"""The first is run by the `demo` fixture; the second is what runs this."""
ANSWERS = (b"\x89PNG", b'{"', b"[{", b"<?xml", b"PK", b"--")
"""How PNG, JSON, XML, npz and multipart begin."""


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False, timeout=900)


@pytest.fixture(scope="module")
def served(demo: Demo) -> Iterator[None]:
    """The README's own `segserve serve`, on the default ports."""
    process = subprocess.Popen(SERVE.split(), cwd=ROOT)
    try:
        deadline = time.monotonic() + 180
        while process.poll() is None and not _is_ready() and time.monotonic() < deadline:
            time.sleep(0.25)
        assert process.poll() is None, "segserve serve ended: is port 8080, 8081 or 8082 taken?"
        yield
    finally:
        process.terminate()
        process.wait(timeout=90)


def _is_ready() -> bool:
    try:
        return httpx.get("http://127.0.0.1:8082/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_says_what_it_is_and_gives_the_two_commands_by_line_12() -> None:
    assert [command for command in MAKES if command not in "\n".join(README.splitlines()[:12])] == []


@pytest.mark.parametrize("name", PAGES)
def test_names_only_files_that_exist(name: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]) if "://" not in link]
    folder = ROOT if name == "README.md" else ROOT / "docs"
    assert [link for link in links if link and not (folder / link).exists()] == []


@pytest.mark.parametrize("command", CURLS)
def test_curl(served: None, tmp_path: Path, command: str) -> None:
    command = command.replace("runs/demo", str(ROOT / "runs/demo"))
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    (answer,) = written or [done.stdout]
    assert answer.startswith(ANSWERS)


def test_commands_for_ones_own_data(demo: Demo, tmp_path: Path) -> None:
    """In the README's order; everything they read is the demo's, everything they write is put elsewhere."""
    commands = [command for command in COMMANDS if command.startswith(".venv/bin/segserve") and command != SERVE]
    assert [command.split()[1] for command in commands] == [
        "lint",
        "train",
        "export",
        "evaluate",
        "package",
        "predict",
    ]
    for command in commands:
        for written in ("artifacts/", "model_store", "runs/predicted"):
            command = command.replace(written, f"{tmp_path}/{written}")
        done = shell(command, ROOT)
        assert done.returncode == 0, f"{command}\n{done.stderr.decode()}"
    assert {path.name for path in (tmp_path / "runs/predicted").iterdir()} == {"input.json", "input.png"}


def test_every_command_is_covered_here() -> None:
    others = [
        c for c in COMMANDS if c and c not in [*MAKES, SERVE] and not c.startswith(("curl", ".venv/bin/segserve"))
    ]
    assert others == []
