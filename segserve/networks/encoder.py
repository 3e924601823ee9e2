"""Encoders: torchvision's classification networks cut where the resolution halves.

ResNet: He et al. 2015, https://arxiv.org/abs/1512.03385. ResNeXt: Xie et al. 2016, https://arxiv.org/abs/1611.05431.
MobileNetV2: Sandler et al. 2018, https://arxiv.org/abs/1801.04381. MobileNetV3: Howard et al. 2019,
https://arxiv.org/abs/1905.02244.

Dimensions: B batch, C channels, H, W.
"""

from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from segserve.spec import EncoderName

STAGE_ENDS = {
    "mobilenet_v2": (2, 4, 7, 14, 19),
    "mobilenet_v3_small": (1, 2, 4, 9, 13),
    "mobilenet_v3_large": (2, 4, 7, 13, 17),
}
"""Where the stages of networks that are one row of layers end."""


class Encoder(nn.Module):
    """A torchvision classification network cut into five stages, each of which halves the resolution.

    `forward` takes images (B, 3, H, W) and returns five feature maps, at strides 2, 4, 8, 16 and 32, whose channels
    are `channels`.
    """

    def __init__(self, name: EncoderName) -> None:
        super().__init__()
        self.name = name
        self.stages = nn.ModuleList(_cut(name, torchvision.models.get_model(name, weights=None)))
        self.channels = _stage_channels(self.stages)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        features = []
        x_BCHW = images_BCHW
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            features.append(x_BCHW)
        return features

    def take_backbone(self, backbone: nn.Module) -> None:
        """Copy the weights of torchvision's network of the same name."""
        self.stages.load_state_dict(nn.ModuleList(_cut(self.name, backbone)).state_dict())


def _cut(name: EncoderName, backbone: nn.Module) -> list[nn.Module]:
    if isinstance(backbone, torchvision.models.ResNet):
        stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu)
        first = nn.Sequential(backbone.maxpool, backbone.layer1)
        return [stem, first, backbone.layer2, backbone.layer3, backbone.layer4]
    layers: nn.Sequential = backbone.features  # type: ignore[assignment]
    return [layers[start:end] for start, end in pairwise((0, *STAGE_ENDS[name]))]


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
