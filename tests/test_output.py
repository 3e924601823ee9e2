import errno
import io
import os
import sys
import threading

import pytest

from handlers import output
from tests.system.toy_service import until


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_that_cannot_be_written_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", FullDisk())
        output.say("draining")
    output.say("stopped")
    assert capsys.readouterr().out == "segserve: stopped\n"


def test_a_log_that_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_MOST_LINES", 5)
    reads = threading.Event()
    written: list[str] = []

    def write(line: str) -> None:
        reads.wait(5)
        written.append(line)

    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as lines:
        output.pass_on(output.lines_of(os.fdopen(reader, "rb")), write, name="log")
        for number in range(20_000):
            lines.write(b"%06d\n" % number)
        reads.set()
        until(lambda: lines.write(b"next\n") and written[-1:] == ["next"], 5)
    dropped = [int(line.split()[0]) for line in written if "lines of the log were dropped" in line]
    assert written[:5] == [f"{number:06}" for number in range(5)]
    assert sum(dropped) + len(written) - len(dropped) >= 20_000
