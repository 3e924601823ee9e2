"""An open-loop load: requests leave on schedule, whether or not earlier ones were answered."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one request."""

    status: int
    """0: no answer."""
    seconds: float
    retry_after: int | None
    problem: str | None
    """Its type."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of a load."""

    outcomes: Sequence[Outcome]
    seconds: float
    """From the first request to the last answer that was not a refusal."""

    @property
    def statuses(self) -> Counter[int]:
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.statuses[200] / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds within which that share of the good answers came."""
        return float(np.percentile([outcome.seconds for outcome in self.outcomes if outcome.status == 200], percent))


def open_loop(url: str, *, rate: float, seconds: float, body: bytes, headers: dict[str, str], patience: float) -> Load:
    """`rate` requests a second; one that is not answered within `patience` seconds counts as status 0."""
    return asyncio.run(
        _open_loop(url, rate=rate, seconds=seconds, request=_request(url, body, headers), patience=patience)
    )


async def _open_loop(url: str, *, rate: float, seconds: float, request: bytes, patience: float) -> Load:
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    began = time.monotonic()
    ended = began

    async def send() -> Outcome:
        nonlocal ended
        sent = time.monotonic()
        try:
            answer = await asyncio.wait_for(_exchange(host, port, request), timeout=patience)
        except (TimeoutError, OSError):
            answer = b""
        now = time.monotonic()
        found = _outcome(answer, seconds=now - sent)
        if found.status == 200:
            ended = now
        return found

    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(send()))
    outcomes = await asyncio.gather(*tasks)
    return Load(outcomes=outcomes, seconds=max(ended - began, seconds))


def _request(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    address = urlsplit(url)
    target = f"{address.path}?{address.query}" if address.query else address.path
    every = {"Host": address.netloc, "Content-Length": str(len(body)), "Connection": "close", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in every.items())
    return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body


async def _exchange(host: str, port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def _outcome(answer: bytes, *, seconds: float) -> Outcome:
    if not answer:
        return Outcome(status=0, seconds=seconds, retry_after=None, problem=None)
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    retry_after = fields.get("retry-after")
    found = re.search(rb'"type":"([^"]+)"', body)
    return Outcome(
        status=int(first.split()[1]),
        seconds=seconds,
        retry_after=None if retry_after is None else int(retry_after),
        problem=found[1].decode() if found else None,
    )
