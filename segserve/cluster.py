"""Deal work out to the workers of a Ray cluster.

Ray Data (https://docs.ray.io/en/latest/data/data.html) deals out batches, starts workers again that died, and gives
what they held to others: so a worker's work must come to the same if it is done twice.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

Work = Callable[[Sequence[str]], Sequence[str]]
"""Does a batch, given by its names; what it has to say of each, in their order."""
_BATCHES_A_BLOCK = 4
"""What is computed again where a worker dies; more would cost less of Ray's time."""


def deal_out(
    names: Sequence[str], build: Callable[..., Work], *, told: tuple[Any, ...], workers: int, batch_size: int
) -> Iterator[tuple[str, str]]:
    """Have everything done on a cluster: that of RAY_ADDRESS, else one that is started on this machine.

    Args:
        names: of what is to be done.
        build: makes what does the work, once in each worker.
        told: its arguments, which travel to every machine.
        workers: how many processes, each with a core, or with a GPU where the cluster has any.
        batch_size: how many names at once.

    Yields:
        Each name when it is done, with what the work said of it.
    """
    if not names:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its maker
    with ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks = max(workers, len(names) // (_BATCHES_A_BLOCK * batch_size))
        rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(build, told),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
        )
        for row in rows.iter_rows():
            yield row["name"], row["said"]


class _Worker:
    """One process."""

    def __init__(self, build: Callable[..., Work], told: tuple[Any, ...]) -> None:
        self.work = build(*told)

    def __call__(self, batch: dict[str, NDArray[np.str_]]) -> dict[str, NDArray[np.str_]]:
        return {"name": batch["name"], "said": np.array(self.work([str(name) for name in batch["name"]]))}
