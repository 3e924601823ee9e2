import os
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from segserve.networks import Classifier, Encoder, UNet, build_network, load_encoder_weights
from segserve.spec import EncoderName, NetworkSpec

RESNET_NODES = ("relu", "layer1", "layer2", "layer3", "layer4")
NODES: dict[EncoderName, tuple[str, ...]] = {
    "resnet18": RESNET_NODES,
    "resnet34": RESNET_NODES,
    "resnet50": RESNET_NODES,
    "resnet101": RESNET_NODES,
    "resnext50_32x4d": RESNET_NODES,
    "mobilenet_v3_large": ("features.1", "features.3", "features.6", "features.12", "features.16"),
}
"""Torchvision's names of the last layer at strides 2, 4, 8, 16 and 32."""

OURS_FOR_SMP = (
    (r"^encoder\.conv1\.", "encoder.stages.0.0."),
    (r"^encoder\.bn1\.", "encoder.stages.0.1."),
    (r"^encoder\.layer1\.", "encoder.stages.1.1."),
    (r"^encoder\.layer2\.", "encoder.stages.2."),
    (r"^encoder\.layer3\.", "encoder.stages.3."),
    (r"^encoder\.layer4\.", "encoder.stages.4."),
    (r"^decoder\.blocks\.(\d)\.(conv[12])\.", r"decoder.\1.\2."),
    (r"^segmentation_head\.0\.", "head."),
)


def our_name(smp_name: str) -> str:
    (name,) = {re.sub(theirs, ours, smp_name) for theirs, ours in OURS_FOR_SMP if re.match(theirs, smp_name)}
    return name


@torch.no_grad()
def randomise_batch_norm(network: nn.Module) -> None:
    """Untrained statistics are 0 and 1: they would hide a batch norm in the wrong place."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)


def torchvision_backbone(name: EncoderName) -> nn.Module:
    backbone = torchvision.models.get_model(name, weights=None)
    randomise_batch_norm(backbone)
    return backbone.eval()


def save_state(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """For tests that do not change it."""
    return Encoder("resnet18")


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_large"])
def unet(request: pytest.FixtureRequest) -> UNet:
    return UNet(request.param, num_classes=4).eval()


@pytest.mark.parametrize("encoder_name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"])
@torch.no_grad()
def test_unet_equals_segmentation_models_pytorch(encoder_name: EncoderName) -> None:
    import segmentation_models_pytorch as smp

    theirs = smp.Unet(encoder_name=encoder_name, encoder_weights=None, classes=5).eval()
    randomise_batch_norm(theirs)
    ours = UNet(encoder_name, num_classes=5).eval()
    ours.load_state_dict({our_name(name): tensor for name, tensor in theirs.state_dict().items()})
    for size in ((64, 64), (96, 128)):
        images_BCHW = torch.randn(2, 3, *size)
        torch.testing.assert_close(ours(images_BCHW), theirs(images_BCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NODES)
@torch.no_grad()
def test_encoder_features_equal_torchvisions(name: EncoderName, tmp_path: Path) -> None:
    backbone = torchvision_backbone(name)
    encoder = Encoder(name).eval()
    load_encoder_weights(encoder, name, source=save_state(backbone.state_dict(), tmp_path / "weights.safetensors"))
    nodes = {node: str(index) for index, node in enumerate(NODES[name])}
    images_BCHW = torch.randn(1, 3, 64, 96)
    theirs = list(create_feature_extractor(backbone, nodes)(images_BCHW).values())
    ours = encoder(images_BCHW)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert [(f.shape[1], *f.shape[-2:]) for f in ours] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, (2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (33, 47), (32, 31), (64, 64), (129, 65)])
@torch.no_grad()
def test_unet_answers_at_the_size_of_its_input(unet: UNet, size: tuple[int, int]) -> None:
    logits_BKHW = unet(torch.randn(2, 3, *size))
    assert logits_BKHW.shape == (2, 4, *size)
    assert logits_BKHW.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 47)])
@torch.no_grad()
def test_classifier_takes_images_of_any_size(size: tuple[int, int]) -> None:
    assert Classifier("resnet18", num_classes=4).eval()(torch.randn(2, 3, *size)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("kind", [UNet, Classifier])
def test_gradients_reach_every_parameter(kind: type[UNet | Classifier], name: EncoderName) -> None:
    network = kind(name, num_classes=3).train()
    (network(torch.randn(4, 3, 64, 64)) * torch.rand(1)).square().sum().backward()
    starved = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert starved == []


@torch.no_grad()
def test_classifier_equals_torchvisions_resnet50(tmp_path: Path) -> None:
    theirs = torchvision_backbone("resnet50")
    ours = Classifier("resnet50", num_classes=1000).eval()
    load_encoder_weights(ours.encoder, "resnet50", source=save_state(theirs.state_dict(), tmp_path / "weights.pth"))
    ours.head.load_state_dict(theirs.fc.state_dict())
    images_BCHW = torch.randn(2, 3, 65, 97)
    torch.testing.assert_close(ours(images_BCHW), theirs(images_BCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("task", "kind"), [("segmentation", UNet), ("classification", Classifier)])
def test_build_network_follows_the_task(task: str, kind: type) -> None:
    network = build_network(NetworkSpec(encoder="resnet18"), task=task, num_classes=7)
    assert isinstance(network, kind)
    assert network.head.weight.shape[0] == 7


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_encoder_weights_come_from_a_file(suffix: str, tmp_path: Path) -> None:
    backbone = torchvision_backbone("resnet18")
    path = save_state(backbone.state_dict(), tmp_path / f"weights{suffix}")
    encoder = Encoder("resnet18")
    origin = load_encoder_weights(encoder, "resnet18", source=path)
    assert re.fullmatch(r"file:sha256:[0-9a-f]{64}", origin)
    assert torch.equal(encoder.stages[4][1].conv2.weight, backbone.layer4[1].conv2.weight)
    assert torch.equal(encoder.stages[0][1].running_var, backbone.bn1.running_var)


def test_none_leaves_the_encoder_as_it_is() -> None:
    encoder = Encoder("resnet18")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert load_encoder_weights(encoder, "resnet18", source="none") == "none"
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_imagenet_weights_say_which_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone = torchvision_backbone("resnet18")
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    save_state(backbone.state_dict(), tmp_path / "hub/checkpoints" / os.path.basename(weights.url))
    encoder = Encoder("resnet18")
    origin = load_encoder_weights(encoder, "resnet18", source="imagenet")
    assert origin == "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(encoder.stages[0][0].weight, backbone.conv1.weight)


def test_imagenet_without_network_says_what_to_do(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ValueError, match=r"expected to download .* cannot reach https.*encoder_weights = \"none\""):
        load_encoder_weights(encoder, "resnet18", source="imagenet")


def test_weights_of_another_network_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = save_state(torchvision_backbone("resnet34").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"expected weights of torchvision's resnet18, but .* does not fit"):
        load_encoder_weights(encoder, "resnet18", source=path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"these are no weights", b"\x80\x04N."], ids=["empty", "text", "pickle"])
def test_a_file_that_holds_no_weights_is_refused(encoder: Encoder, name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"expected .*(state dict|weights of torchvision's resnet18)"):
        load_encoder_weights(encoder, "resnet18", source=tmp_path / name)


def test_a_missing_file_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file of encoder weights, but .*none\.pth is not one"):
        load_encoder_weights(encoder, "resnet18", source=tmp_path / "none.pth")


def test_a_pickle_with_code_does_not_run(encoder: Encoder, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"conv1.weight": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"expected .* to hold a state dict"):
        load_encoder_weights(encoder, "resnet18", source=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
