from collections.abc import Iterator

import pytest

from handlers.load import Load, closed_loop
from tests.slow_server import ANSWER_SECONDS, slow_server, target


@pytest.fixture
def address() -> Iterator[str]:
    with slow_server() as found:
        yield found


def test_clients_that_wait_send_one_after_the_other(address: str) -> None:
    load = closed_loop(target(address), clients=4, seconds=0.5)
    assert 4 <= len(load.seconds) <= 4 * 0.5 / ANSWER_SECONDS + 4
    assert min(load.seconds) >= ANSWER_SECONDS
    assert load.images_per_second <= 4 / ANSWER_SECONDS


def test_without_time_every_client_sends_once(address: str) -> None:
    assert len(closed_loop(target(address), clients=3, seconds=0.0).seconds) == 3


def test_another_answer_than_200_is_an_error(address: str) -> None:
    with pytest.raises(RuntimeError, match=r"expected 200 from http://127.0.0.1:.*, but got 503: b'ok'"):
        closed_loop(target(address, status=503), clients=2, seconds=0.2)


def test_figures_of_a_load() -> None:
    load = Load(seconds=[0.1, 0.2, 0.3, 0.4], duration=2.0)
    assert load.images_per_second == 2.0
    assert (load.milliseconds(50), load.milliseconds(100)) == pytest.approx((250, 400))
