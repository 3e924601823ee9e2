"""Clients that send their next request as soon as the last one is answered (a closed loop)."""

import http.client
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Target:
    """One request to one server, again and again."""

    address: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of it."""

    seconds: Sequence[float]
    """From when each request was due to its answer."""
    duration: float
    """Of the whole, in seconds."""

    @property
    def images_per_second(self) -> float:
        return len(self.seconds) / self.duration

    def milliseconds(self, percent: float) -> float:
        """Within which that share of the answers came."""
        return float(np.percentile(self.seconds, percent)) * 1000


def closed_loop(target: Target, *, clients: int, seconds: float) -> Load:
    """Each client sends its next request as soon as the last one is answered.

    Raises:
        RuntimeError: an answer is not 200.
    """
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        every = list(pool.map(lambda _: _client(target, begin + seconds), range(clients)))
    return Load(seconds=[one for found in every for one in found], duration=time.perf_counter() - begin)


def _client(target: Target, deadline: float) -> list[float]:
    place, found = urlsplit(target.address), list[float]()
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE_SECONDS)) as connection:
        while not found or time.perf_counter() < deadline:
            begin = time.perf_counter()
            ask(connection, place.path, target)
            found.append(time.perf_counter() - begin)
    return found


def ask(connection: http.client.HTTPConnection, path: str, target: Target) -> None:
    """Send one request, and read the answer.

    Raises:
        RuntimeError: it is not 200.
    """
    connection.request("POST", path, body=target.body, headers=dict(target.headers))
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"expected 200 from {target.address}, but got {answer.status}: {body[:200]!r}")
