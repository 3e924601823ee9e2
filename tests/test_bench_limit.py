import pytest
import torch
from torch import nn

from bench.limit import (
    COPIED_BYTES,
    Layer,
    Roofline,
    alternating,
    large_copy,
    layers_of,
    matrix_operations,
    matrix_product,
    network_operations,
)
from segserve.artifact import Artifact


def test_operations_by_hand(artifact: Artifact) -> None:
    """Two a multiplication: those of the first convolution and of the head are subtracted from the whole by size."""
    small, large = (network_operations(artifact.network, torch.zeros(1, 3, side, side)) for side in (32, 64))
    assert large == 4 * small
    assert network_operations(artifact.network, torch.zeros(3, 3, 32, 32)) == 3 * small
    head = 2 * 16 * 4 * 9 * 32 * 32
    stem = 2 * 3 * 64 * 49 * 16 * 16
    assert small > head + stem


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_limit_is_the_whole_product(precision: str) -> None:
    product = matrix_product(precision)()
    assert product.shape == (2048, 2048)
    assert product.float().std() > 10
    assert matrix_operations() == 2 * 2048**3


def test_a_copy_writes_all_its_bytes() -> None:
    assert large_copy()().nbytes == COPIED_BYTES


def test_the_layers_do_what_torch_counts_and_are_left_without_hooks(artifact: Artifact) -> None:
    images_BCHW = torch.zeros(2, 3, 64, 32)
    layers = layers_of(artifact.network, images_BCHW)
    assert sum(layer.operations for layer in layers) == network_operations(artifact.network, images_BCHW)
    assert len(layers_of(artifact.network, images_BCHW)) == len(layers)


def test_a_layers_values_by_hand() -> None:
    """8 x 4 pixels of 6 channels in, 4 x 2 of 10 channels out, two groups of 3 x 3 weights."""
    network = nn.Conv2d(6, 10, 3, stride=2, padding=1, groups=2)
    (layer,) = layers_of(network, torch.zeros(1, 6, 8, 4))
    assert layer == Layer(operations=2 * 80 * 27, values=192 + 270 + 80)


def test_each_layer_takes_its_arithmetic_or_its_memory_whichever_is_longer() -> None:
    roofline = Roofline(operations_per_second=10, bytes_per_second=4)
    arithmetic, memory = Layer(operations=100, values=1), Layer(operations=1, values=6)
    assert roofline.seconds([arithmetic, memory], bytes_per_value=2) == 10 + 3


def test_work_takes_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = alternating({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 8
    assert set(seconds) == {"a", "b"}
    assert max(seconds.values()) < 1
