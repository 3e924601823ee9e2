"""Whether TorchServe is alive and its models ready, and if not, why."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from handlers.management import Management, VersionState
from handlers.store import ServedModel

START_GRACE_SECONDS = 120.0
"""TorchServe unpacks every archive before its management API answers for the first time."""
STALE_SECONDS = 10.0


@dataclass(frozen=True)
class _Snapshot:
    at: float
    versions: tuple[VersionState, ...]


class Health:
    """Asks the management API in a thread of its own and remembers the last answer.

    The ops port answers from memory, so a probe is quick even when Java hangs, and a scrape does not make TorchServe
    start `nvidia-smi`, which it does for each worker it describes on a GPU.

    Args:
        models: what is to be served.
        management: whom to ask.
        is_running: whether Java runs.
        admit: is told the models that are ready, by name, and the version of each that answers; each time, and before
            anyone else sees them.
    """

    def __init__(
        self,
        models: tuple[ServedModel, ...],
        *,
        management: Management,
        is_running: Callable[[], bool],
        admit: Callable[[Mapping[str, VersionState]], None] = lambda versions: None,
    ) -> None:
        self.models = models
        self.is_running = is_running
        self.draining = False
        self._admit = admit
        self._management = management
        self._names = tuple(dict.fromkeys(model.name for model in models))
        self._stored = {(model.name, model.version) for model in models}
        self._started = time.monotonic()
        self._snapshot: _Snapshot | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._thread.join(timeout=1)

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, each once."""
        return self._names

    @property
    def versions(self) -> tuple[VersionState, ...]:
        """What TorchServe said last; empty if that was long ago."""
        return _fresh(self._snapshot)

    def is_alive(self) -> bool:
        """Java runs and its management API answers, or may still be starting."""
        if not self.is_running():
            return False
        snapshot = self._snapshot
        now = time.monotonic()
        if snapshot is None:
            return now - self._started < START_GRACE_SECONDS
        return now - snapshot.at < STALE_SECONDS

    def refused(self) -> list[ServedModel]:
        """Archives that TorchServe has read and not taken. It never tries them again."""
        if self._snapshot is None:
            return []
        versions = self._snapshot.versions
        loaded, deployed = {(state.name, state.version) for state in versions}, self._deployed(versions)
        return [
            model for model in self.models if (model.name, model.version) not in loaded and model.name not in deployed
        ]

    def is_ready(self, name: str) -> bool:
        """Whether the version of this model that answers has a worker."""
        return self.is_running() and name in _ready(self.versions)

    def answers(self) -> bool:
        """Whether any version has a worker, so that somebody may wait for an answer."""
        return any(state.workers["ready"] for state in self.versions)

    def reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is."""
        if self.draining:
            return ["the service is stopping"]
        if not self.is_running():
            return ["TorchServe is not running"]
        if not self.versions:
            return ["TorchServe does not answer"]
        refused = [f"model {model}: TorchServe did not take {model.archive}" for model in self.refused()]
        return refused + [_reason(state) for state in self.needed() if not state.workers["ready"]]

    def needed(self) -> list[VersionState]:
        """Versions that answer, and those of the start: not what stands beside a version that was deployed later."""
        versions = self.versions
        deployed = self._deployed(versions)
        return [
            state
            for state in versions
            if state.is_default or ((state.name, state.version) in self._stored and state.name not in deployed)
        ]

    def _deployed(self, versions: tuple[VersionState, ...]) -> set[str]:
        """Models of which another version answers than any of the start."""
        answering = {(state.name, state.version) for state in versions if state.is_default}
        return {name for name, _ in answering - self._stored}

    def _watch(self) -> None:
        while not self._closed.is_set():
            snapshot = self._snapshot
            with contextlib.suppress(OSError, ValueError):
                snapshot = _Snapshot(time.monotonic(), self._management.versions(self._names))
            with contextlib.suppress(OSError):  # a full disk; told again the next time
                self._admit(_ready(_fresh(snapshot)))
            self._snapshot = snapshot
            self._closed.wait(0.2 if self.reasons() else 2.0)


def _fresh(snapshot: _Snapshot | None) -> tuple[VersionState, ...]:
    return snapshot.versions if snapshot and time.monotonic() - snapshot.at < STALE_SECONDS else ()


def _ready(versions: tuple[VersionState, ...]) -> dict[str, VersionState]:
    return {state.name: state for state in versions if state.is_default and state.workers["ready"]}


def _reason(state: VersionState) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in state.workers.items())
    return f"model {state.name} {state.version}: no worker is ready ({counts})"
