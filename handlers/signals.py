"""SIGTERM and SIGINT as something the main thread can wait for."""

import queue
import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """While entered, a stop signal is noted instead of ending the process."""

    def __init__(self) -> None:
        self._noted: queue.SimpleQueue[int] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait for the next signal; False if none came in time."""
        try:
            self._noted.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return False
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        """SimpleQueue.put may interrupt itself, which Event.set may not: it could wait for a lock of its own thread."""
        self._noted.put(number)
