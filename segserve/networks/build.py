"""From a spec to its network."""

from collections.abc import Mapping
from typing import assert_never, cast

from torch import Tensor

from segserve.networks.classifier import Classifier, PooledClassifier
from segserve.networks.segmenter import Segmenter
from segserve.networks.unet import DECODER_CHANNELS, UNet
from segserve.spec import Architecture, EncoderName, NetworkSpec, Task

Network = UNet | Segmenter | Classifier | PooledClassifier

AUXILIARY = ("auxiliary.", "net.aux1.", "net.aux2.")
"""How the weights' names of auxiliary heads begin."""


def build_network(spec: NetworkSpec, *, task: Task, num_classes: int, auxiliary_heads: int = 0) -> Network:
    """The network the spec names, with fresh weights.

    In evaluation its `forward` returns logits, (B, K, H, W) or (B, K); in training, if it has auxiliary heads, a tuple
    of such logits, the main ones first.

    Args:
        spec: which network.
        task: decides where the spec names no architecture.
        num_classes: K.
        auxiliary_heads: for deep supervision, one of `auxiliary_choices`; artifacts have none.

    Raises:
        ValueError: the encoder is no network of torchvision's.
    """
    if spec.architecture is None and task == "classification":
        return PooledClassifier(cast(EncoderName, spec.encoder), num_classes=num_classes)
    match spec.architecture:
        case "unet" | None:
            encoder = cast(EncoderName, spec.encoder)
            return UNet(encoder, num_classes=num_classes, auxiliary_heads=auxiliary_heads)
        case "fcn" | "deeplabv3" | "lraspp" as architecture:
            return Segmenter(architecture, spec.encoder, num_classes=num_classes, auxiliary_heads=auxiliary_heads)
        case "classifier":
            return Classifier(spec.encoder, num_classes=num_classes, auxiliary_heads=auxiliary_heads)
        case _:
            assert_never(spec.architecture)


def auxiliary_choices(architecture: Architecture, encoder: str) -> tuple[int, ...]:
    """How many auxiliary heads a network can have in training; the first is for recipes that do not say."""
    match architecture:
        case "unet":
            return tuple(range(len(DECODER_CHANNELS)))
        case "fcn" | "deeplabv3":
            return 0, 1
        case "lraspp":
            return (0,)
        case "classifier":
            return (2, 0) if encoder == "googlenet" else (0,)
        case _:
            assert_never(architecture)


def served_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what only training needs: it fits the network built without auxiliary heads exactly."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}
