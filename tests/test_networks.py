import os
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from segserve.networks import (
    Classifier,
    Encoder,
    PooledClassifier,
    Segmenter,
    UNet,
    auxiliary_choices,
    build_network,
    load_encoder_weights,
    pretrained_statistics,
    served_weights,
)
from segserve.networks.classifier import classifier_names
from segserve.spec import Architecture, EncoderName, NetworkSpec, Task

RESNET_NODES = ("relu", "layer1", "layer2", "layer3", "layer4")
NODES: dict[EncoderName, tuple[str, ...]] = {
    "resnet18": RESNET_NODES,
    "resnet34": RESNET_NODES,
    "resnet50": RESNET_NODES,
    "resnet101": RESNET_NODES,
    "resnext50_32x4d": RESNET_NODES,
    "mobilenet_v2": ("features.1", "features.3", "features.6", "features.13", "features.18"),
    "mobilenet_v3_small": ("features.0", "features.1", "features.3", "features.8", "features.12"),
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
def test_pooled_classifier_takes_images_of_any_size(size: tuple[int, int]) -> None:
    assert PooledClassifier("resnet18", num_classes=4).eval()(torch.randn(2, 3, *size)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
@pytest.mark.parametrize("kind", [UNet, PooledClassifier])
def test_gradients_reach_every_parameter(kind: type[UNet | PooledClassifier], name: EncoderName) -> None:
    network = kind(name, num_classes=3).train()
    (network(torch.randn(4, 3, 64, 64)) * torch.rand(1)).square().sum().backward()
    starved = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert starved == []


@torch.no_grad()
def test_pooled_classifier_equals_torchvisions_resnet50(tmp_path: Path) -> None:
    theirs = torchvision_backbone("resnet50")
    ours = PooledClassifier("resnet50", num_classes=1000).eval()
    load_encoder_weights(ours.encoder, "resnet50", source=save_state(theirs.state_dict(), tmp_path / "weights.pth"))
    ours.head.load_state_dict(theirs.fc.state_dict())
    images_BCHW = torch.randn(2, 3, 65, 97)
    torch.testing.assert_close(ours(images_BCHW), theirs(images_BCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("task", "architecture", "encoder", "kind"),
    [
        ("segmentation", None, "resnet18", UNet),
        ("classification", None, "resnet18", PooledClassifier),
        ("segmentation", "unet", "mobilenet_v3_small", UNet),
        ("segmentation", "fcn", "resnet50", Segmenter),
        ("segmentation", "deeplabv3", "mobilenet_v3_large", Segmenter),
        ("segmentation", "lraspp", "mobilenet_v3_large", Segmenter),
        ("classification", "classifier", "squeezenet1_1", Classifier),
    ],
)
@torch.no_grad()
def test_build_network_follows_the_spec(
    task: Task, architecture: Architecture | None, encoder: str, kind: type
) -> None:
    spec = NetworkSpec(architecture=architecture, encoder=encoder)
    network = build_network(spec, task=task, num_classes=7).eval()
    assert type(network) is kind
    assert network(torch.randn(1, 3, 40, 48)).shape == ((1, 7, 40, 48) if task == "segmentation" else (1, 7))


@torch.no_grad()
def test_auxiliary_heads_of_the_unet_are_levels_of_its_decoder_at_full_size() -> None:
    network = UNet("mobilenet_v3_small", num_classes=3, auxiliary_heads=4).train()
    levels: list[Tensor] = []
    for block in network.decoder:
        block.register_forward_hook(lambda _module, _inputs, output: levels.append(output))
    images_BCHW = torch.randn(2, 3, 50, 33)
    main_BKHW, *others = network(images_BCHW)
    assert [tuple(level_BCHW.shape[1:]) for level_BCHW in levels[-2::-1]] == [
        (32, 25, 17),
        (64, 13, 9),
        (128, 7, 5),
        (256, 4, 3),
    ]
    torch.testing.assert_close(main_BKHW, network.head(levels[-1]))
    for head, level_BCHW, other_BKHW in zip(network.auxiliary, levels[-2::-1], others, strict=True):
        weight_KC = head.weight[..., 0, 0]
        expected_BKHW = torch.einsum("kc,bchw->bkhw", weight_KC, level_BCHW) + head.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(
            other_BKHW, nn.Upsample((50, 33), mode="bilinear")(expected_BKHW), atol=1e-5, rtol=1e-4
        )


AUXILIARY: list[tuple[Task, Architecture, str, int]] = [
    ("segmentation", "unet", "resnet18", 2),
    ("segmentation", "fcn", "resnet50", 1),
    ("segmentation", "deeplabv3", "mobilenet_v3_large", 1),
    ("classification", "classifier", "googlenet", 2),
]


@pytest.mark.parametrize(("task", "architecture", "encoder", "count"), AUXILIARY)
def test_auxiliary_heads_are_there_in_training_only(
    task: Task, architecture: Architecture, encoder: str, count: int
) -> None:
    assert count in auxiliary_choices(architecture, encoder)
    spec = NetworkSpec(architecture=architecture, encoder=encoder)
    network = build_network(spec, task=task, num_classes=3, auxiliary_heads=count)
    images_BCHW = torch.randn(2, 3, 64, 65)
    outputs = network.train()(images_BCHW)
    assert isinstance(outputs, tuple)
    assert [tuple(logits_BK.shape) for logits_BK in outputs] == [
        (2, 3, 64, 65) if task == "segmentation" else (2, 3)
    ] * (1 + count)
    torch.stack([logits_BK.square().sum() for logits_BK in outputs]).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []

    network.eval()
    for module in [m for name, m in network.named_modules() if f"{name}.".startswith(("auxiliary.", "net.aux"))]:
        module.register_forward_hook(lambda *_: pytest.fail("an auxiliary head runs in evaluation"))
    served = build_network(spec, task=task, num_classes=3).eval()
    served.load_state_dict(served_weights(network.state_dict()))
    assert sum(p.numel() for p in served.parameters()) < sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        assert torch.equal(served(images_BCHW), network(images_BCHW))
        assert isinstance(served.train()(images_BCHW), Tensor)


def test_auxiliary_heads_leave_the_other_first_weights_alone() -> None:
    states = []
    for auxiliary_heads in (0, 3):
        torch.manual_seed(1)
        states.append(UNet("resnet18", num_classes=3, auxiliary_heads=auxiliary_heads).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_every_encoder_has_the_statistics_of_its_own_weights() -> None:
    for name in classifier_names():
        mean, std = pretrained_statistics(name)
        assert len(mean) == len(std) == 3
    half = (0.5, 0.5, 0.5)
    assert pretrained_statistics("efficientnet_v2_l") == (half, half) != pretrained_statistics("efficientnet_v2_m")


def test_weights_that_came_from_elsewhere_bring_the_statistics_they_want() -> None:
    """Torchvision's GoogLeNet changes its input, once it has weights, as if it were normalised for ImageNet."""
    (mean, std), (half, same) = pretrained_statistics("resnet50"), pretrained_statistics("googlenet")
    image_BCHW = torch.rand(1, 3, 20, 20)
    net = torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True)
    columns = (torch.tensor(values).view(3, 1, 1) for values in (mean, std, half, same))
    mean_C11, std_C11, half_C11, same_C11 = columns
    torch.testing.assert_close(
        net._transform_input((image_BCHW - mean_C11) / std_C11), (image_BCHW - half_C11) / same_C11
    )


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


def test_a_whole_network_is_refused_without_advice_to_run_its_code(encoder: Encoder, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"to hold a state dict .*: save the network's state_dict\(\) alone"):
        load_encoder_weights(encoder, "resnet18", source=tmp_path / "weights.pth")
