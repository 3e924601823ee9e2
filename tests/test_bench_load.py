import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.load import Load, Target, closed_loop, open_loop

ANSWER_SECONDS = 0.05


class Slow(BaseHTTPRequestHandler):
    """Answers after a while; what it is sent says with which status."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(ANSWER_SECONDS)
        self.send_response(int(body))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/predict"
        server.shutdown()
        thread.join()


def _target(address: str, status: int = 200) -> Target:
    return Target(address=address, body=str(status).encode(), headers={"Content-Type": "text/plain"})


def test_clients_that_wait_send_one_after_the_other(address: str) -> None:
    load = closed_loop(_target(address), clients=4, seconds=0.5)
    assert 4 <= len(load.seconds) <= 4 * 0.5 / ANSWER_SECONDS + 4
    assert min(load.seconds) >= ANSWER_SECONDS
    assert load.images_per_second <= 4 / ANSWER_SECONDS


def test_without_time_every_client_sends_once(address: str) -> None:
    assert len(closed_loop(_target(address), clients=3, seconds=0.0).seconds) == 3


def test_arrivals_wait_for_nobody_and_come_as_often_as_they_should(address: str) -> None:
    """60 a second of 50 ms each: three are on their way at any time."""
    load = open_loop(_target(address), rate=60, seconds=1.0, seed=1)
    assert 40 <= len(load.seconds) <= 80
    assert load.duration < 1.0 + 10 * ANSWER_SECONDS
    assert len(load.seconds) == len(open_loop(_target(address), rate=60, seconds=1.0, seed=1).seconds)


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_another_answer_than_200_is_an_error(address: str, loop: str) -> None:
    target = _target(address, status=503)
    with pytest.raises(RuntimeError, match=r"expected 200 from http://127.0.0.1:.*, but got 503: b'ok'"):
        if loop == "closed":
            closed_loop(target, clients=2, seconds=0.2)
        else:
            open_loop(target, rate=20, seconds=0.3, seed=0)


def test_figures_of_a_load() -> None:
    load = Load(seconds=[0.1, 0.2, 0.3, 0.4], duration=2.0)
    assert load.images_per_second == 2.0
    assert (load.milliseconds(50), load.milliseconds(100)) == pytest.approx((250, 400))
