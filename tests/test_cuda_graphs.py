import pytest
import torch
from torch import Tensor

from segserve.engines import cuda_graphs
from segserve.engines.cuda_graphs import GraphedRun
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.spec import NetworkSpec

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
on_gpu = [pytest.param("cuda", marks=needs_gpu)]


def engines(device: str) -> tuple[TorchEngine, TorchEngine]:
    """The same network without and with graphs."""
    torch.manual_seed(0)
    network = build_network(NetworkSpec(architecture="unet", encoder="resnet18"), task="segmentation", num_classes=3)
    plain, graphed = (TorchEngine(network, device=device, cuda_graphs=graphs) for graphs in (False, True))
    return plain, graphed


@pytest.mark.parametrize("device", ["cpu", *on_gpu])
def test_answers_are_those_without_graphs_in_any_order_of_shapes_and_stay_as_they_are(device: str) -> None:
    """On the CPU there are no graphs: the setting changes nothing."""
    plain, graphed = engines(device)
    shapes = [(2, 3, 64, 96), (1, 3, 32, 32), (2, 3, 64, 96), (4, 3, 64, 96), (1, 3, 32, 32)]
    batches = [torch.randn(shape, device=device) for shape in shapes]
    answers = [graphed(images_BCHW) for images_BCHW in batches]
    for images_BCHW, logits_BKHW in zip(batches, answers, strict=True):
        torch.testing.assert_close(logits_BKHW, plain(images_BCHW), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("device", on_gpu)
def test_shapes_beyond_the_most_run_without(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []

    def double(images_BCHW: Tensor) -> Tensor:
        calls.append(images_BCHW.shape)
        return 2 * images_BCHW

    monkeypatch.setattr(cuda_graphs, "MOST_SHAPES", 1)
    run = GraphedRun(double)
    for side in (4, 5, 4, 5):
        images_BCHW = torch.randn(1, 3, side, side, device=device)
        assert torch.equal(run(images_BCHW), 2 * images_BCHW)
    assert [size[-1] for size in calls] == [4] * (cuda_graphs.WARM_UPS + 1) + [5, 5]
