"""The serving settings that answer most images a second within a latency target, found by trying them on this machine.

Each trial starts the real service with one model and loads it with more and more clients, each of which sends its next
request as soon as the last one is answered (a closed loop), from the same machine. Coordinate search: one setting after
another is moved to its neighbour as long as that is better, so that some ten trials stand for hundreds.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from handlers import load
from handlers.archive import package
from handlers.local_service import local_service
from segserve.artifact import EXAMPLE_INPUT, read_spec, write_spec
from segserve.cores import available_cores
from segserve.settings import Settings
from segserve.spec import ModelSpec, ServingSpec

GAIN = 1.03
"""A setting is kept if it is better by so much; less is noise."""
MODEL = "tuned"

Name = Literal["engine", "workers", "batch_size", "max_batch_delay_ms", "threads"]


class Space(Settings):
    """What is tried, each setting's values in an order in which neighbours are alike; and how long each load lasts."""

    engine: tuple[Literal["auto", "torch"], ...]
    """`auto` is the exported engine where there is one."""
    workers: tuple[int, ...]
    batch_size: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    max_batch_delay_ms: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    threads: tuple[int | None, ...]
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """One after the other, until the target is missed or more clients bring no more images."""
    seconds: float = 3.0

    @property
    def most_trials(self) -> int:
        """No more than so many are needed."""
        return 1 + sum(len(getattr(self, name)) for name in NAMES)


NAMES: tuple[Name, ...] = ("engine", "workers", "batch_size", "max_batch_delay_ms", "threads")


def space_of(spec: ModelSpec) -> Space:
    """What makes sense for an artifact on this machine."""
    cores = available_cores()
    counts = tuple(count for count in (1, 2, 4, 8, 16, 32, 64) if count <= cores)
    return Space(
        engine=("auto",) if spec.engine is None else ("auto", "torch"),
        workers=(*counts, cores + 1),  # one decodes, or waits for clients, while a core each computes for the others
        threads=(None, *counts),
    )


@dataclass(frozen=True, kw_only=True)
class Load:
    """What so many clients get."""

    clients: int
    images_per_second: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration under loads that grow."""

    serving: ServingSpec
    loads: tuple[Load, ...]
    slo_p95_ms: float

    @property
    def best(self) -> Load:
        """The most images a second within the target; where it is always missed, the least latency."""
        within = [one for one in self.loads if one.p95_ms <= self.slo_p95_ms]
        if within:
            return max(within, key=lambda one: one.images_per_second)
        return min(self.loads, key=lambda one: one.p95_ms)

    @property
    def meets(self) -> bool:
        """Whether the target is met with some number of clients."""
        return self.best.p95_ms <= self.slo_p95_ms

    def is_better_than(self, other: "Trial") -> bool:
        """By more than noise; meeting the target comes before everything."""
        if self.meets != other.meets:
            return self.meets
        if self.meets:
            return self.best.images_per_second > GAIN * other.best.images_per_second
        return self.best.p95_ms * GAIN < other.best.p95_ms

    @property
    def name(self) -> str:
        """Its settings in short."""
        serving, threads = self.serving, self.serving.threads
        return (
            f"{serving.engine}, {serving.workers} worker(s), batch {serving.batch_size}, "
            f"{serving.max_batch_delay_ms} ms, {'auto' if threads is None else threads} thread(s)"
        )


def search(start: ServingSpec, space: Space, measure: Callable[[ServingSpec], Trial]) -> Iterator[tuple[Trial, Trial]]:
    """Trials, each with the best one so far; the last of these is the answer.

    Args:
        start: where to begin; what it says of anything else stays.
        space: values to try.
        measure: called once for each configuration.
    """
    best = measure(start)
    yield best, best
    for name in NAMES:
        current = getattr(best.serving, name)
        values: list[Any] = list(getattr(space, name))
        if current not in values:
            values.insert(sum(value is not None and value < current for value in values), current)
        place = values.index(current)
        for direction in (values[place + 1 :], values[:place][::-1]):
            before = best
            for trial in _as_long_as_better(best, name, direction, measure):
                best = trial if trial.is_better_than(best) else best
                yield trial, best
            if best is not before:
                break


def _as_long_as_better(
    best: Trial, name: str, values: Sequence[Any], measure: Callable[[ServingSpec], Trial]
) -> Iterator[Trial]:
    """Trials of one setting's values, up to the first that is no better than the one before."""
    for value in values:
        trial = measure(best.serving.model_copy(update={name: value}))
        yield trial
        if not trial.is_better_than(best):
            return
        best = trial


def tune(path: Path, *, slo_p95_ms: float) -> Iterator[tuple[Trial, Trial]]:
    """Try settings of an artifact; at the end the best ones are in its spec.

    Yields:
        Each trial, and the best one so far.

    Raises:
        ValueError: `path` is no artifact, or the target is not positive.
        RuntimeError: the service does not start, or does not answer.
    """
    if not slo_p95_ms > 0:
        raise ValueError(f"expected a latency target above 0 ms, but got {slo_p95_ms:g}: give one such as 200")
    spec = read_spec(path)
    path = path.resolve()  # nothing can be beside "."
    space = space_of(spec)

    def measure(serving: ServingSpec) -> Trial:
        loads = tuple(_loads(path, spec.model_copy(update={"serving": serving}), space, slo_p95_ms))
        return Trial(serving=serving, loads=loads, slo_p95_ms=slo_p95_ms)

    best = None
    for trial, best in search(spec.serving, space, measure):
        yield trial, best
    assert best is not None
    write_spec(path, spec.model_copy(update={"serving": best.serving}))


def _loads(path: Path, spec: ModelSpec, space: Space, slo_p95_ms: float) -> Iterator[Load]:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        artifact, store = Path(folder) / "artifact", Path(folder) / "store"
        shutil.copytree(path, artifact, copy_function=os.link)
        write_spec(artifact, spec)
        package(artifact, name=MODEL, store=store)
        image = (artifact / EXAMPLE_INPUT).read_bytes()
        with local_service(store) as service:
            address = service.predictions(MODEL)
            load_once(address, image, clients=spec.serving.workers * spec.serving.batch_size, seconds=0.0)
            before = 0.0
            for clients in space.clients:
                found = load_once(address, image, clients=clients, seconds=space.seconds)
                yield found
                if found.p95_ms > slo_p95_ms or found.images_per_second < GAIN * before:
                    return
                before = found.images_per_second


def load_once(address: str, image: bytes, *, clients: int, seconds: float) -> Load:
    """So many clients for so long; each sends one request at least.

    Raises:
        RuntimeError: an answer is not 200.
    """
    target = load.Target(address=address, body=image, headers={"Content-Type": "image/png"})
    found = load.closed_loop(target, clients=clients, seconds=seconds)
    return Load(clients=clients, images_per_second=found.images_per_second, p95_ms=found.milliseconds(95))
