"""How long a tail of latencies an ideal server has, one that costs nothing but its engine's time."""

import random
from collections.abc import Sequence

import numpy as np

from loadtest.simulation import Cluster, Request, Simulation, open_loop, poisson

REQUESTS = 100_000
"""Simulated, about so many, however fast the engine is."""


def tail(*, alone: float, together: float, batch_size: int, load: float) -> float:
    """p99 / p50 of one worker that is never slowed down, with requests that come at random.

    Args:
        alone: seconds of a batch of one image.
        together: of one of `batch_size`; those between lie on a straight line.
        batch_size: of full batches.
        load: of the images a second that full batches give.
    """
    step = (together - alone) / max(1, batch_size - 1)

    def service(batch: Sequence[Request], _: random.Random) -> float:
        return alone + step * (len(batch) - 1)

    rate = load * batch_size / together
    requests = [Request(due=due) for due in poisson(rate, seconds=REQUESTS / rate, seed=0)]
    cluster = Cluster(batch_size=batch_size, max_batch_delay=alone / 1000)  # without any it would take two at most
    simulation = Simulation(cluster=cluster, service=service)
    seconds = open_loop(simulation, requests).seconds()
    return float(np.percentile(seconds, 99) / np.percentile(seconds, 50))
