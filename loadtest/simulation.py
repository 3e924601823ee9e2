"""A discrete-event simulation of replicas of the service: queues, batches, refusals, and replicas that come and go.

Batches form as TorchServe 0.12 forms them (its `Model.pollBatch`): one idle worker at a time takes the request that has
waited longest, and more until the batch is full or `max_batch_delay` has passed; with no delay at all it takes two at
most. Autoscaling follows Kubernetes' rule: replicas x measured / target, rounded up, looked at again and again.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np
from pydantic import Field

from segserve.settings import Settings
from segserve.spec import Positive

Routing = Literal["round-robin", "random", "least"]
Service = Callable[[Sequence["Request"], random.Random], float]
"""Seconds that a worker needs for a batch."""
REFUSED_SECONDS = 0.002
"""Until a user whose request was refused sends the next one."""


class Cluster(Settings):
    """Replicas that are alike, and how requests reach them."""

    replicas: int = Field(default=1, ge=1)
    workers: int = Field(default=1, ge=1)
    """Of a replica."""
    batch_size: int = Field(default=8, ge=1)
    max_batch_delay: float = Field(default=0.005, ge=0)
    """Seconds."""
    places: int | None = Field(default=None, ge=1)
    """Requests that a replica may hold; one more is refused. None: any number may wait."""
    routing: Routing = "round-robin"
    """`least`: to the replica that holds the fewest."""
    outside_seconds: float = Field(default=0.0, ge=0)
    """Of a request, on its way: network and gateway."""


class Scaling(Settings):
    """A horizontal autoscaler that looks at the requests that a replica holds, the mean since its last look."""

    target: Positive
    """Requests of a replica."""
    every_seconds: Positive = 15.0
    start_seconds: float = Field(default=60.0, ge=0)
    """From a decision, or from the loss of a replica, until a new one answers."""
    calm_seconds: float = Field(default=300.0, ge=0)
    """Fewer replicas only if fewer would have done for so long."""
    tolerance: float = Field(default=0.1, ge=0)
    """A smaller change of replicas, as a share, is not made."""
    most: int = Field(default=1000, ge=1)


@dataclass(kw_only=True, eq=False)
class Request:
    """One request, and later what became of it."""

    due: float
    megapixels: float = 0.0
    views: int = 1
    done: float | None = None
    """None: it was refused, or lost with its replica."""

    @property
    def seconds(self) -> float | None:
        """From when it was due to its answer."""
        return None if self.done is None else self.done - self.due


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a simulation."""

    requests: Sequence[Request]
    """All that were due, in order."""
    holding: Sequence[tuple[float, int]]
    """Requests inside the cluster, and since when so many."""
    replicas: Sequence[tuple[float, int]]
    """Replicas that answer, and since when so many."""

    def between(self, start: float, end: float) -> "Result":
        """The requests that were due in that time."""
        chosen = [request for request in self.requests if start <= request.due < end]
        return Result(requests=chosen, holding=self.holding, replicas=self.replicas)

    def seconds(self) -> list[float]:
        """Of the requests that were answered."""
        return [request.seconds for request in self.requests if request.seconds is not None]

    def percentile(self, percent: float) -> float:
        """Seconds within which that share of the answers came; infinite where there was none."""
        seconds = self.seconds()
        return float(np.percentile(seconds, percent)) if seconds else float("inf")

    @property
    def refused(self) -> float:
        """The share of the requests that got no answer."""
        return sum(request.done is None for request in self.requests) / max(1, len(self.requests))

    def per_second(self, start: float, end: float) -> float:
        """Answers that came in that time."""
        return sum(request.done is not None and start <= request.done < end for request in self.requests) / (
            end - start
        )


class Replica:
    """One queue and its workers."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.idle = simulation.cluster.workers
        self.waiting: deque[Request] = deque()
        self.gathering: list[Request] | None = None
        """The batch that is being formed."""
        self.inside: dict[Request, None] = {}

    def offer(self, request: Request) -> bool:
        """Take it, if there is a place for it."""
        places = self.simulation.cluster.places
        if places is not None and len(self.inside) >= places:
            return False
        self.inside[request] = None
        self.waiting.append(request)
        self._gather()
        return True

    def _gather(self) -> None:
        cluster = self.simulation.cluster
        if self.gathering is None:
            if not self.idle or not self.waiting:
                return
            self.idle -= 1
            self.gathering = []
            self.simulation.after(cluster.max_batch_delay, self._close, self.gathering)
        most = cluster.batch_size if cluster.max_batch_delay else min(2, cluster.batch_size)
        while self.waiting and len(self.gathering) < most:
            self.gathering.append(self.waiting.popleft())
        if len(self.gathering) == most:
            self._close(self.gathering)

    def _close(self, batch: list[Request]) -> None:
        if self.gathering is not batch:
            return  # it was full before its time
        self.gathering = None
        self.simulation.after(self.simulation.service(batch, self.simulation.rng), self._finish, batch)
        self._gather()

    def _finish(self, batch: list[Request]) -> None:
        if self not in self.simulation.replicas:
            return  # lost, and its requests with it
        self.idle += 1
        for request in batch:
            del self.inside[request]
            self.simulation.answer(request)
        self._gather()


@dataclass(kw_only=True)
class Simulation:
    """A cluster and a clock."""

    cluster: Cluster
    service: Service
    seed: int = 0
    scaling: Scaling | None = None
    now: float = 0.0
    on_end: Callable[[Request], None] | None = None
    """Told of each request that is answered or refused."""
    replicas: list[Replica] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    holding: list[tuple[float, int]] = field(default_factory=list)
    history: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers, self._turn = count(), count()
        self._inside = 0
        self._coming = 0
        self._held_seconds, self._held_since = 0.0, 0.0
        self._wanted: deque[tuple[float, int]] = deque()
        for _ in range(self.cluster.replicas):
            self._add()
        if self.scaling is not None:
            self.after(self.scaling.every_seconds, self._look, self.scaling)

    def after(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        """Do that later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action, arguments))

    def run(self, *, until: float = float("inf")) -> Result:
        """Let things happen until there is nothing more to happen, or until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        return Result(requests=self.requests, holding=self.holding, replicas=self.history)

    def send(self, request: Request) -> None:
        """It is due now."""
        self.requests.append(request)
        self.after(self.cluster.outside_seconds, self._arrive, request)

    def answer(self, request: Request) -> None:
        """It is answered now."""
        request.done = self.now
        self._hold(-1)
        self._end(request)

    def lose(self, number: int) -> None:
        """So many replicas end at once, with what is in them; where there is an autoscaler, others are started."""
        lost, self.replicas = self.replicas[:number], self.replicas[number:]
        self.history.append((self.now, len(self.replicas)))
        for replica in lost:
            self._hold(-len(replica.inside))
            for request in list(replica.inside):
                self._end(request)
        if self.scaling is not None:
            self._start(len(lost), self.scaling)

    def _arrive(self, request: Request) -> None:
        if self.replicas and self._choose().offer(request):
            self._hold(1)
        else:
            self._end(request)

    def _choose(self) -> Replica:
        match self.cluster.routing:
            case "round-robin":
                return self.replicas[next(self._turn) % len(self.replicas)]
            case "random":
                return self.rng.choice(self.replicas)
            case "least":
                return min(self.replicas, key=lambda replica: len(replica.inside))

    def _end(self, request: Request) -> None:
        if self.on_end is not None:
            self.on_end(request)

    def _hold(self, change: int) -> None:
        self._held_seconds += self._inside * (self.now - self._held_since)
        self._held_since = self.now
        self._inside += change
        self.holding.append((self.now, self._inside))

    def _add(self) -> None:
        self.replicas.append(Replica(self))
        self.history.append((self.now, len(self.replicas)))

    # --- autoscaling ---

    def _look(self, scaling: Scaling) -> None:
        self._hold(0)
        held, self._held_seconds = self._held_seconds / scaling.every_seconds, 0.0
        current = len(self.replicas) + self._coming
        wanted = min(scaling.most, max(1, int(np.ceil(held / scaling.target))))
        if abs(wanted - current) <= scaling.tolerance * current:
            wanted = current
        self._wanted.append((self.now, wanted))
        while self._wanted[0][0] < self.now - scaling.calm_seconds:
            self._wanted.popleft()
        highest = max(number for _, number in self._wanted)
        if wanted > current:
            self._start(wanted - current, scaling)
        elif highest < len(self.replicas) and self.now >= scaling.calm_seconds:
            self._retire(len(self.replicas) - highest)
        self.after(scaling.every_seconds, self._look, scaling)

    def _start(self, number: int, scaling: Scaling) -> None:
        self._coming += number
        for _ in range(number):
            self.after(scaling.start_seconds, self._ready)

    def _ready(self) -> None:
        self._coming -= 1
        self._add()

    def _retire(self, number: int) -> None:
        """The emptiest ones; only those that hold nothing, as a drain would leave them."""
        for replica in sorted(self.replicas, key=lambda replica: len(replica.inside))[:number]:
            if not replica.inside:
                self.replicas.remove(replica)
        self.history.append((self.now, len(self.replicas)))


def open_loop(simulation: Simulation, requests: Iterable[Request], *, until: float = float("inf")) -> Result:
    """Requests leave when they are due, which must be in order, whatever becomes of earlier ones."""
    coming = iter(requests)

    def send_next(request: Request | None) -> None:
        if request is not None:
            simulation.send(request)
        following = next(coming, None)
        if following is not None:
            simulation.after(following.due - simulation.now, send_next, following)

    send_next(None)
    return simulation.run(until=until)


def closed_loop(
    simulation: Simulation, requests: Iterator[Request], *, steps: Sequence[tuple[float, int]], seconds: float
) -> Result:
    """Users send their next request when the last one has its answer.

    Args:
        simulation: at its begin.
        requests: without end; `due` is set here.
        steps: since when, in seconds, how many users; a user that is one too many ends with its request.
        seconds: no request leaves later.
    """
    active = wanted = 0

    def send() -> None:
        request = next(requests)
        request.due = simulation.now
        simulation.send(request)

    def next_one(request: Request) -> None:
        nonlocal active
        if active > wanted or simulation.now >= seconds:
            active -= 1
        elif request.done is None:
            simulation.after(REFUSED_SECONDS, send)
        else:
            send()

    def change(users: int) -> None:
        nonlocal active, wanted
        wanted = users
        while active < wanted:
            active += 1
            send()

    simulation.on_end = next_one
    for since, users in steps:
        simulation.after(since, change, users)
    return simulation.run(until=float("inf") if simulation.scaling is None else seconds)


def poisson(rate: float, *, seconds: float, seed: int | np.random.Generator, start: float = 0.0) -> list[float]:
    """Times at which requests of many clients are due, `rate` a second. A generator as `seed` goes on where it was."""
    rng = np.random.default_rng(seed)
    return sorted((start + rng.uniform(0, seconds, rng.poisson(rate * seconds))).tolist())
