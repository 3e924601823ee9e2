"""Processes that are told to stop when the one that started them was killed: prctl(2), PR_SET_PDEATHSIG. On Linux."""

import sys

_PROGRAM = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


def leashed(command: list[str]) -> list[str]:
    """The command, so that it gets SIGTERM from the kernel when the thread that starts it has ended."""
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, *command] if sys.platform == "linux" else command
