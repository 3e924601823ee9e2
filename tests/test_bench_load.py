from collections.abc import Iterator

import pytest

from bench.load import open_loop
from tests.slow_server import ANSWER_SECONDS, slow_server, target


@pytest.fixture
def address() -> Iterator[str]:
    with slow_server() as found:
        yield found


def test_arrivals_wait_for_nobody_and_come_as_often_as_they_should(address: str) -> None:
    """60 a second of 50 ms each: three are on their way at any time."""
    load = open_loop(target(address), rate=60, seconds=1.0, seed=1)
    assert 40 <= len(load.seconds) <= 80
    assert load.duration < 1.0 + 10 * ANSWER_SECONDS
    assert len(load.seconds) == len(open_loop(target(address), rate=60, seconds=1.0, seed=1).seconds)


def test_another_answer_than_200_is_an_error(address: str) -> None:
    with pytest.raises(RuntimeError, match="but got 503"):
        open_loop(target(address, status=503), rate=20, seconds=0.3, seed=0)
