"""Pretrained weights of torchvision's classification networks, and the images they want."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol
from urllib.error import URLError

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from segserve.networks.classifier import torchvision_network

HALF = (0.5, 0.5, 0.5)

Channels = tuple[float, float, float]


class TakesBackbone(Protocol):
    """A network that can be filled with the weights of one of torchvision's."""

    def take_backbone(self, backbone: nn.Module) -> None: ...


def load_encoder_weights(network: TakesBackbone, name: str, *, source: Literal["none", "imagenet"] | Path) -> str:
    """Fill the network with pretrained weights, but for its head, and say which they were.

    Args:
        network: what to fill, in place.
        name: torchvision's name of its encoder.
        source: `none`, `imagenet` (torchvision's default weights, downloaded by torchvision), or a file that holds a
            torchvision state dict (`.safetensors`, or `.pth` read without pickled code).

    Returns:
        `none`, `torchvision:NAME` or `file:sha256:DIGEST`, for the spec.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    if source == "none":
        return "none"
    if source == "imagenet":
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state, origin = _download(weights), f"torchvision:{weights}"
    else:
        state, origin = _read_state(source), f"file:sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
    backbone = torchvision_network(name)
    try:
        backbone.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected weights of torchvision's {name}, but {source} does not fit: {error}") from error
    network.take_backbone(backbone)
    return origin


def pretrained_statistics(name: str) -> tuple[Channels, Channels]:
    """Mean and standard deviation, of values scaled to 0..1, of the images that torchvision's weights were made with.

    GoogLeNet's and Inception's came from another framework; torchvision undoes ImageNet's inside those networks.
    """
    if name in ("googlenet", "inception_v3"):
        return HALF, HALF
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return _channels(preset.mean), _channels(preset.std)


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _download(weights: torchvision.models.WeightsEnum) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]
    except (URLError, OSError) as error:
        raise ValueError(
            f"expected to download {weights}, but the machine cannot reach {weights.url} ({error}): "
            'save the file elsewhere and name it as encoder_weights, or use encoder_weights = "none"'
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"expected a file of encoder weights, but {path} is not one: give the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")  # type: ignore[no-any-return]
    except Exception as error:  # both readers raise nearly anything on files that are something else
        # Not in torch's words, which advise to let the file run code.
        raise ValueError(
            f"expected {path} to hold a state dict (.safetensors or .pth), but it is something else, or broken "
            f"({type(error).__name__}): save the network's state_dict() alone"
        ) from error
