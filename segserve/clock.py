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
        self.spans: dict[Stage, tuple[float, float]] = {}
        """Of each stage, its first begin and last end, by `time.perf_counter`."""

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.seconds[stage] += end - start
            self.spans[stage] = (self.spans.get(stage, (start, end))[0], end)

    def include(self, other: "StageClock") -> None:
        """Take another clock's stages, which this one does not have."""
        self.seconds.update(other.seconds)
        self.spans.update(other.spans)

    def milliseconds(self) -> dict[str, float]:
        """The same, in milliseconds rounded to 10 microseconds."""
        return {stage: round(seconds * 1000, 2) for stage, seconds in self.seconds.items()}
