"""How many replicas a rate of images needs, what they cost, and what the loss of a zone does; docs/capacity.md.

    python -m loadtest.capacity 10 1000 100000 --service-time loadtest/service-times/measured-cpu.json --p95-ms 1000

What one replica can do within the target is found by simulation (`loadtest.simulation`) with service times that were
fitted to a load test; everything else is arithmetic with the prices and sizes that are given.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from loadtest.service_time import ServiceTime, read_service_time
from loadtest.simulation import Cluster, Request, Result, Scaling, Simulation, open_loop, poisson
from segserve.settings import Settings, explain
from segserve.spec import Positive

HOURS = 730
"""Of a month."""
MOST_REQUESTS = 20_000
"""Of a simulation of an event."""
STEADY_REQUESTS = 4_000
"""Of one with a rate that stays."""
MOST_REFUSED = 0.001
"""Share of the requests that may be refused at the rate a replica is planned for."""
BEFORE_SECONDS = 20.0
"""Of a simulation, until the zone is lost or the rate grows."""


class Question(Settings):
    """What is asked for, and at which prices."""

    p95_ms: Positive = 1000
    """95 % of the answers are to come within this time."""
    megapixels: float = Field(default=0.3, ge=0)
    """Of an image."""
    views: int = Field(default=1, ge=1)
    """Of an image, by its plan of test-time augmentation."""
    workers: int = Field(default=1, ge=1)
    """Of a replica; each as fast as the one that was measured, so that it needs as many cores, or a GPU, of its own."""
    batch_size: int = Field(default=8, ge=1)
    batch_delay_ms: float = Field(default=5, ge=0)
    most_busy: float = Field(default=0.8, gt=0, le=1)
    """A replica is not planned for more than this share of what it can do when it is always full: load is uneven, and
    replicas are replaced."""
    waiting_batches: int = Field(default=3, ge=0)
    """As the gateway has it: how many may wait for each worker before a request is refused."""
    zones: int = Field(default=3, ge=1)
    """Over which the replicas are spread evenly; the loss of one is to be survived where there are several."""
    start_seconds: Positive = 60
    """From the decision to have another replica until it answers: a machine, the image, the model."""
    gpus: float = Field(default=0, ge=0)
    """Of a replica."""
    price: float = Field(default=0.1, ge=0)
    """Of a replica for an hour, its GPUs included, in any currency."""
    price_per_gb: float = Field(default=0, ge=0)
    """Of what is sent back."""
    upload_kb: float = Field(default=100, ge=0)
    answer_kb: float = Field(default=10, ge=0)

    @model_validator(mode="after")
    def _there_is_time_for_a_batch(self) -> "Question":
        if self.p95_ms <= self.batch_delay_ms:
            raise ValueError(
                f"expected p95_ms to be more than batch_delay_ms, {self.batch_delay_ms:g}, but got {self.p95_ms:g}"
            )
        return self

    def cluster(self, service: ServiceTime, *, replicas: int = 1) -> Cluster:
        """So many replicas."""
        return Cluster(
            replicas=replicas,
            workers=self.workers,
            batch_size=self.batch_size,
            max_batch_delay=self.batch_delay_ms / 1000,
            places=self.workers * self.batch_size * (1 + self.waiting_batches),
            outside_seconds=service.outside_seconds,
        )

    def requests(self, due: Sequence[float]) -> Iterator[Request]:
        """Its images, due at these times."""
        return (Request(due=at, megapixels=self.megapixels, views=self.views) for at in due)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """For one rate."""

    rate: float
    needed: int
    """Replicas that carry it."""
    replicas: int
    """The same with a zone lost: so many, spread evenly, leave `needed` ones."""
    gpus: float
    up_mbit: float
    """Megabits a second to the service, and from it."""
    down_mbit: float
    per_month: float
    per_million: float
    """Images."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What clients see from an event until new replicas answer."""

    p95_ms: float
    refused: float
    """A share."""
    seconds: float
    """How long was looked at."""


def most_per_second(service: ServiceTime, question: Question, *, seed: int = 0) -> float:
    """Images a second that one replica is planned for, if they arrive at random: within the target; to 1 %.

    Raises:
        ValueError: an image that is alone takes longer than the target.
    """
    alone = service.mean(megapixels=question.megapixels, views=question.views)
    if not _meets(_steady(service, question, rate=0.05 / alone, seed=seed), question):
        raise ValueError(
            f"expected {question.p95_ms:g} ms to be enough for an image that is alone, but that takes about "
            f"{1000 * (alone + service.outside_seconds) + question.batch_delay_ms:.0f} ms: replicas do not help; allow "
            "more time, send smaller images or fewer views, or take a faster machine"
        )
    low, high = 0.05 / alone, question.most_busy * saturation(service, question)
    if _meets(_steady(service, question, rate=high, seed=seed), question):
        return high
    while high > 1.01 * low:
        middle = (low + high) / 2
        if _meets(_steady(service, question, rate=middle, seed=seed), question):
            low = middle
        else:
            high = middle
    return low


def saturation(service: ServiceTime, question: Question) -> float:
    """Images a second of one replica whose batches are all full."""
    images = question.batch_size
    seconds = service.mean(megapixels=images * question.megapixels, views=images * question.views)
    return question.workers * images / seconds


def _steady(service: ServiceTime, question: Question, *, rate: float, seed: int) -> Result:
    seconds = STEADY_REQUESTS / rate
    due = poisson(rate, seconds=seconds, seed=seed)
    simulation = Simulation(cluster=question.cluster(service), service=service, seed=seed)
    return open_loop(simulation, question.requests(due)).between(0.1 * seconds, math.inf)


def _meets(result: Result, question: Question) -> bool:
    return 1000 * result.percentile(95) <= question.p95_ms and result.refused <= MOST_REFUSED


def plan(question: Question, *, rate: float, per_replica: float) -> Answer:
    """For `rate` images a second, where a replica takes `per_replica`."""
    needed = math.ceil(rate / per_replica)
    per_zone = needed if question.zones == 1 else math.ceil(needed / (question.zones - 1))
    replicas = per_zone * question.zones
    per_hour = replicas * question.price + rate * 3600 * question.answer_kb / 1e6 * question.price_per_gb
    return Answer(
        rate=rate,
        needed=needed,
        replicas=replicas,
        gpus=replicas * question.gpus,
        up_mbit=rate * question.upload_kb * 8 / 1000,
        down_mbit=rate * question.answer_kb * 8 / 1000,
        per_month=per_hour * HOURS,
        per_million=per_hour / (rate * 3600) * 1e6,
    )


def lose_zone(service: ServiceTime, question: Question, *, per_replica: float, spare: bool, seed: int = 0) -> Outage:
    """One replica of each zone, and one of them ends, with what is in it.

    Args:
        service: of the workers.
        question: for `zones`.
        per_replica: images a second that each is planned for.
        spare: whether the planned rate is that of the replicas that are left.
        seed: of arrivals.
    """
    zones = question.zones
    rate = per_replica * (zones - 1 if spare else zones)
    seconds = min(question.start_seconds, MOST_REQUESTS / rate)
    simulation = Simulation(cluster=question.cluster(service, replicas=zones), service=service, seed=seed)
    simulation.after(BEFORE_SECONDS, simulation.lose, 1)
    due = poisson(rate, seconds=BEFORE_SECONDS + seconds, seed=seed)
    result = open_loop(simulation, question.requests(due))
    return _outage(result, seconds=seconds)


def surge(service: ServiceTime, question: Question, *, per_replica: float, factor: float, seed: int = 0) -> Outage:
    """`zones` replicas at the rate they are planned for, and then `factor` times that, with an autoscaler.

    What is reported is the time from then until the first new replicas answer: the autoscaler's next look and their
    start.
    """
    rate = per_replica * question.zones
    cluster = question.cluster(service, replicas=question.zones)
    simulation = Simulation(cluster=cluster, service=service, seed=seed)
    calm = open_loop(simulation, question.requests(poisson(rate, seconds=BEFORE_SECONDS, seed=seed)))
    held = rate * sum(calm.seconds()) / len(calm.seconds())  # Little's law
    scaling = Scaling(target=held / question.zones, start_seconds=question.start_seconds)
    seconds = min(scaling.every_seconds + question.start_seconds, MOST_REQUESTS / (factor * rate))
    simulation = Simulation(cluster=cluster, service=service, seed=seed, scaling=scaling)
    due = poisson(rate, seconds=BEFORE_SECONDS, seed=seed)
    due += poisson(factor * rate, seconds=seconds, seed=seed + 1, start=BEFORE_SECONDS)
    result = open_loop(simulation, question.requests(due), until=2 * (BEFORE_SECONDS + seconds))
    more = [since - BEFORE_SECONDS for since, replicas in result.replicas if replicas > question.zones]
    return _outage(result, seconds=min([*more, seconds]))


def _outage(result: Result, *, seconds: float) -> Outage:
    after = result.between(BEFORE_SECONDS, BEFORE_SECONDS + seconds)
    return Outage(p95_ms=1000 * after.percentile(95), refused=after.refused, seconds=seconds)


def report(service: ServiceTime, question: Question, rates: Sequence[float]) -> Iterator[str]:
    """The answer as lines of Markdown."""
    per_replica = most_per_second(service, question)
    yield (
        f"Service time of a batch: {1000 * service.seconds_per_megapixel:.4g} ms a megapixel, "
        f"{1000 * service.seconds_per_view:.4g} ms a view, {1000 * service.seconds_per_batch:.4g} ms a batch "
        f"({service.measured or 'source unknown'})."
    )
    yield (
        f"One replica: planned for {per_replica:.3g} images/s with 95 % within {question.p95_ms:g} ms, "
        f"{saturation(service, question):.3g} images/s if it were always full."
    )
    yield ""
    yield "| images/s | replicas | with a zone lost | GPUs | Mbit/s in | Mbit/s out | a month | a million images |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
    for rate in rates:
        found = plan(question, rate=rate, per_replica=per_replica)
        yield (
            f"| {rate:,g} | {found.needed:,} | {found.replicas:,} | {found.gpus:,g} | {found.up_mbit:,.1f} | "
            f"{found.down_mbit:,.1f} | {found.per_month:,.0f} | {found.per_million:,.2f} |"
        )
    yield ""
    if question.zones > 1:
        for spare, what in ((True, "with"), (False, "without")):
            found_outage = lose_zone(service, question, per_replica=per_replica, spare=spare)
            yield f"A zone of {question.zones} is lost, {what} replicas to spare: {_sentence(found_outage)}"
    yield f"The rate doubles at once: {_sentence(surge(service, question, per_replica=per_replica, factor=2))}"


def _sentence(outage: Outage) -> str:
    return (
        f"in the {outage.seconds:.0f} s after it, 95 % of the answers come within {outage.p95_ms:,.0f} ms, and "
        f"{outage.refused:.1%} of the requests are refused or lost."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rates", type=float, nargs="+", metavar="IMAGES_PER_SECOND")
    parser.add_argument("--service-time", type=Path, required=True, metavar="FILE.json", help="by bench.replicas")
    for name, field in Question.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"default {field.default:g}")
    given = parser.parse_args(arguments)
    chosen = {name: text for name in Question.model_fields if (text := getattr(given, name)) is not None}
    try:
        if not all(0 < rate < math.inf for rate in given.rates):
            raise ValueError(f"expected rates above 0, but got {', '.join(f'{rate:g}' for rate in given.rates)}")
        for line in report(read_service_time(given.service_time), Question.model_validate(chosen), given.rates):
            print(line)
    except ValidationError as error:
        print(f"loadtest.capacity: {explain(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"loadtest.capacity: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
