"""The simulation against queueing theory, where there are closed formulas, and against timelines computed by hand.

Means are compared within a confidence interval of 99.9 % from batch means; seeds are fixed.
"""

import math
import random
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import pytest
from scipy import optimize, stats

from loadtest.simulation import (
    Cluster,
    Request,
    Result,
    Scaling,
    Service,
    Simulation,
    closed_loop,
    open_loop,
    poisson,
)

ALONE = Cluster(batch_size=1)
CUSTOMERS = 20_000


def exponential(rate: float) -> Service:
    return lambda batch, rng: rng.expovariate(rate)


def constant(seconds: float) -> Service:
    return lambda batch, rng: seconds


def requests(rate: float, *, number: int = CUSTOMERS, seed: int = 0) -> list[Request]:
    return [Request(due=due) for due in poisson(rate, seconds=number / rate, seed=seed)]


def simulate(cluster: Cluster, service: Service, *, rate: float, seed: int = 0, number: int = CUSTOMERS) -> Result:
    simulation = Simulation(cluster=cluster, service=service, seed=seed)
    return open_loop(simulation, requests(rate, seed=seed, number=number))


def assert_mean(values: Sequence[float], expected: float) -> None:
    """The first tenth, when the queue still fills, does not count."""
    steady = np.array(values[len(values) // 10 :])
    means = np.array([part.mean() for part in np.array_split(steady, 20)])
    margin = stats.t.ppf(0.9995, 19) * means.std(ddof=1) / math.sqrt(20)
    assert abs(means.mean() - expected) <= margin, (means.mean(), expected, margin)
    assert margin < 0.25 * expected  # else it says nothing


def erlang_b(servers: int, load: float) -> float:
    terms = [load**k / math.factorial(k) for k in range(servers + 1)]
    return terms[-1] / sum(terms)


def erlang_c(servers: int, load: float) -> float:
    blocked = erlang_b(servers, load)
    return blocked / (1 - load / servers * (1 - blocked))


def test_one_server_with_exponential_times() -> None:
    """M/M/1: 1 / (mu - lambda)."""
    result = simulate(ALONE, exponential(10), rate=7)
    assert_mean(result.seconds(), 1 / (10 - 7))
    steady = result.seconds()[CUSTOMERS // 10 :]
    assert np.percentile(steady, 95) == pytest.approx(math.log(20) / (10 - 7), rel=0.1)  # it is exponential, too


def test_one_server_with_equal_times() -> None:
    """M/D/1: 1 / mu + rho / (2 mu (1 - rho)), by Pollaczek and Khinchine."""
    result = simulate(ALONE, constant(0.1), rate=8)
    assert_mean(result.seconds(), 0.1 + 0.8 / (2 * 10 * (1 - 0.8)))


def test_several_workers() -> None:
    """M/M/c: Erlang's C formula."""
    servers, rate = 4, 32
    result = simulate(Cluster(workers=servers, batch_size=1), exponential(10), rate=rate)
    assert_mean(result.seconds(), 1 / 10 + erlang_c(servers, rate / 10) / (servers * 10 - rate))


@pytest.mark.parametrize("service", [exponential(10), constant(0.1)], ids=["exponential", "constant"])
def test_what_is_refused(service: Service) -> None:
    """M/G/c/c: Erlang's B formula, whatever the distribution of the times."""
    servers, rate = 3, 30
    result = simulate(Cluster(workers=servers, batch_size=1, places=servers), service, rate=rate)
    assert_mean([float(request.done is None) for request in result.requests], erlang_b(servers, rate / 10))


def test_batches() -> None:
    """M/M^[1,b]/1 (Bailey 1954): the number waiting is geometric with the r of mu r^(b+1) + lambda = (lambda + mu) r.

    A server that is free takes up to b at once, and nobody joins a batch that has begun. With P(busy, n wait) = A r^n
    and lambda P(idle) = mu A, the sum over all states is 1; the mean wait follows by Little's law.
    """
    rate, mu, size = 24.0, 10.0, 4
    r = optimize.brentq(lambda x: mu * x ** (size + 1) - (rate + mu) * x + rate, 0.01, 0.999)
    a = 1 / (1 / (1 - r) + mu / rate)
    waiting = a * r / (1 - r) ** 2
    result = simulate(Cluster(batch_size=size, max_batch_delay=1e-9), exponential(mu), rate=rate)
    assert_mean(result.seconds(), waiting / rate + 1 / mu)


def test_routing() -> None:
    """At random, each replica is an M/M/1 of its own; turns are better than that, and the emptiest is best."""
    means = {}
    for routing in ("random", "round-robin", "least"):
        cluster = Cluster(replicas=4, batch_size=1, routing=routing)
        result = simulate(cluster, exponential(10), rate=28, number=10_000)
        means[routing] = np.mean(result.seconds())
        if routing == "random":
            assert_mean(result.seconds(), 1 / (10 - 7))
    assert means["least"] < 0.8 * means["round-robin"] < 0.8 * 0.8 * means["random"]


def test_littles_law() -> None:
    """The integral of the number inside is the sum of the times inside: exactly, where everybody leaves again."""
    cluster = Cluster(replicas=2, workers=2, batch_size=4, max_batch_delay=0.05, places=20, routing="random")
    result = simulate(cluster, lambda batch, rng: 0.02 * len(batch) + rng.random() * 0.1, rate=100, number=5000)
    times, inside = np.array(result.holding).T
    assert inside[-1] == 0 and inside.max() > 20
    assert (np.diff(times) * inside[:-1]).sum() == pytest.approx(sum(result.seconds()))
    assert 0 < result.refused < 0.5


def test_a_timeline_by_hand() -> None:
    """Batches of 2, a delay of 1, a batch takes 3, three places: request at 0, 0.5, 0.6, 0.7 (refused), 3.6, 10."""
    cluster = Cluster(batch_size=2, max_batch_delay=1, places=3)
    found = open_loop(
        Simulation(cluster=cluster, service=constant(3)), [Request(due=due) for due in (0, 0.5, 0.6, 0.7, 3.6, 10)]
    )
    # 0 and 0.5 are a batch at once, until 3.5; 0.6 is taken then, 3.6 makes it full, until 6.6; 10 waits until 11.
    assert [request.done for request in found.requests] == pytest.approx([3.5, 3.5, 6.6, None, 6.6, 14])
    assert found.refused == 1 / 6
    assert found.per_second(3, 7) == 1
    assert [request.due for request in found.between(0.5, 0.7).requests] == [0.5, 0.6]


def test_without_a_delay_a_batch_is_of_two_at_most() -> None:
    sizes: list[int] = []

    def service(batch: Sequence[Request], rng: random.Random) -> float:
        sizes.append(len(batch))
        return 1.0

    cluster = Cluster(batch_size=8, max_batch_delay=0)
    open_loop(Simulation(cluster=cluster, service=service), [Request(due=0.1 * index) for index in range(6)])
    assert sizes == [1, 2, 2, 1]


def test_one_worker_forms_a_batch_at_a_time() -> None:
    """Two workers, batches of 2: the third request does not start a batch of its own while the first is open."""
    cluster = Cluster(workers=2, batch_size=2, max_batch_delay=1, outside_seconds=0.25)
    found = open_loop(
        Simulation(cluster=cluster, service=constant(3)), [Request(due=due) for due in (0, 0.5, 0.6, 2, 3)]
    )
    # 0 and 0.5 arrive at 0.25 and 0.75, until 3.75. 0.6 arrives at 0.85, is alone at 1.85, until 4.85. Both are busy
    # then: 2 is taken at 3.75, and 3, which came at 3.25, with it.
    assert [request.done for request in found.requests] == pytest.approx([3.75, 3.75, 4.85, 6.75, 6.75])


def test_users_wait_for_their_answers() -> None:
    """Three users and a server that takes 1 for each: from the second round on each waits 3; answers come once in 1."""
    simulation = Simulation(cluster=ALONE, service=constant(1))
    found = closed_loop(simulation, endless(), steps=[(0, 3), (30, 1)], seconds=40)
    assert [request.seconds for request in found.requests[:5]] == [1, 2, 3, 3, 3]
    assert found.per_second(3, 30) == 1
    assert [request.seconds for request in found.between(33, 40).requests] == [1] * 7
    assert found.requests[-1].due < 40


def test_users_that_are_refused_come_again() -> None:
    simulation = Simulation(cluster=Cluster(batch_size=1, places=1), service=constant(1))
    found = closed_loop(simulation, endless(), steps=[(0, 2)], seconds=3)
    assert found.per_second(0, 3.5) == pytest.approx(3 / 3.5)
    assert found.refused > 0.9


def endless():  # type: ignore[no-untyped-def]
    return (Request(due=0.0) for _ in repeat(None))


def test_replicas_are_added_when_the_load_grows_and_taken_away_when_it_falls() -> None:
    """One replica answers 10 a second. 4 a second, 50 from 100 to 300, 4 again."""
    scaling = Scaling(target=0.8, every_seconds=10, start_seconds=30, calm_seconds=60, most=12)
    simulation = Simulation(cluster=Cluster(batch_size=1, routing="least"), service=constant(0.1), scaling=scaling)
    due = [*poisson(4, seconds=100, seed=1), *poisson(50, seconds=200, seed=2, start=100)]
    due += poisson(4, seconds=200, seed=3, start=300)
    found = open_loop(simulation, [Request(due=at) for at in due], until=510)
    first_more = next(at for at, number in found.replicas if number > 1)
    assert 110 + 30 <= first_more <= 120 + 30  # seen at the first or second look, and ready 30 s later
    assert max(number for _, number in found.replicas) == 12
    assert found.between(100, first_more).percentile(95) > 10
    assert found.between(250, 300).percentile(95) < 0.5
    assert found.replicas[-1][1] <= 2 and found.replicas[-1][0] >= 360
    assert found.refused == 0


def test_what_a_lost_replica_held_is_lost() -> None:
    """Two replicas, a request each; one ends at 0.5; another one answers from 2.5 on."""
    scaling = Scaling(target=100, every_seconds=100, start_seconds=2)
    simulation = Simulation(cluster=Cluster(replicas=2, batch_size=1), service=constant(1), scaling=scaling)
    simulation.after(0.5, simulation.lose, 1)
    found = open_loop(simulation, [Request(due=due) for due in (0, 0.1, 0.6, 0.7, 3, 3)], until=50)
    assert [request.done for request in found.requests] == pytest.approx([None, 1.1, 2.1, 3.1, 4.1, 4])
    assert found.replicas == [(0.0, 1), (0.0, 2), (0.5, 1), (2.5, 2)]


def test_with_no_replica_left_everything_is_refused() -> None:
    simulation = Simulation(cluster=ALONE, service=constant(1))
    simulation.after(0.5, simulation.lose, 1)
    found = open_loop(simulation, [Request(due=due) for due in (0, 1)])
    assert found.refused == 1 and found.percentile(95) == math.inf
