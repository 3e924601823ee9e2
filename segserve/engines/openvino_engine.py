"""The network run by OpenVINO on the CPU, from the model that `segserve export --engine` wrote.

Needs the optional package `openvino`: import this module only where it is installed.
"""

from functools import cache
from pathlib import Path

import openvino
import torch
from torch import Tensor
from torch.nn import functional

from segserve.engines.torch_engine import Precision, fastest_precision

CPU = torch.device("cpu")


@cache
def core() -> openvino.Core:
    """OpenVINO itself, once a process and never given back.

    Its CPU plugin gives the thread that loads it a signal stack of its own, and frees that when the last core goes: by
    then another thread may do so, and the next signal that Python handles (SIGTERM, SIGCHLD) would end the process.
    """
    return openvino.Core()


class OpenVINOEngine:
    """Calls the compiled model on a float32 batch (B, 3, H, W) of any size; returns float32 logits.

    Layers that are not quantised compute in float32, or in bfloat16 where the CPU is faster in it, as in torch. The
    model is compiled once for all sizes. Calls from several threads are safe and take turns.

    Args:
        model: an OpenVINO model, `.xml` with its `.bin` beside it, whose batch, height and width are dynamic.
        name: as metrics have it.
        least_side: shorter sides are filled up to it by repeating the last pixel, as the network itself does.
        precision: of layers that are not quantised; None: the faster one.
        threads: None: as many as torch has, so that workers that share out the cores need to say so once.
    """

    device = CPU

    def __init__(
        self,
        model: Path,
        *,
        name: str = "openvino",
        least_side: int = 1,
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.least_side = least_side
        self.precision: Precision = precision or fastest_precision(CPU)
        self._compiled = core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
                "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
                "NUM_STREAMS": 1,
                # Each process would pin its threads to the same first cores.
                "ENABLE_CPU_PINNING": False,
            },
        )

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[-2:]
        missing = (0, max(0, self.least_side - width), 0, max(0, self.least_side - height))
        if any(missing):
            images_BCHW = functional.pad(images_BCHW, missing, mode="replicate")
        # A request owns its answer; one that is used again would overwrite the logits of the call before.
        request = self._compiled.create_infer_request()
        request.infer([images_BCHW.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())
