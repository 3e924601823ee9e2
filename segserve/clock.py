"""Where the time went: seconds by stage."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["decode", "preprocess", "forward", "tta", "postprocess", "encode"]


class StageClock:
    """Adds up wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Stage, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def milliseconds(self) -> dict[str, float]:
        """The same, in milliseconds rounded to 10 microseconds."""
        return {stage: round(seconds * 1000, 2) for stage, seconds in self.seconds.items()}
