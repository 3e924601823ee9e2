"""How fast each model works its queue off, measured while there is something in it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from prometheus_client import Metric

SAMPLE_SECONDS = 0.5
WINDOW_SECONDS = 10.0
UNKNOWN_SECONDS = 5
"""Where nothing was measured yet."""
LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Count:
    """What a model's workers have done, and what they hold."""

    answered: float
    in_flight: float


@dataclass(frozen=True, kw_only=True)
class _Step:
    """From one look to the next; busy: there was something to answer at both."""

    seconds: float
    answered: float
    is_busy: bool


class Throughput:
    """Looks at the workers' counters twice a second.

    Args:
        places: how many requests a model may hold, those that wait included; by name.
        counts: reads the counters; by name.
        clock: seconds.
    """

    def __init__(
        self,
        places: Mapping[str, int],
        *,
        counts: Callable[[], Mapping[str, Count]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places = places
        self._counts = counts
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Mapping[str, Count]]] = deque()

    def sample(self) -> None:
        """Look, unless that was done a moment ago."""
        with self._lock:
            now = self._clock()
            if self._samples and now - self._samples[-1][0] < SAMPLE_SECONDS:
                return
            self._samples.append((now, self._counts()))
            while now - self._samples[0][0] > WINDOW_SECONDS:
                self._samples.popleft()

    def rate(self, name: str) -> float | None:
        """Requests answered in a second, over the time in which it had some to answer; None: it had none.

        Where not even one was answered, the most that the rate can be is as if one were answered right now.
        """
        busy = [step for step in self._steps(name) if step.is_busy]
        if not busy:
            return None
        return max(1.0, sum(step.answered for step in busy)) / sum(step.seconds for step in busy)

    def drain_seconds(self, name: str) -> int:
        """Whole seconds until a full queue is worked off, from 1 to `LONGEST_SECONDS`.

        Between two batches none is in flight. Where every look fell there, as it will where half a second is a multiple
        of a batch's time, the model is as fast as it was seen to be, at least.
        """
        self.sample()
        rate = self.rate(name)
        if rate is not None:
            return min(LONGEST_SECONDS, ceil(self.places[name] / rate))
        seen = max((step.answered / step.seconds for step in self._steps(name)), default=0.0)
        return min(UNKNOWN_SECONDS, ceil(self.places[name] / seen)) if seen else UNKNOWN_SECONDS

    def _steps(self, name: str) -> list[_Step]:
        with self._lock:
            samples = [(at, counts[name]) for at, counts in self._samples if name in counts]
        return [
            _Step(
                seconds=ended - began,
                answered=after.answered - before.answered,
                is_busy=before.in_flight > 0 and after.in_flight > 0,
            )
            for (began, before), (ended, after) in pairwise(samples)
        ]


def worker_counts(families: Iterable[Metric]) -> dict[str, Count]:
    """The counts of each model among the workers' metrics."""
    totals: dict[str, dict[str, float]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name in ("segserve_requests_total", "segserve_in_flight"):
                model = totals.setdefault(sample.labels["model"], {})
                model[sample.name] = model.get(sample.name, 0.0) + sample.value
    return {
        name: Count(found.get("segserve_requests_total", 0.0), found.get("segserve_in_flight", 0.0))
        for name, found in totals.items()
    }
