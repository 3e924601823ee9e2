"""A client of TorchServe's management API: versions of models, their workers and what is queued; and to change them."""

import contextlib
import http.client
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, urlencode

from pydantic import BaseModel, Field, TypeAdapter

from handlers.torchserve import LOOPBACK

WorkerState = Literal["ready", "loading", "other"]
WORKER_STATES: tuple[WorkerState, ...] = get_args(WorkerState)


class _Worker(BaseModel):
    status: str
    pid: int

    @property
    def state(self) -> WorkerState:
        """TorchServe only tells READY from the rest, and keeps a dead worker's pid until the next one starts."""
        if self.status == "READY":
            return "ready"
        return "loading" if self.pid < 0 or is_alive(self.pid) else "other"


class _Queue(BaseModel):
    pending: int = Field(alias="pendingRequests")


class _Description(BaseModel):
    name: str = Field(alias="modelName")
    version: str = Field(alias="modelVersion")
    batch_delay_ms: int = Field(alias="maxBatchDelay")
    batch_size: int = Field(default=1, alias="batchSize")
    min_workers: int = Field(default=1, alias="minWorkers")
    answer_seconds: int = Field(default=120, alias="responseTimeout")
    workers: list[_Worker]
    queue: _Queue = Field(alias="jobQueueStatus")


_DESCRIPTIONS = TypeAdapter(list[_Description])


@dataclass(frozen=True, kw_only=True)
class VersionState:
    """One version of one model, as TorchServe sees it."""

    name: str
    version: str
    workers: dict[WorkerState, int]
    pending: int
    batch_delay_seconds: float
    """How long TorchServe may hold the first request of a batch back to fill the batch."""
    is_default: bool = True
    """Requests that name no version go to it."""
    places: int = 1
    """Requests that its workers compute at once."""
    answer_seconds: int = 120
    """After so long TorchServe ends a worker that has not answered."""


class Management:
    """The management API on loopback. Each question waits `timeout` seconds for its answer at most."""

    def __init__(self, port: int, *, timeout: float) -> None:
        self.port = port
        self.timeout = timeout

    def versions(self, names: Iterable[str]) -> tuple[VersionState, ...]:
        """Every loaded version of these models; a model that TorchServe does not know is absent.

        Raises:
            OSError: TorchServe did not answer.
            ValueError: it answered something else.
        """
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=self.timeout)
        try:
            return tuple(state for name in names for state in self._model_versions(connection, name))
        except http.client.HTTPException as error:
            raise ValueError(f"the management API answered no HTTP: {error!r}") from error
        finally:
            connection.close()

    def register(self, archive: str) -> None:
        """Load an archive of TorchServe's store, under the name and version in its manifest; its workers start later.

        Raises:
            RuntimeError: TorchServe does not take it.
            OSError: it did not answer.
        """
        self._command("POST", f"/models?{urlencode({'url': archive, 'synchronous': 'false'})}")

    def set_default(self, name: str, version: str) -> None:
        """From now on requests that name no version go to this one; raises as `register`."""
        self._command("PUT", f"{_path(name)}/{quote(version, safe='')}/set-default")

    def unregister(self, name: str, version: str) -> None:
        """End this version's workers and forget it, unless it is the default; raises as `register`."""
        self._command("DELETE", f"{_path(name)}/{quote(version, safe='')}")

    def _command(self, method: str, path: str) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=self.timeout)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        if answer.status >= 300:
            raise RuntimeError(f"expected TorchServe to take {method} {path}, but it answered {answer.status}: {body}")

    def _model_versions(self, connection: http.client.HTTPConnection, name: str) -> list[VersionState]:
        found = _describe(connection, f"{_path(name)}/all")
        default = _describe(connection, _path(name)) if len(found) > 1 else found
        return [_state(version, is_default=version.version == default[0].version) for version in found if default]


def _path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _describe(connection: http.client.HTTPConnection, path: str) -> list[_Description]:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    return _DESCRIPTIONS.validate_json(body) if answer.status == 200 else []


def _state(found: _Description, *, is_default: bool) -> VersionState:
    states = [worker.state for worker in found.workers]
    return VersionState(
        name=found.name,
        version=found.version,
        workers={state: states.count(state) for state in WORKER_STATES},
        pending=found.queue.pending,
        batch_delay_seconds=found.batch_delay_ms / 1000,
        is_default=is_default,
        places=found.min_workers * found.batch_size,
        answer_seconds=found.answer_seconds,
    )


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
