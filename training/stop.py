"""SIGTERM and SIGINT ask a training to stop; it does so after the step, with everything saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(RuntimeError):
    """The training was asked to stop, and can be gone on with."""


class StopRequest:
    """Whether a signal came."""

    def __init__(self) -> None:
        self.came = False


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Take the signals; after the first one they do again what they did before, so that a second one ends the process.

    Only the main thread can take signals; in another one nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def take(number: int, frame: FrameType | None) -> None:
        request.came = True
        restore()

    for number in SIGNALS:
        signal.signal(number, take)
    try:
        yield request
    finally:
        restore()
