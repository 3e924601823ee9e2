import pytest
import torch

from bench.limit import alternating, matrix_operations, matrix_product, network_operations
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


def test_work_takes_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = alternating({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 8
    assert set(seconds) == {"a", "b"}
    assert max(seconds.values()) < 1
