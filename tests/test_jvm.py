"""Any process will do for Java here."""

import os
import sys
import threading
from pathlib import Path

import pytest

from handlers.jvm import Jvm
from tests.system.toy_service import until


class StalledTerminal:
    """Where somebody pressed Ctrl-S."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.written: list[str] = []

    def write(self, text: str) -> None:
        assert self.goes_on.wait(30)
        self.written.append(text)

    def flush(self) -> None:
        pass


def test_java_does_not_wait_for_whoever_reads_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StalledTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    says = "for number in range(20_000): print(f'INFO  line {number}')\nprint('no log')"
    jvm = Jvm([sys.executable, "-c", says], environment=os.environ, folder=tmp_path)
    try:
        until(lambda: not jvm.is_running, 20, lambda: jvm.tail)
        until(lambda: jvm.tail.endswith("INFO  line 19999\nno log"), 5, lambda: jvm.tail)
    finally:
        terminal.goes_on.set()
        jvm.end()
    assert terminal.written[0] == "INFO  line 0\n", "the line and its end in one piece"
    assert "lines of the log were dropped" in "".join(terminal.written)
    assert "no log\n" not in terminal.written
