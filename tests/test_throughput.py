"""Rates from counters that are set by hand."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from handlers.throughput import LONGEST_SECONDS, UNKNOWN_SECONDS, Count, Throughput, worker_counts


class Watched:
    """A throughput whose clock and counters are set by hand; `toy` has 16 places."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = Count(0, 0)
        self.looks = 0
        self.throughput = Throughput({"toy": 16}, counts=self._look, clock=lambda: self.now)

    def _look(self) -> dict[str, Count]:
        self.looks += 1
        return {"toy": self.count}

    def after(self, seconds: float, *, answered: float, in_flight: float = 4) -> None:
        self.now += seconds
        self.count = Count(answered, in_flight)
        self.throughput.sample()


def test_a_full_queue_is_worked_off_at_the_measured_rate() -> None:
    watched = Watched()
    for answered in (0, 5, 10, 15):
        watched.after(1, answered=answered)
    assert watched.throughput.rate("toy") == 5
    assert watched.throughput.drain_seconds("toy") == 4  # 16 / 5 = 3.2


def test_idle_time_does_not_count() -> None:
    watched = Watched()
    watched.after(1, answered=0)
    watched.after(1, answered=8)
    watched.after(1, answered=16, in_flight=0)
    watched.after(4, answered=17, in_flight=1)
    assert watched.throughput.rate("toy") == 8


def test_one_request_and_then_nothing_is_not_a_rate() -> None:
    watched = Watched()
    watched.after(1, answered=0, in_flight=1)
    watched.after(1, answered=1, in_flight=0)
    for second in range(3):
        watched.after(1, answered=17 + 16 * second, in_flight=0)
    assert watched.throughput.drain_seconds("toy") == 1


def test_only_the_last_seconds_count() -> None:
    watched = Watched()
    for second in range(30):
        watched.after(1, answered=100.0 * second if second < 15 else 1400 + 2.0 * (second - 14))
    assert watched.throughput.rate("toy") == 2


def test_nothing_measured() -> None:
    watched = Watched()
    assert watched.throughput.drain_seconds("toy") == UNKNOWN_SECONDS
    assert watched.throughput.rate("other") is None


@pytest.mark.parametrize(("answered", "drain_seconds"), [(8, 2), (1, UNKNOWN_SECONDS), (0, UNKNOWN_SECONDS)])
def test_looks_that_fall_between_two_batches(answered: int, drain_seconds: int) -> None:
    watched = Watched()
    for look in range(4):
        watched.after(1, answered=answered * look, in_flight=0)
    assert watched.throughput.rate("toy") is None
    assert watched.throughput.drain_seconds("toy") == drain_seconds


@pytest.mark.parametrize(("seconds", "drain_seconds"), [(1, 16), (3, 48), (9, LONGEST_SECONDS)])
def test_where_nothing_comes_out_the_time_grows(seconds: int, drain_seconds: int) -> None:
    watched = Watched()
    for _ in range(seconds + 1):
        watched.after(1, answered=7)
    assert watched.throughput.drain_seconds("toy") == drain_seconds


def test_the_counters_are_read_twice_a_second_at_most() -> None:
    watched = Watched()
    for _ in range(10):
        watched.after(0.25, answered=0)
    assert watched.looks == 5


def test_counts_are_summed_over_outcomes() -> None:
    registry = CollectorRegistry()
    requests = Counter("segserve_requests_total", "", ["model", "outcome"], registry=registry)
    Gauge("segserve_in_flight", "", ["model"], registry=registry).labels("toy").set(3)
    requests.labels("toy", "ok").inc(5)
    requests.labels("toy", "failed").inc(2)
    assert worker_counts(registry.collect()) == {"toy": Count(7, 3)}
