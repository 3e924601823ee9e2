import pytest
import torch
from torch import Tensor, nn

from segserve.engines.folding import folded
from segserve.networks import build_network
from segserve.spec import Architecture, NetworkSpec, Task

NETWORKS: list[tuple[Architecture, str, Task]] = [
    ("unet", "resnet18", "segmentation"),
    ("unet", "mobilenet_v3_small", "segmentation"),
    ("deeplabv3", "mobilenet_v3_large", "segmentation"),
    ("lraspp", "mobilenet_v3_large", "segmentation"),
    ("classifier", "googlenet", "classification"),
    ("classifier", "efficientnet_b0", "classification"),
    ("classifier", "regnet_y_400mf", "classification"),
    ("classifier", "shufflenet_v2_x0_5", "classification"),
]
WITHOUT_PAIRS = ["convnext_tiny", "swin_t"]


def built(architecture: Architecture, encoder: str, task: Task) -> nn.Module:
    """With statistics unlike those of a batch norm that has seen nothing."""
    torch.manual_seed(0)
    network = build_network(NetworkSpec(architecture=architecture, encoder=encoder), task=task, num_classes=3)
    for norm in norms(network):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    return network.eval()


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def logits(network: nn.Module, images_BCHW: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network(images_BCHW)
    return found


@pytest.mark.parametrize(("architecture", "encoder", "task"), NETWORKS)
def test_computes_the_same_without_batch_norms(architecture: Architecture, encoder: str, task: Task) -> None:
    network = built(architecture, encoder, task)
    images_BCHW = torch.randn(2, 3, 80, 96)
    expected = logits(network, images_BCHW)
    without = folded(network)
    assert norms(network) and not norms(without)
    torch.testing.assert_close(
        logits(without, images_BCHW), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize("encoder", WITHOUT_PAIRS)
def test_a_network_without_such_pairs_stays_as_it_is(encoder: str) -> None:
    network = built("classifier", encoder, "classification")
    images_BCHW = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(folded(network), images_BCHW), logits(network, images_BCHW))


def test_the_network_itself_is_not_changed() -> None:
    network = built("unet", "resnet18", "segmentation").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded(network)
    assert network.training and all(weight.requires_grad for weight in network.parameters())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Twice(nn.Module):
    """The convolution's output is wanted before the norm, too; or the convolution runs twice."""

    def __init__(self, *, is_shared: bool) -> None:
        super().__init__()
        self.is_shared = is_shared
        self.conv = nn.Conv2d(3, 3, kernel_size=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv(x_BCHW)
        return self.norm(y_BCHW) + (self.conv(x_BCHW.relu()) if self.is_shared else y_BCHW)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_convolution_that_something_else_needs_keeps_its_batch_norm(is_shared: bool) -> None:
    network = Twice(is_shared=is_shared).eval()
    nn.init.constant_(network.norm.weight, 3.0)
    images_BCHW = torch.randn(1, 3, 4, 4)
    without = folded(network)
    assert norms(without)
    assert torch.equal(logits(without, images_BCHW), logits(network, images_BCHW))
