"""CUDA graphs: what a network launches on a GPU, recorded once for each shape of batch and then launched in one go.

Python launches a network's kernels one after the other, some microseconds each; a GPU that is done with a small batch
sooner waits for it. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_SHAPES = 64
"""Recorded shapes; each keeps its input and its output, and all of them share the memory in between."""
WARM_UPS = 3
"""Calls before the recording, in which libraries choose their kernels and allocate what they keep."""

Run = Callable[[Tensor], Tensor]


class GraphedRun:
    """Calls a function of one batch on a GPU; a batch of a shape that came before replays the recording.

    The first `MOST_SHAPES` shapes are recorded, which takes as long as some calls; batches of others run as they would
    without graphs. Not for several threads at once.

    Args:
        run: a float32 batch (B, C, H, W) to a tensor; launches the same kernels whatever the values, and never waits
            for the GPU.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pool = torch.cuda.graph_pool_handle()
        self._replays: dict[torch.Size, Run] = {}

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        shape = images_BCHW.shape
        if shape not in self._replays and len(self._replays) < MOST_SHAPES:
            with torch.cuda.device(images_BCHW.device):
                self._replays[shape] = self._record(images_BCHW)
        return self._replays.get(shape, self._run)(images_BCHW)

    def _record(self, images_BCHW: Tensor) -> Run:
        """What replays a batch of this shape: the graph reads and writes the same tensors every time."""
        read_BCHW = images_BCHW.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._run(read_BCHW)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads decode and encode meanwhile, and may allocate.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            written = self._run(read_BCHW)

        def replay(images_BCHW: Tensor) -> Tensor:
            read_BCHW.copy_(images_BCHW)
            graph.replay()
            return written.clone()

        return replay
