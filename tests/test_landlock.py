import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from handlers import landlock

TRY = """
import os, sys
try:
    exec(sys.argv[1])
except PermissionError:
    sys.exit(13)
"""
FORBIDDEN = [
    "open('store/a', 'w')",
    "open('store/in/b', 'a')",
    "open('store/new', 'w')",
    "os.truncate('store/a', 0)",
    "os.unlink('store/a')",
    "os.rename('store/a', 'beside/a')",
    "os.rename('beside/a', 'store/a')",
    "os.rename('store', 'beside/store')",
    "os.mkdir('store/new')",
    "os.symlink('a', 'store/link')",
    "open('link/a', 'w')",
]
ALLOWED = [
    "open('store/a').read()",
    "open('beside/b', 'w')",
    "os.rename('beside/in', 'beside/out')",
    "open('/dev/null', 'w')",
]


@pytest.fixture
def ruleset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(tmp_path)
    for folder in ("store/in", "beside/in"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("store/a", "beside/a"):
        (tmp_path / file).write_text("content")
    (tmp_path / "link").symlink_to("store")
    found = landlock.protect(Path("link"))
    if found is None:
        pytest.skip("this system has no Landlock")
    return found


@pytest.mark.parametrize(("code", "expected"), [*((code, 13) for code in FORBIDDEN), *((code, 0) for code in ALLOWED)])
def test_what_is_in_the_folder_can_be_read_and_not_changed(ruleset: int, code: str, expected: int) -> None:
    command = [sys.executable, "-I", "-S", "-c", TRY, code]
    done = subprocess.run(command, preexec_fn=partial(landlock.restrict, ruleset), capture_output=True, check=False)
    assert done.returncode == expected, done.stderr.decode()


def test_where_the_system_has_no_such_rules_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_OLDEST", 1000)
    assert landlock.protect(tmp_path) is None
