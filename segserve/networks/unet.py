"""U-Net on torchvision encoders, with deep supervision where a recipe asks for it.

U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597. Deep supervision: Lee et al. 2014,
https://arxiv.org/abs/1409.5185. The decoder has the layout of segmentation_models.pytorch's `Unet`, so that its logits
can be compared with an independent implementation (`tests/test_networks.py`).

Dimensions: B batch, C channels, K classes, H, W.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from segserve.networks.encoder import Encoder
from segserve.spec import EncoderName

DECODER_CHANNELS = (256, 128, 64, 32, 16)


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

    `forward` takes images (B, 3, H, W), float, of any size from 1x1, and returns logits (B, K, H, W). In training, with
    auxiliary heads, it returns a tuple of logits of that shape: the main ones, then those of the decoder's levels
    before the last, the finest (stride 2) first.

    Args:
        encoder: its name.
        num_classes: K.
        auxiliary_heads: how many levels have a 1x1 head of their own, 0 to 4; they do not run in evaluation.
    """

    def __init__(self, encoder: EncoderName, *, num_classes: int, auxiliary_heads: int = 0) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        skips = (*reversed(self.encoder.channels[:-1]), 0)
        inputs = (self.encoder.channels[-1], *DECODER_CHANNELS[:-1])
        self.decoder = nn.ModuleList(map(DecoderBlock, inputs, skips, DECODER_CHANNELS))
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], num_classes, kernel_size=3, padding=1)
        finest_first = DECODER_CHANNELS[-2::-1]
        self.auxiliary = nn.ModuleList(
            nn.Conv2d(channels, num_classes, kernel_size=1) for channels in finest_first[:auxiliary_heads]
        )

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        *skips, x_BCHW = self.encoder(images_BCHW)
        levels = []
        for block in self.decoder:
            skip_BCHW = skips.pop() if skips else None
            size = images_BCHW.shape[-2:] if skip_BCHW is None else skip_BCHW.shape[-2:]
            x_BCHW = block(x_BCHW, skip_BCHW, size)
            if self.training:
                levels.append(x_BCHW)
        logits_BKHW: Tensor = self.head(x_BCHW)
        if not self.training or not self.auxiliary:
            return logits_BKHW
        coarser = zip(self.auxiliary, levels[-2::-1], strict=False)
        return logits_BKHW, *(enlarged(head(level_BCHW), images_BCHW) for head, level_BCHW in coarser)

    def take_backbone(self, backbone: nn.Module) -> None:
        """Fill the encoder with the weights of torchvision's network of its name."""
        self.encoder.take_backbone(backbone)


def enlarged(logits_BKHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Logits by bilinear interpolation at the size of the images."""
    return functional.interpolate(logits_BKHW, size=images_BCHW.shape[-2:], mode="bilinear", align_corners=False)
