"""The network as TorchServe's image_segmenter wants it: its class makes it, without arguments, and names its output."""

import os
from pathlib import Path

from torch import Tensor, nn

from bench.peers import model
from segserve.artifact import load_artifact


class Network(nn.Module):
    """Logits by the name `out`, as torchvision's segmentation networks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.network = load_artifact(Path(os.environ[model.ARTIFACT])).network

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return {"out": self.network(images_BCHW)}
