"""TorchServe's Java process and everything it starts: from its first line of output to the end of its last worker."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from handlers import landlock
from handlers.output import lines_of, pass_on

_PR_SET_PDEATHSIG = 1
_LOGGED = ("INFO ", "WARN ", "ERROR ", "FATAL ", '{"time": ')
"""How lines begin that log4j2.xml lets through: with their level, or those of the workers' own log."""
_TAIL_LINES = 40


class Jvm:
    """Java in a session and process group of its own, so that a Ctrl-C is the supervisor's to handle.

    What the log configuration lets through is printed on standard error; what Java says besides (notes on missing GPU
    tools, "Model server started.") is only kept for `tail`.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, ruleset: int | None = None
    ) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(_begin, ruleset) if sys.platform == "linux" else None,
        )
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        assert self._process.stdout is not None
        self._log = pass_on(self._logged(self._process.stdout), _print, name="torchserve-log")

    @property
    def is_running(self) -> bool:
        """Whether Java has not ended."""
        return self._process.poll() is None

    @property
    def tail(self) -> str:
        """The last lines of output."""
        return "\n".join(self._tail)

    def end(self) -> None:
        """End Java and what it started.

        By SIGKILL: on SIGTERM TorchServe closes its connections and ends its workers as suddenly (hence `Drain`), but
        its threads then wait two seconds for work that cannot come.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.join(timeout=1)

    def _logged(self, output: IO[bytes]) -> Iterator[str]:
        """What is to be printed of all that is read."""
        for line in lines_of(output):
            self._tail.append(line)
            if line.startswith(_LOGGED):
                yield line


def _print(line: str) -> None:
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


def _begin(ruleset: int | None) -> None:
    """Runs between fork and exec."""
    _die_with_parent()
    if ruleset is not None:
        landlock.restrict(ruleset)


def _die_with_parent() -> None:
    """Let the kernel end Java when the supervisor was killed and ends nothing. The workers follow: their socket closes.

    See prctl(2). The signal comes when the thread that started Java ends: the main thread.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
