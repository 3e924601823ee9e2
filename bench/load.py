"""Two ways to load a server: clients that wait for their answers, and arrivals that wait for nobody."""

import asyncio
import http.client
import random
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
            _ask(connection, place.path, target)
            found.append(time.perf_counter() - begin)
    return found


def _ask(connection: http.client.HTTPConnection, path: str, target: Target) -> None:
    connection.request("POST", path, body=target.body, headers=dict(target.headers))
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"expected 200 from {target.address}, but got {answer.status}: {body[:200]!r}")


def open_loop(target: Target, *, rate: float, seconds: float, seed: int) -> Load:
    """Requests arrive at random, `rate` a second (Poisson), whether or not earlier ones were answered.

    Raises:
        RuntimeError: an answer is not 200.
    """
    drawn = random.Random(seed)
    due, at = list[float](), drawn.expovariate(rate)
    while at < seconds:
        due.append(at)
        at += drawn.expovariate(rate)
    return asyncio.run(_arrive(target, due))


async def _arrive(target: Target, due: Sequence[float]) -> Load:
    begin = time.perf_counter()

    async def one(at: float) -> float:
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        place = urlsplit(target.address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE_SECONDS)
        with closing(connection):
            await asyncio.to_thread(_ask, connection, place.path, target)
        return time.perf_counter() - begin - at

    with ThreadPoolExecutor(256) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        found = await asyncio.gather(*(one(at) for at in due))
    return Load(seconds=found, duration=time.perf_counter() - begin)
