"""Torchvision's own segmentation networks, with the weights' names and the outputs of this project.

FCN: Long et al. 2015, https://arxiv.org/abs/1411.4038. DeepLabV3: Chen et al. 2017, https://arxiv.org/abs/1706.05587.
LR-ASPP: Howard et al. 2019, https://arxiv.org/abs/1905.02244.

Dimensions: B batch, C channels, K classes, H, W.
"""

from typing import Literal

import torchvision
from torch import Tensor, nn

from segserve.networks.unet import enlarged


class Segmenter(nn.Module):
    """A backbone that keeps the resolution at stride 8 or 16, and a head whose logits are enlarged.

    `forward` takes images (B, 3, H, W), float, of any size from 1x1, and returns logits (B, K, H, W); in training, with
    an auxiliary head, a tuple of two such: the main ones and those of torchvision's `aux_classifier`.

    Args:
        architecture: torchvision's name.
        encoder: of the backbone; `segserve.spec.ENCODERS` has those that torchvision puts under each architecture.
        num_classes: K.
        auxiliary_heads: 0 or 1; it does not run in evaluation. LR-ASPP has none.
    """

    def __init__(
        self,
        architecture: Literal["fcn", "deeplabv3", "lraspp"],
        encoder: str,
        *,
        num_classes: int,
        auxiliary_heads: int = 0,
    ) -> None:
        super().__init__()
        auxiliary = {"aux_loss": True} if auxiliary_heads else {}
        model = torchvision.models.get_model(
            f"{architecture}_{encoder}", weights=None, weights_backbone=None, num_classes=num_classes, **auxiliary
        )
        self.backbone = model.backbone
        self.head = model.classifier
        self.auxiliary = model.aux_classifier if auxiliary_heads else None
        self.reads_all_levels = architecture == "lraspp"

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = self.backbone(images_BCHW)
        logits_BKHW = self.head(features if self.reads_all_levels else features["out"])
        if not self.training or self.auxiliary is None:
            return enlarged(logits_BKHW, images_BCHW)
        return enlarged(logits_BKHW, images_BCHW), enlarged(self.auxiliary(features["aux"]), images_BCHW)

    def take_backbone(self, backbone: nn.Module) -> None:
        """Copy the weights of torchvision's classification network of the encoder's name, but for its head."""
        trunk = backbone if isinstance(backbone, torchvision.models.ResNet) else backbone.get_submodule("features")
        state = trunk.state_dict()
        self.backbone.load_state_dict({name: state[name] for name in self.backbone.state_dict()})
