"""The client against a real HTTP server that follows a script; tests/system/test_client.py asks the real service."""

import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

from segserve.api import Options, Request, parse_request
from segserve.client import AskedInFull, Client, ConnectionFailed, ProblemError, ServiceError, _pause
from tests.conftest import random_image

IMAGE = b"\x89PNG any bytes \r\n--\xff"
OK: "Answer" = (200, {"Content-Type": "image/png", "X-Segserve-Model": "cells"}, b"mask")
BUSY = b'{"code": 503, "type": "ServiceUnavailableException", "message": "no worker"}'

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Script:
    """Answers in order, the last one for ever; what was asked, and when."""

    answers: list[Answer]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def client(self, **settings: Any) -> Client:
        return Client(self.url, model="cells", **settings)


@contextmanager
def scripted(*answers: Answer) -> Iterator[Script]:
    script = Script(list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.append(Request(headers=headers, fields={"body": body}))
            script.paths.append(self.path)
            script.times.append(time.monotonic())
            status, headers, content = script.answers[min(len(script.requests), len(script.answers)) - 1]
            if status == 0:  # hang up
                self.close_connection = True
                return
            if "Slow" in headers:
                time.sleep(float(headers["Slow"]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            pieces = [content[at : at + 1] for at in range(len(content))] if "Drip" in headers else [content]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that waits no longer
                for piece in pieces:
                    self.wfile.write(piece)
                    time.sleep(float(headers.get("Drip", 0)))

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield script
        server.shutdown()
        thread.join()


def busy(retry_after: str | None = None, status: int = 503) -> Answer:
    return status, {} if retry_after is None else {"Retry-After": retry_after}, BUSY


def pauses(script: Script) -> list[float]:
    return [later - earlier for earlier, later in zip(script.times, script.times[1:], strict=False)]


def sent(image: Any, **asked: Any) -> tuple[bytes, Options]:
    """What the service reads of a call."""
    with scripted(OK) as script, script.client() as client:
        client.ask(image, **asked)
    return parse_request(script.requests[0])


def test_asks_the_model_and_hands_over_the_answer() -> None:
    head = {"Content-Type": "image/png", "X-Segserve-Version": "1.0", "Server-Timing": "decode;dur=1.5, forward;dur=20"}
    head["X-Segserve-Degraded"] = "tta"
    with scripted((200, head, b"mask")) as script, Client(script.url + "/", model="a b/c") as client:
        reply = client.ask(IMAGE, request_id="req-1")
    assert script.paths == ["/predictions/a%20b%2Fc"]
    assert script.requests[0].headers["x-request-id"] == "req-1"
    assert (reply.content_type, reply.body, reply.version) == ("image/png", b"mask", "1.0")
    assert (reply.request_id, reply.timings_ms) == ("req-1", {"decode": 1.5, "forward": 20.0})
    assert reply.degraded == "tta"


@pytest.mark.parametrize(
    "added", ["edge;dur=2,origin;dur=35", 'cache;dur=1;desc="a;dur=b"', "x-decode;dur=9", "dur;dur="]
)
def test_what_proxies_add_to_the_timings_is_no_reason_to_lose_the_answer(added: str) -> None:
    head = {"Server-Timing": f"{added},decode;dur=1.5, forward;dur=20,{added}"}
    with scripted((200, head, b"mask")) as script, script.client() as client:
        assert client.ask(IMAGE).timings_ms == {"decode": 1.5, "forward": 20.0}


def test_a_token_is_sent_the_given_one_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGSERVE_TOKEN", raising=False)
    with scripted(OK) as script:
        with script.client() as nobody, script.client(token="alice.secret") as alice:
            nobody.ask(IMAGE)
            alice.ask(IMAGE)
        monkeypatch.setenv("SEGSERVE_TOKEN", "bob.secret")
        with script.client() as bob, script.client(token="alice.secret") as alice, script.client(token="") as nobody:
            for client in (bob, alice, nobody):
                client.ask(IMAGE)
    sent = [request.headers.get("authorization") for request in script.requests]
    assert sent == [None, "Bearer alice.secret", "Bearer bob.secret", "Bearer alice.secret", None]


@pytest.mark.parametrize("token", ["alice.secret\n", "alice secret", "älice.secret"])
def test_a_token_that_cannot_be_sent_is_not_quoted(token: str) -> None:
    with pytest.raises(ValueError, match="expected a token of visible ASCII characters") as caught:
        Client("http://127.0.0.1:1", model="cells", token=token)
    assert "secret" not in str(caught.value)


def test_every_option_arrives_as_it_was_given() -> None:
    asked = {
        "format": ["png", "coco"],
        "render": "overlay",
        "masks": "polygons",
        "tta": "d4",
        "aggregate": "vote",
        "measure": "disagreement",
        "objects": True,
        "split": "watershed",
        "min_area": 5,
        "simplify": 0.5,
        "precision": "float16",
        "name": "Zellen-äöü.png",
        "top_k": 3,
        "deadline_ms": 900,
    }
    assert set(asked) == set(Options.model_fields) - {"classes"} == set(get_type_hints(AskedInFull)) - {"classes"}
    assert sent(IMAGE, **asked) == (IMAGE, Options.model_validate({**asked, "render": ["overlay"]}))


def test_class_names_may_hold_commas() -> None:
    image, options = sent(IMAGE, classes=["car, parked", "sky"], objects=False, tta="hflip")
    assert image == IMAGE
    assert (options.classes, options.objects, options.tta) == (("car, parked", "sky"), False, "hflip")


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_arrays_are_sent_as_png(shape: tuple[int, ...]) -> None:
    pixels = random_image(5, 7)[..., 0] if len(shape) == 2 else random_image(5, 7)
    image, _ = sent(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)


def test_a_path_gives_the_file_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "cells-07.png"
    path.write_bytes(IMAGE)
    assert sent(path) == (IMAGE, Options(name="cells-07.png"))
    assert sent(path, name="other")[1].name == "other"


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((4, 4), np.float32), "type float32"),
        ("cells.png", "but got str"),
    ],
)
def test_what_is_no_image_is_refused_before_it_is_sent(image: Any, got: str) -> None:
    with scripted(OK) as script, script.client() as client, pytest.raises(ValueError, match=got):
        client.ask(image)
    assert script.requests == []


def test_an_id_that_no_header_can_hold_is_refused_before_it_is_sent() -> None:
    sentence = r"expected a request_id of visible ASCII characters, but got 'a\\nb'"
    with scripted(OK) as script, script.client() as client, pytest.raises(ValueError, match=sentence):
        client.ask(IMAGE, request_id="a\nb")
    assert script.requests == []


def test_a_file_name_that_is_no_text_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(IMAGE)
    body, options = sent(path)
    assert (body, options.name) == (IMAGE, "image")


def test_a_wrong_option_is_refused_before_it_is_sent() -> None:
    with scripted(OK) as script, script.client() as client:
        with pytest.raises(ValueError, match="expected 'tta' to be 'none', 'hflip'"):
            client.ask(IMAGE, tta="twice")  # type: ignore[typeddict-item]
        with pytest.raises(ValueError, match="'colour' is not a known key"):
            client.ask(IMAGE, colour="red")  # type: ignore[call-arg]
    assert script.requests == []


@pytest.mark.parametrize(
    ("url", "settings"),
    [(url, {}) for url in ("cells:8080", "/x", "http://", "http:a", "http://a:b")] + [("http://a", {"timeout": 0})],
)
def test_a_client_that_could_never_ask_is_not_made(url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Client(url, model="cells", **settings)


def failure(*answers: Answer, **settings: Any) -> tuple[ServiceError, Script]:
    with scripted(*answers) as script, script.client(**settings) as client, pytest.raises(ServiceError) as caught:
        client.ask(IMAGE, request_id="req-1")
    return caught.value, script


def test_a_problem_says_what_the_service_said() -> None:
    body = (
        b'{"type": "urn:segserve:problem:bad-option", "title": "An option is wrong", "status": 400, "detail": "why", '
        b'"new": 1}'
    )
    problem, script = failure((400, {"Content-Type": "application/problem+json"}, body))
    assert isinstance(problem, ProblemError)
    assert str(problem) == "An option is wrong (400): why"
    assert (problem.type, problem.status, problem.detail) == ("urn:segserve:problem:bad-option", 400, "why")
    assert (problem.request_id, len(script.requests)) == ("req-1", 1)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: cells"}',
            "Model not found: cells",
        ),
        (b"<html>gateway</html>", "<html>gateway</html>"),
        (b"[]", "[]"),
        (b"", "no reason was given"),
    ],
)
def test_errors_that_are_no_problem_details_are_readable_too(body: bytes, detail: str) -> None:
    problem, _ = failure((404, {}, body))
    assert str(problem) == f"Not Found (404): {detail}"


@pytest.mark.parametrize("status", [429, 503])
def test_what_was_not_processed_is_sent_again_as_it_was(status: int) -> None:
    with scripted(busy("0", status), busy("0", status), OK) as script, script.client() as client:
        assert client.ask(IMAGE, tta="flips").body == b"mask"
    first, *others = [(parse_request(request), request.headers["x-request-id"]) for request in script.requests]
    assert others == [first, first]


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 500, 502, 504, 507])
def test_what_may_have_been_processed_or_would_fail_again_is_not(status: int) -> None:
    _, script = failure(busy("0", status), OK)
    assert len(script.requests) == 1


def test_waits_the_seconds_it_is_told() -> None:
    with scripted(busy("1"), OK) as script, script.client() as client:
        client.ask(IMAGE)
    assert 1.0 <= pauses(script)[0] < 1.9


def test_waits_until_the_date_it_is_told() -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    with scripted(busy(format_datetime(until, usegmt=True)), OK) as script, script.client() as client:
        client.ask(IMAGE)
    assert until <= datetime.now(UTC) < until + timedelta(seconds=1.4)


@pytest.mark.parametrize("past_or_nonsense", ["Sun, 06 Nov 1994 08:49:37 GMT", "soon", "-5", "", None])
def test_else_waits_a_short_and_growing_time(past_or_nonsense: str | None) -> None:
    with scripted(busy(past_or_nonsense), OK) as script, script.client() as client:
        client.ask(IMAGE)
    assert 0 <= pauses(script)[0] < 0.9


def test_pauses_grow() -> None:
    with scripted(busy(), busy(), OK) as script, script.client() as client:
        client.ask(IMAGE)
    for pause, longest in zip(pauses(script), (0.5, 1.0), strict=True):
        assert longest / 2 <= pause < longest + 0.4


def test_pauses_stay_the_longest_however_often_it_was_asked() -> None:
    assert 5 <= _pause(ConnectionFailed("no service", was_sent=False), 5000) <= 10


def test_gives_up_after_its_retries() -> None:
    problem, script = failure(busy("0"), retries=2)
    assert str(problem) == "Service Unavailable (503): no worker"
    assert len(script.requests) == 3


@pytest.mark.parametrize("retry_after", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_does_not_wait_for_what_its_timeout_excludes(retry_after: str) -> None:
    start = time.monotonic()
    _, script = failure(busy(retry_after), timeout=30)
    assert len(script.requests) == 1
    assert time.monotonic() - start < 5


def test_retries_stay_within_the_timeout() -> None:
    start = time.monotonic()
    _, script = failure(busy("1"), timeout=2.5, retries=100)
    assert len(script.requests) in (2, 3)
    assert time.monotonic() - start < 3.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_nobody_there() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}", model="cells", retries=1)
    words = r"expected a service at http://127.*/cells, but it cannot be reached \(.*\): is it running\?"
    with client, pytest.raises(ConnectionFailed, match=words):
        client.ask(IMAGE)


def test_a_service_that_comes_up_meanwhile_is_asked() -> None:
    with scripted(OK) as script:
        later = free_port()
        port = int(script.url.rpartition(":")[2])

        def forward() -> None:
            time.sleep(0.6)
            with socket.create_server(("127.0.0.1", later)) as listener:
                inbound, _ = listener.accept()
                with inbound, socket.create_connection(("127.0.0.1", port)) as outbound:
                    back = threading.Thread(target=lambda: pump(outbound, inbound))
                    back.start()
                    pump(inbound, outbound)
                    outbound.shutdown(socket.SHUT_RDWR)
                    back.join()

        thread = threading.Thread(target=forward)
        thread.start()
        with Client(f"http://127.0.0.1:{later}", model="cells") as client:
            assert client.ask(IMAGE).body == b"mask"
        thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)


def test_no_answer_in_time_is_not_asked_for_again() -> None:
    error, script = failure((200, {"Slow": "1.5"}, b"late"), timeout=0.5)
    assert str(error).endswith("within 0.5 s, but none came: raise the timeout, or ask for less")
    assert len(script.requests) == 1


def test_the_timeout_is_that_of_the_whole_answer() -> None:
    begin = time.monotonic()
    error, _ = failure((200, {"Drip": "0.2"}, bytes(20)), timeout=0.5)
    assert str(error).endswith("within 0.5 s, but none came: raise the timeout, or ask for less")
    assert time.monotonic() - begin < 2


def test_no_deadline_is_none() -> None:
    assert sent(IMAGE, deadline_ms=None)[1].deadline_ms is None


def test_an_answer_that_cannot_be_decoded_is_not_asked_for_again() -> None:
    error, script = failure((200, {"Content-Encoding": "gzip"}, b"no gzip"))
    assert "in the encoding that it names, but got other bytes" in str(error)
    assert len(script.requests) == 1


def test_a_connection_that_breaks_off_is_not_asked_for_again() -> None:
    error, script = failure((0, {}, b""))
    assert "but the connection broke off" in str(error)
    assert len(script.requests) == 1
