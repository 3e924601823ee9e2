"""The network run by eager PyTorch: channels-last, without batch norms, and bf16 where the hardware multiplies in it.

Autocast decides what computes in bf16: convolutions and linear layers, but no norm. Their weights are kept in it,
because autocast alone would convert them in every call.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from segserve.engines.cuda_graphs import GraphedRun
from segserve.engines.folding import folded

Precision = Literal["float32", "bfloat16"]


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fastest_precision(device: torch.device) -> Precision:
    """`bfloat16` where the device multiplies in it faster, else `float32`; the same answer every time.

    AVX-512's bfloat16 instructions are faster on AMD's cores (2 times, EPYC). On Intel's only AMX is: without it the
    ResNet50-UNet takes 1.3 times as long as in float32 (Emerald Rapids; docs/benchmarks/2026-11-24-precision.md).
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    is_faster = has.get("amx_bf16") or (has.get("avx512_bf16") and str(has.get("cpu_name")).startswith("AMD"))
    return "bfloat16" if is_faster else "float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a network computes at this precision (for training, too)."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class TorchEngine:
    """Calls a copy of the network on a float32 batch (B, 3, H, W); returns float32 logits on the same device.

    Args:
        network: with its weights; it is left as it is.
        device: where it runs.
        precision: None: the faster one there.
        cuda_graphs: on a GPU, launch all of a forward pass in one go, see `segserve.engines.cuda_graphs`.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.precision: Precision = precision or fastest_precision(self.device)
        self.network = folded(network).to(self.device).to(memory_format=torch.channels_last)
        if self.precision == "bfloat16":
            _keep_in_bfloat16(self.network)
        self._run = GraphedRun(self._forward) if cuda_graphs and self.device.type == "cuda" else self._forward

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        logits_BK = self._run(images_BCHW)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return logits_BK

    def _forward(self, images_BCHW: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits_BK: Tensor = self.network(images_BCHW.to(memory_format=torch.channels_last))
        return logits_BK.float()


def _keep_in_bfloat16(network: nn.Module) -> None:
    """The weights that autocast would convert."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(torch.bfloat16)
