"""Classifiers: torchvision's networks by name, with a head for the classes at hand.

AlexNet: Krizhevsky et al. 2012 in the form of https://arxiv.org/abs/1404.5997. VGG: Simonyan and Zisserman 2014,
https://arxiv.org/abs/1409.1556. GoogLeNet: Szegedy et al. 2014, https://arxiv.org/abs/1409.4842. The others' papers
stand in torchvision's documentation.

Dimensions: B batch, C channels, K classes, H, W.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torch.nn import functional

from segserve.networks.encoder import Encoder
from segserve.spec import EncoderName

ONE_SIZE_ONLY = ("maxvit_", "vit_")
"""Beginnings of networks whose positions are learned for one image size; the predictor keeps the aspect ratio."""
WINDOWED = "swin_"
WINDOWED_LEAST = 32
"""Torchvision names the size they were trained at as the least, but they pad their windows themselves."""


class Classifier(nn.Module):
    """A torchvision classification network: images (B, 3, H, W), float, of any size from 1x1 to logits (B, K).

    Sides below `least_side`, from which the network would leave nothing, are filled up by repeating the last pixel.
    GoogLeNet with its auxiliary heads returns in training a tuple of three such logits, the main ones first.

    Args:
        name: as torchvision has it.
        num_classes: K.
        auxiliary_heads: 2 for GoogLeNet with its own, which do not run in evaluation; else 0.

    Raises:
        ValueError: torchvision has no such network, or it takes images of one size only.
    """

    def __init__(self, name: str, *, num_classes: int, auxiliary_heads: int = 0) -> None:
        super().__init__()
        check_classifier(name)
        self.least_side = _least_side(name)
        self.net = torchvision_network(name, num_classes=num_classes, auxiliary=auxiliary_heads > 0)

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        height, width = images_BCHW.shape[-2:]
        missing = (0, max(0, self.least_side - width), 0, max(0, self.least_side - height))
        if any(missing):
            images_BCHW = functional.pad(images_BCHW, missing, mode="replicate")
        outputs = self.net(images_BCHW)
        return tuple(outputs) if isinstance(outputs, tuple) else outputs

    def take_backbone(self, backbone: nn.Module) -> None:
        """Copy the weights of torchvision's network of the same name, but for those whose shape depends on K."""
        own, state = self.net.state_dict(), backbone.state_dict()
        self.net.load_state_dict(
            {name: state[name] if state[name].shape == tensor.shape else tensor for name, tensor in own.items()}
        )


class PooledClassifier(nn.Module):
    """Encoder, global average pooling and a linear layer: images (B, 3, H, W) of any size to logits (B, K).

    The classifier of specs that name no architecture; for ResNets it computes what torchvision's own does.
    """

    def __init__(self, encoder: EncoderName, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.head = nn.Linear(self.encoder.channels[-1], num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        *_, x_BCHW = self.encoder(images_BCHW)
        return self.head(x_BCHW.mean(dim=(-2, -1)))  # type: ignore[no-any-return]

    def take_backbone(self, backbone: nn.Module) -> None:
        """Fill the encoder with the weights of torchvision's network of its name."""
        self.encoder.take_backbone(backbone)


def classifier_names() -> list[str]:
    """Torchvision's classification networks that take images of any size."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(ONE_SIZE_ONLY)]


def check_classifier(name: str) -> None:
    """Refuse, by a ValueError with near names, what `Classifier` cannot be built from."""
    known = classifier_names()
    if name in known:
        return
    if name.startswith(ONE_SIZE_ONLY) and name in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"expected a classification network that takes images of any size, but {name} takes one size only: "
            "choose another, such as swin_t or convnext_tiny"
        )
    raise ValueError(f"expected a classification network of torchvision, but got {name!r}: {near(name, known)}")


def near(name: str, known: Sequence[str]) -> str:
    """Advice: the names most like a wrong one, or all of a few, or some of many."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:10]
    return f"choose for example {', '.join(found)}"


def torchvision_network(name: str, *, num_classes: int = 1000, auxiliary: bool = True) -> nn.Module:
    """Torchvision's classification network with fresh weights, with or without the auxiliary heads it may have."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": auxiliary, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)  # type: ignore[no-any-return]


def _least_side(name: str) -> int:
    if name.startswith(WINDOWED):
        return WINDOWED_LEAST
    sides: tuple[int, int] = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
    return max(sides)
