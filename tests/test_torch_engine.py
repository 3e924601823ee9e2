import pytest
import torch

from segserve.engines.torch_engine import Precision, TorchEngine, fastest_precision

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
