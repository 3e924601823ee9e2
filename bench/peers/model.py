"""What every peer runs: files of images in, index masks as PNG out, one batch at a time."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from segserve.artifact import load_artifact
from segserve.choice import build_engine
from segserve.spec import ServingSpec

ARTIFACT, ENGINE, PORT, FOLDER = "PEER_ARTIFACT", "PEER_ENGINE", "PEER_PORT", "PEER_FOLDER"
"""Environment variables: a folder, `torch` or `ours`, the port on loopback, and a folder that is deleted afterwards."""

SERVING = "PEER_SERVING"
"""Likewise: the artifact's `ServingSpec` as JSON, so that everyone makes batches of the same size."""


def batches_of_environment() -> tuple[int, float]:
    """Their largest size, and the seconds that one waits to be full."""
    serving = ServingSpec.model_validate_json(os.environ.get(SERVING, "{}"))
    return serving.batch_size, serving.max_batch_delay_ms / 1000


BATCH, DELAY_SECONDS = batches_of_environment()

EngineOfPeer = Literal["torch", "ours"]


class Model:
    """An artifact's network on images that have its working size; bytes of image files to bytes of PNG files."""

    def __init__(self, path: Path, engine: EngineOfPeer) -> None:
        """`torch` is the network as its authors' examples call it; `ours` is what segserve would run here."""
        artifact = load_artifact(path)
        self.spec = artifact.spec
        self.forward: Callable[[Tensor], Tensor] = (
            artifact.network.eval() if engine == "torch" else build_engine(artifact, device="cpu")
        )

    def __call__(self, files: Sequence[bytes]) -> list[bytes]:
        images_BCHW = torch.stack([self._decode(file) for file in files])
        with torch.inference_mode():
            masks_BHW = self.forward(images_BCHW).argmax(dim=1).to(torch.uint8)
        return [self._encode(Image.fromarray(mask_HW)) for mask_HW in masks_BHW.numpy()]

    def _decode(self, file: bytes) -> Tensor:
        picture = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
        pixels_CHW = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        preprocess = self.spec.preprocess
        return cast(Tensor, transforms.normalize(pixels_CHW, list(preprocess.mean), list(preprocess.std)))

    def _encode(self, picture: Image.Image) -> bytes:
        picture.putpalette([value for entry in self.spec.classes for value in entry.color])
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()


def model_of_environment() -> Model:
    """What the variables name."""
    return Model(Path(os.environ[ARTIFACT]), cast(EngineOfPeer, os.environ[ENGINE]))


def port_of_environment() -> int:
    """Where to listen."""
    return int(os.environ[PORT])
