"""U-Net and classifier on torchvision encoders.

U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597. Encoders: ResNet, He et al. 2015,
https://arxiv.org/abs/1512.03385; ResNeXt, Xie et al. 2016, https://arxiv.org/abs/1611.05431; MobileNetV3, Howard et al.
2019, https://arxiv.org/abs/1905.02244. The decoder has the layout of segmentation_models.pytorch's `Unet`, so that its
logits can be compared with an independent implementation (`tests/test_networks.py`).

Dimensions: B batch, C channels, K classes, H, W.
"""

import hashlib
from pathlib import Path
from typing import Literal, assert_never
from urllib.error import URLError

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from segserve.spec import EncoderName, NetworkSpec, Task

DECODER_CHANNELS = (256, 128, 64, 32, 16)


class Encoder(nn.Module):
    """A torchvision classification network cut into five stages, each of which halves the resolution.

    `forward` takes images (B, 3, H, W) and returns five feature maps, at strides 2, 4, 8, 16 and 32, whose channels
    are `channels`.
    """

    def __init__(self, name: EncoderName) -> None:
        super().__init__()
        backbone = torchvision.models.get_model(name, weights=None)
        self.stages = nn.ModuleList(_cut(backbone))
        self.channels = _stage_channels(self.stages)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        features = []
        x_BCHW = images_BCHW
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            features.append(x_BCHW)
        return features


def _cut(backbone: nn.Module) -> list[nn.Module]:
    match backbone:
        case torchvision.models.ResNet() as net:
            stem = nn.Sequential(net.conv1, net.bn1, net.relu)
            return [stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]
        case torchvision.models.MobileNetV3() as net:
            layers = net.features
            return [layers[0:2], layers[2:4], layers[4:7], layers[7:13], layers[13:17]]
        case _:
            raise AssertionError(f"no cut is known for {type(backbone).__name__}")


def _stage_channels(stages: nn.ModuleList) -> tuple[int, ...]:
    """Channels after each stage, found by running one small image through."""
    x_BCHW = torch.zeros(1, 3, 64, 64)
    channels = []
    stages.eval()
    with torch.no_grad():
        for stage in stages:
            x_BCHW = stage(x_BCHW)
            channels.append(x_BCHW.shape[1])
    stages.train()
    return tuple(channels)


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class DecoderBlock(nn.Module):
    """Upsamples to the size asked for, joins the skip connection if there is one, and applies two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(in_channels + skip_channels, out_channels)
        self.conv2 = ConvBlock(out_channels, out_channels)

    def forward(self, x_BCHW: Tensor, skip_BCHW: Tensor | None, size: tuple[int, int]) -> Tensor:
        x_BCHW = functional.interpolate(x_BCHW, size=size, mode="nearest")
        if skip_BCHW is not None:
            x_BCHW = torch.cat([x_BCHW, skip_BCHW], dim=1)
        x_BCHW = self.conv1(x_BCHW)
        return self.conv2(x_BCHW)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Encoder, decoder with skip connections, and a 3x3 head.

    `forward` takes images (B, 3, H, W), float, of any size from 1x1, and returns logits (B, K, H, W).
    """

    def __init__(self, encoder: EncoderName, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        skips = (*reversed(self.encoder.channels[:-1]), 0)
        inputs = (self.encoder.channels[-1], *DECODER_CHANNELS[:-1])
        self.decoder = nn.ModuleList(map(DecoderBlock, inputs, skips, DECODER_CHANNELS))
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], num_classes, kernel_size=3, padding=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        *skips, x_BCHW = self.encoder(images_BCHW)
        for block in self.decoder:
            skip_BCHW = skips.pop() if skips else None
            size = images_BCHW.shape[-2:] if skip_BCHW is None else skip_BCHW.shape[-2:]
            x_BCHW = block(x_BCHW, skip_BCHW, size)
        return self.head(x_BCHW)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Encoder, global average pooling and a linear layer: images (B, 3, H, W) of any size to logits (B, K)."""

    def __init__(self, encoder: EncoderName, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.head = nn.Linear(self.encoder.channels[-1], num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        *_, x_BCHW = self.encoder(images_BCHW)
        return self.head(x_BCHW.mean(dim=(-2, -1)))  # type: ignore[no-any-return]


Network = UNet | Classifier


def build_network(spec: NetworkSpec, *, task: Task, num_classes: int) -> Network:
    """The network the spec names, with fresh weights."""
    match task:
        case "segmentation":
            return UNet(spec.encoder, num_classes=num_classes)
        case "classification":
            return Classifier(spec.encoder, num_classes=num_classes)
        case _:
            assert_never(task)


def load_encoder_weights(encoder: Encoder, name: EncoderName, *, source: Literal["none", "imagenet"] | Path) -> str:
    """Fill the encoder with pretrained weights and say which they were.

    Args:
        encoder: the encoder to fill, in place.
        name: its architecture.
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
    backbone = torchvision.models.get_model(name, weights=None)
    try:
        backbone.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected weights of torchvision's {name}, but {source} does not fit: {error}") from error
    encoder.stages.load_state_dict(nn.ModuleList(_cut(backbone)).state_dict())
    return origin


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
        raise ValueError(f"expected {path} to hold a state dict (.safetensors or .pth), but got: {error}") from error
