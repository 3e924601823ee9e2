import pytest
import torch
from torch import Tensor, nn

from segserve.engines.torch_engine import Precision, TorchEngine, autocast, fastest_precision
from segserve.networks import build_network
from segserve.spec import Architecture, NetworkSpec, Task

CPUS: list[tuple[dict[str, object], Precision]] = [
    ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": False, "amx_bf16": False}, "float32"),
    ({}, "float32"),
]


@pytest.mark.parametrize(("capabilities", "precision"), CPUS)
def test_the_precision_is_that_in_which_the_cpu_is_faster(
    capabilities: dict[str, object], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fastest_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_float32_whatever_the_network_computes_in(precision: Precision) -> None:
    network = torch.nn.Conv2d(3, 4, 3, padding=1)
    images_BCHW = torch.randn(2, 3, 9, 7)
    logits_BKHW = TorchEngine(network, precision=precision)(images_BCHW)
    assert logits_BKHW.dtype == torch.float32
    expected_BKHW = network(images_BCHW).detach()
    torch.testing.assert_close(logits_BKHW, expected_BKHW, atol=1e-6 if precision == "float32" else 0.05, rtol=0)


def network_of(architecture: Architecture, encoder: str, task: Task) -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkSpec(architecture=architecture, encoder=encoder), task=task, num_classes=3).eval()


def by_autocast_alone(network: nn.Module, images_BCHW: Tensor) -> Tensor:
    with torch.inference_mode(), autocast(torch.device("cpu"), "bfloat16"):
        logits: Tensor = network(images_BCHW.to(memory_format=torch.channels_last))
    return logits.float()


@pytest.mark.parametrize("encoder", ["convnext_tiny", "swin_v2_t"])
def test_weights_that_are_kept_in_bfloat16_are_those_that_autocast_makes(encoder: str) -> None:
    network = network_of("classifier", encoder, "classification")
    network.to(memory_format=torch.channels_last)
    images_BCHW = torch.randn(2, 3, 64, 96)
    found = TorchEngine(network, precision="bfloat16")(images_BCHW)
    assert torch.equal(found, by_autocast_alone(network, images_BCHW))


def test_folded_batch_norms_lose_no_more_in_bfloat16_than_those_of_autocast() -> None:
    network = network_of("unet", "resnet18", "segmentation")
    images_BCHW = torch.randn(2, 3, 64, 96)
    exact = TorchEngine(network, precision="float32")(images_BCHW)
    alone = (by_autocast_alone(network, images_BCHW) - exact).abs().mean()
    found = (TorchEngine(network, precision="bfloat16")(images_BCHW) - exact).abs().mean()
    assert 0 < found <= 1.1 * alone


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_itself_is_not_changed(precision: Precision) -> None:
    network = network_of("unet", "resnet18", "segmentation")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    TorchEngine(network, precision=precision)(torch.randn(1, 3, 32, 32))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
