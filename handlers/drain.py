"""An end without a broken promise: every request sent before the stop signal is answered.

TorchServe cannot stop gracefully (https://github.com/pytorch/serve/issues/2008), but its queue is first in, first out.
So a marker request is sent after the signal; when it comes back, all that was queued before it has reached a worker.
From then on the handlers refuse new requests, and when none is in flight any more, TorchServe can be stopped.
"""

import contextlib
import http.client
import math
import threading
import time
from collections.abc import Callable
from urllib.parse import quote

from handlers.exposition import WorkerMetrics
from handlers.health import Health
from handlers.management import VersionState
from handlers.settings import ServeSettings
from handlers.signals import StopSignals
from handlers.torchserve import RunFolder

GRACE_SECONDS = 1.0
"""All is still answered: uploads on their way arrive, load balancers see that the service is not ready."""
HANDOVER_SECONDS = 0.25
"""From the moment a worker is given a batch until its handler looks at the flag."""
LINGER_SECONDS = 1.0
"""Answers leave TorchServe's buffers, and late clients get their 503."""
MARKER_TYPE = "application/x-segserve-marker"


class Drain:
    """One drain. A second stop signal ends it early."""

    def __init__(self, settings: ServeSettings, *, health: Health, folder: RunFolder, signals: StopSignals) -> None:
        self.settings = settings
        self.health = health
        self.folder = folder
        self.signals = signals
        self.workers = WorkerMetrics(folder.metrics)
        self._hurried = False
        self._deadline = math.inf

    def run(self) -> bool:
        """Drain; False if a signal, the time limit or TorchServe's death cut it short."""
        handover_seconds = _handover_seconds(self.health.versions)
        self.health.draining = True
        self._pause(GRACE_SECONDS)
        self._deadline = time.monotonic() + self.settings.drain_seconds
        drained = self._pass_queues() and self._pause(handover_seconds)
        self.folder.drain_flag.touch()
        drained = drained and self._pause(HANDOVER_SECONDS) and self._wait(lambda: self.workers.in_flight() <= 0)
        return self._pause(LINGER_SECONDS) and drained

    def _pass_queues(self) -> bool:
        """Send a marker into each queue, and wait until all are back."""
        markers = [threading.Thread(target=self._mark, args=version, daemon=True) for version in self._queues()]
        for marker in markers:
            marker.start()
        return self._wait(lambda: not any(marker.is_alive() for marker in markers))

    def _queues(self) -> set[tuple[str, str]]:
        """Model and version. One that does not load would keep its marker; a silent Java may still answer."""
        states = self.health.versions
        if not states:
            return {(model.name, model.version) for model in self.health.models}
        return {(state.name, state.version) for state in states if state.workers["ready"] or state.pending}

    def _mark(self, name: str, version: str) -> None:
        """Any answer will do except 503, with which TorchServe refuses what a full queue cannot take."""
        path = f"/predictions/{quote(name, safe='')}/{quote(version, safe='')}"
        host, port = self.settings.reachable_host, self.settings.inference_port
        while (seconds := self._deadline - time.monotonic()) > 0:
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", path, body=b"x", headers={"Content-Type": MARKER_TYPE})
                if connection.getresponse().status != 503:
                    return
            time.sleep(0.05)

    def _wait(self, is_done: Callable[[], bool]) -> bool:
        while not is_done():
            if time.monotonic() > self._deadline or not self._pause(0.05):
                return False
        return True

    def _pause(self, seconds: float) -> bool:
        self._hurried = self._hurried or self.signals.wait(seconds)
        return not self._hurried and self.health.is_running()


def _handover_seconds(versions: tuple[VersionState, ...]) -> float:
    """A batch that has left the queue may be held back to be filled, before the worker gets it."""
    return HANDOVER_SECONDS + max((version.batch_delay_seconds for version in versions), default=0.0)
