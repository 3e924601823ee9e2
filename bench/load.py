"""Requests that arrive at random and wait for nobody (an open loop)."""

import asyncio
import http.client
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

from handlers.load import PATIENCE_SECONDS, Load, Target, ask


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
            await asyncio.to_thread(ask, connection, place.path, target)
        return time.perf_counter() - begin - at

    with ThreadPoolExecutor(256) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        found = await asyncio.gather(*(one(at) for at in due))
    return Load(seconds=found, duration=time.perf_counter() - begin)
