from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segserve.networks import Classifier, check_classifier, classifier_names, load_encoder_weights

ALL_NAMES: list[str] = torchvision.models.list_models(module=torchvision.models)
SMALLEST = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 29,
    "efficientnet_b0": 1,
    "googlenet": 15,
    "inception_v3": 75,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "resnet18": 1,
    "resnext50_32x4d": 1,
    "shufflenet_v2_x0_5": 1,
    "squeezenet1_1": 17,
    "swin_t": 32,
}
"""One of each family that is quick to build, and the side from which torchvision's own takes images."""


class ParametersOnMeta(TorchFunctionMode):
    """Modules have parameters without storage, which nothing fills; all else is computed as ever.

    Not `torch.device("meta")`: RegNet computes its widths with tensors.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.empty, torch.ones, torch.zeros):
            return function(*args, **{**(kwargs or {}), "device": "meta"})
        filled = args[0] if args else (kwargs or {}).get("tensor")
        if function.__name__.rstrip("_") + "_" == function.__name__ and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_network_of_torchvision_has_its_head_replaced_or_is_refused(name: str) -> None:
    if name.startswith(("vit_", "maxvit_")):
        with pytest.raises(ValueError, match=rf"images of any size, but {name} takes one size only: choose another"):
            check_classifier(name)
        return
    assert name in classifier_names()
    with ParametersOnMeta():
        network = Classifier(name, num_classes=251)
    of_classes = [tuple(tensor.shape[1:]) for tensor in network.state_dict().values() if tensor.shape[:1] == (251,)]
    (weight, bias) = sorted(of_classes, key=len, reverse=True)
    assert (len(weight) in (1, 3), bias) == (True, ())  # linear, or SqueezeNet's convolution


@pytest.mark.parametrize(("name", "least"), SMALLEST.items())
@torch.no_grad()
def test_images_of_any_size_are_classified(name: str, least: int) -> None:
    network = Classifier(name, num_classes=4).eval()
    assert network.least_side == least
    for size in {(1, 1), (1, 40), (least, least), (79, 80)}:
        logits_BK = network(torch.randn(2, 3, *size))
        assert logits_BK.shape == (2, 4)
        assert logits_BK.isfinite().all()


@pytest.mark.parametrize("name", ["vgg16", "vgg19_bn"])
def test_so_are_they_by_the_large_ones(name: str) -> None:
    """Shapes alone."""
    with ParametersOnMeta():
        network = Classifier(name, num_classes=4).eval()
    for size in ((1, 1), (31, 70), (32, 32)):
        assert network(torch.zeros(2, 3, *size, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "resnet18"])
@torch.no_grad()
def test_with_the_same_weights_it_is_torchvisions_own(name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, weights=None, num_classes=6, **options).eval()
    ours = Classifier(name, num_classes=6).eval()
    ours.net.load_state_dict(theirs.state_dict())
    images_BCHW = torch.randn(2, 3, 80, 97)
    assert torch.equal(ours(images_BCHW), theirs(images_BCHW))


@torch.no_grad()
def test_small_images_are_filled_up_by_their_last_pixels() -> None:
    network = Classifier("squeezenet1_1", num_classes=3).eval()
    images_BCHW = torch.randn(2, 3, 5, 20)
    filled_BCHW = torch.cat([images_BCHW, images_BCHW[:, :, -1:].expand(-1, -1, 12, -1)], dim=2)
    assert torch.equal(network(images_BCHW), network.net(filled_BCHW))


def test_googlenet_in_training_returns_its_auxiliary_heads_after_the_main_one() -> None:
    network = Classifier("googlenet", num_classes=3, auxiliary_heads=2).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images_BCHW = torch.randn(2, 3, 64, 64)
    main_BK, late_BK, early_BK = network(images_BCHW)
    theirs = network.net(images_BCHW)
    assert torch.equal(main_BK, theirs.logits)
    assert torch.equal(late_BK, theirs.aux_logits2)
    assert torch.equal(early_BK, theirs.aux_logits1)


@pytest.mark.parametrize("auxiliary_heads", [0, 2])
def test_pretrained_weights_are_taken_but_for_the_heads(auxiliary_heads: int, tmp_path: Path) -> None:
    theirs = torchvision.models.googlenet(weights=None, init_weights=False).state_dict()
    torch.save(theirs, tmp_path / "weights.pth")
    network = Classifier("googlenet", num_classes=3, auxiliary_heads=auxiliary_heads)
    fresh = {name: tensor.clone() for name, tensor in network.net.state_dict().items()}
    load_encoder_weights(network, "googlenet", source=tmp_path / "weights.pth")
    heads = ("fc.", "aux1.fc2.", "aux2.fc2.")
    for name, tensor in network.net.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith(heads) else theirs[name]), name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5", "torchvision, but got 'resnet5': choose for example resnet50"),
        ("VGG-16", "torchvision, but got 'VGG-16': choose for example "),
        ("fcn_resnet50", "torchvision, but got 'fcn_resnet50': choose for example "),
        ("", "torchvision, but got '': choose for example alexnet, convnext_base"),
    ],
)
def test_a_wrong_name_is_refused_with_near_ones(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Classifier(name, num_classes=3)
