"""The load test, run as a user runs it: a process of its own (locust patches sockets at import) and a real server."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

LOADTEST = Path(__file__).parents[1] / "loadtest"
COMMON = {"model": {}, "uncertainty": {}, "tta": {}, "timings_ms": {}}


class StubHandler(BaseHTTPRequestHandler):
    """Answers as the contract says, or with the garbage that the server was given."""

    server: "StubServer"
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        upload = self.rfile.read(int(self.headers["Content-Length"]))
        accept, model = self.headers["Accept"], self.path.removeprefix("/predictions/")
        self.server.seen.add((model, accept, self.headers["X-Segserve-Tta"]))
        time.sleep(self.server.delay_seconds)
        body = self.server.garbage or right_answer(upload, accept=accept, model=model)
        self.send_response(200)
        self.send_header("Content-Type", accept)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class StubServer(ThreadingHTTPServer):
    daemon_threads = True
    garbage: ClassVar[bytes] = b""
    delay_seconds: ClassVar[float] = 0
    seen: ClassVar[set[tuple[str, str, str]]]


def right_answer(upload: bytes, *, accept: str, model: str) -> bytes:
    with Image.open(io.BytesIO(upload)) as image:
        width, height = image.size
    if accept == "image/png":
        buffer = io.BytesIO()
        Image.new("P", (width, height)).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    size = {"width": width, "height": height}
    if model == "a-segmenter":
        return json.dumps({**COMMON, "image": size, "classes": [{"pixels": width * height}]}).encode()
    labels = [{"probability": 0.75}, {"probability": 0.25}]
    return json.dumps({**COMMON, "image": size, "labels": labels}).encode()


@contextmanager
def stub_server(garbage: bytes = b"", delay_seconds: float = 0) -> Iterator[StubServer]:
    with StubServer(("127.0.0.1", 0), StubHandler) as server:
        server.garbage, server.delay_seconds, server.seen = garbage, delay_seconds, set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SEGSERVE_", "LOCUST_"))}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=kept | variables, cwd=LOADTEST
    )


def run_locust(server: StubServer, *, seconds: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    names = {"SEGSERVE_SEGMENTATION_MODEL": "a-segmenter", "SEGSERVE_CLASSIFICATION_MODEL": "a-classifier"}
    url = f"http://127.0.0.1:{server.server_port}"
    options = f"--headless --only-summary -u 4 -r 4 -t {seconds}s -H {url}".split()
    return run_python("-m", "locust", "-f", "locustfile.py", *options, **names, **variables)


def test_right_answers_end_with_0() -> None:
    with stub_server() as server:
        done = run_locust(server, SEGSERVE_SLO_P95_MS="60000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loadtest:" not in done.stdout
    assert server.seen == {
        ("a-segmenter", "image/png", "none"),
        ("a-segmenter", "image/png", "hflip"),
        ("a-segmenter", "application/json", "none"),
        ("a-classifier", "application/json", "none"),
        ("a-classifier", "application/json", "hflip"),
    }


def test_garbage_ends_with_1() -> None:
    with stub_server(garbage=b"\x89PNG garbage") as server:
        done = run_locust(server, seconds=1)
    assert done.returncode == 1
    assert "requests failed" in done.stdout
    assert "expected a PNG, but got" in done.stdout + done.stderr


def test_slow_answers_end_with_1() -> None:
    with stub_server() as server:
        done = run_locust(server, seconds=1, SEGSERVE_SLO_P95_MS="0.001")
    assert done.returncode == 1
    assert "expected 95 % of the answers within 0.001 ms" in done.stdout
    assert "requests failed" not in done.stdout


def test_what_is_in_flight_at_the_end_is_judged() -> None:
    """Every answer here comes after the end of the run time, and every one is wrong."""
    with stub_server(garbage=b"garbage", delay_seconds=3) as server:
        done = run_locust(server, seconds=1)
    assert done.returncode == 1
    assert "4 of 4 requests failed" in done.stdout


def test_an_unreachable_service_ends_with_1() -> None:
    with stub_server() as server:
        pass
    done = run_locust(server, seconds=1)
    assert done.returncode == 1
    assert "requests failed" in done.stdout
    assert "expected an answer, but got" in done.stdout + done.stderr


@pytest.mark.parametrize("limit", ["fast", "0"])
def test_a_wrong_limit_is_one_sentence(limit: str) -> None:
    done = run_python("-c", "import locustfile", SEGSERVE_SLO_P95_MS=limit)
    assert done.returncode == 1
    assert done.stderr.endswith(f"above 0 ms, but got {limit!r}: correct or unset it\n")
    assert "Traceback" not in done.stderr


CHECKS = """
import json
import sys
from locustfile import SIZES, Upload, WrongAnswer, check_labels, check_png, check_segmentation, make_uploads

def complaint(check, body):
    try:
        check(body.encode("latin-1"), Upload(4, 3, "image/png", b""))
    except WrongAnswer as error:
        return str(error)

checks = {"png": check_png, "segmentation": check_segmentation, "labels": check_labels}
uploads = make_uploads()
json.dump({
    "sizes": sorted({(upload.width, upload.height) for upload in uploads}) == sorted(SIZES),
    "types": sorted({upload.content_type for upload in uploads}),
    "same": uploads == make_uploads() and uploads != make_uploads(seed=1),
    "images": [upload.body.hex() for upload in uploads[:2]],
    "complaints": [complaint(checks[kind], body) for kind, body in json.loads(sys.argv[1])],
}, sys.stdout)
"""
SIZE = {"width": 4, "height": 3}
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0%c\0\0\0%c"
CASES: list[tuple[str, object, str | None]] = [
    ("png", PNG_HEAD % (4, 3), None),
    ("png", PNG_HEAD % (3, 4), "expected the upload's size 4x3, but got 3x4"),
    ("png", PNG_HEAD[:16], "expected a PNG"),
    ("png", b"\xff\xd8\xff\xe0" + bytes(30), "expected a PNG"),
    ("segmentation", {**COMMON, "image": SIZE, "classes": [{"pixels": 5}, {"pixels": 7}]}, None),
    ("segmentation", {**COMMON, "image": SIZE, "classes": [{"pixels": 5}]}, "share out 12 pixels, but got 5"),
    ("segmentation", {**COMMON, "image": SIZE}, "expected the keys"),
    ("segmentation", b"<html>", "expected JSON"),
    ("labels", {**COMMON, "image": SIZE, "labels": [{"probability": 0.9}, {"probability": 0.1}]}, None),
    ("labels", {**COMMON, "image": SIZE, "labels": [{"probability": 0.1}, {"probability": 0.9}]}, "the largest first"),
    ("labels", {**COMMON, "image": SIZE, "labels": []}, "the largest first"),
    ("labels", {**COMMON, "image": {"width": 1, "height": 1}, "labels": []}, "but got 1x1"),
    ("labels", [], "expected the keys"),
]


def test_images_and_checks() -> None:
    sent = [(kind, (a if isinstance(a, bytes) else json.dumps(a).encode()).decode("latin-1")) for kind, a, _ in CASES]
    done = run_python("-c", CHECKS, json.dumps(sent))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sizes"] and found["same"]
    assert found["types"] == ["image/jpeg", "image/png"]
    for image in found["images"]:
        with Image.open(io.BytesIO(bytes.fromhex(image))) as opened:
            assert (opened.mode, len(opened.getcolors(1 << 20) or ())) > ("RGB", 1000)
    for (kind, answer, expected), complaint in zip(CASES, found["complaints"], strict=True):
        assert (complaint is None) if expected is None else expected in (complaint or ""), (kind, answer, complaint)
