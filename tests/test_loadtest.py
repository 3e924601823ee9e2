"""The load test, run as a user runs it: locust in a process of its own (it patches sockets) and a real server."""

import io
import json
import re
import shlex
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from loadtest.__main__ import main
from loadtest.profile import PROFILES, read_profile
from loadtest.record import Record, read_record

README = Path(__file__).resolve().parents[1] / "loadtest/README.md"
COMMON = {"model": {}, "uncertainty": {}, "tta": {}, "timings_ms": {}}
MODELS = ("--segmentation", "a-segmenter", "--classification", "a-classifier")


class StubHandler(BaseHTTPRequestHandler):
    """Answers as the contract says, or with the garbage that the server was given; where it is slow, one by one."""

    server: "StubServer"
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        upload = self.rfile.read(int(self.headers["Content-Length"]))
        accept, model = self.headers["Accept"], self.path.removeprefix("/predictions/")
        self.server.seen.add((model, accept, self.headers["X-Segserve-Tta"]))
        with self.server.turn:
            time.sleep(self.server.delay_seconds)
        body = self.server.garbage or right_answer(upload, accept=accept, model=model)
        self._send(accept, body)

    def do_GET(self) -> None:
        assert self.path == "/metrics"
        self.server.scrapes += 1
        samples = {
            'segserve_request_seconds_sum{model="a-segmenter"}': 0.5,
            'segserve_request_seconds_count{model="a-segmenter"}': 1,
            'segserve_batch_images_sum{model="a-segmenter"}': 1,
            'segserve_batch_images_count{model="a-segmenter"}': 1,
            'ts_inference_requests_total{model_name="a-segmenter"}': 1,
            'segserve_stage_seconds_sum{model="a-segmenter",stage="forward"}': 0.25,
            'segserve_stage_seconds_count{model="a-segmenter",stage="forward"}': 1,
        }
        text = "".join(f"{name} {value * self.server.scrapes}\n" for name, value in samples.items())
        self._send("text/plain", text.encode())

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class StubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    garbage: ClassVar[bytes] = b""
    delay_seconds: ClassVar[float] = 0
    scrapes: ClassVar[int] = 0
    seen: ClassVar[set[tuple[str, str, str]]]
    turn: ClassVar[threading.Lock]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


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
        server.turn = threading.Lock()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def write_profile(folder: Path, *, loop: str, seconds: float, load: float, more: str = "") -> Path:
    """Of small images, which are made quickly."""
    path = folder / f"{loop}.toml"
    sizes = "sizes = [[32, 24], [33, 25]]"
    path.write_text(
        f'about = "Toy."\nloop = "{loop}"\nsteps = [{{ seconds = {seconds}, load = {load} }}]\n'
        f"[[requests]]\nweight = 5\n{sizes}\n{more.replace('SIZES', sizes)}"
    )
    return path


def run(profile: Path, url: str, *arguments: str) -> tuple[int, Record]:
    code = main([str(profile), "--url", url, "--out", str(profile.parent), *MODELS, *arguments])
    return code, read_record(profile.with_suffix(".json"))


MORE = """
[[requests]]
accept = "application/json"
SIZES
[[requests]]
task = "classification"
accept = "application/json"
tta = "hflip"
SIZES
"""


def test_right_answers_end_with_0_and_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profile = write_profile(tmp_path, loop="closed", seconds=2, load=4, more=MORE)
    with stub_server() as server:
        code, record = run(profile, server.url, "--ops", server.url)
    assert (code, record.complaints) == (0, ()), capfd.readouterr()
    assert server.seen == {
        ("a-segmenter", "image/png", "none"),
        ("a-segmenter", "application/json", "none"),
        ("a-classifier", "application/json", "hflip"),
    }
    assert {sent.outcome for sent in record.sent} == {"ok"}
    assert {sent.views for sent in record.sent if sent.name == "classification json tta=hflip"} == {2}
    assert len(record.scrapes) >= 2
    report = (tmp_path / "closed.html").read_text()
    assert all(text in report for text in ("All are met.", "<td>250.0</td>", "a-segmenter", "Errors</h2><p>None.</p>"))


def test_what_is_in_flight_at_the_end_is_judged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every answer here comes after the end of the run time, and every one is wrong."""
    profile = write_profile(tmp_path, loop="closed", seconds=1, load=2)
    with stub_server(garbage=b"\x89PNG garbage", delay_seconds=1.5) as server:
        code, record = run(profile, server.url)
    assert code == 1
    assert [sent.kind for sent in record.sent] == ["wrong answer"] * 2
    told = capfd.readouterr().out
    assert "expected at most 0.0% of the requests to be failed, but 2 of 2 were" in told
    assert "segmentation png: expected a PNG, but got b'\\x89PNG garbage'" in told


def test_an_open_loop_does_not_wait_and_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """A service that needs 0.1 s for each of 20 a second: the last one waits for a second and more."""
    profile = write_profile(tmp_path, loop="open", seconds=2, load=20)
    with stub_server(delay_seconds=0.1) as server:
        code, record = run(profile, server.url)
    due = list(record.run.profile.arrivals(seed=record.run.seed))
    assert code == 0 and [sent.due for sent in record.sent] == due
    waits = [sent.seconds for sent in record.sent]
    expected, free = [], 0.0
    for at in due:
        free = max(at, free) + 0.1
        expected.append(free - at)
    assert max(expected) > 1.5
    assert sorted(waits)[-1] >= 0.9 * max(expected)
    assert all(wait >= 0.1 for wait in waits)


def test_an_open_loop_ends_with_its_last_request(tmp_path: Path) -> None:
    """A quick service has answered everything before locust looks whether the time is over."""
    with stub_server() as server:
        code, record = run(write_profile(tmp_path, loop="open", seconds=2.5, load=20), server.url)
    due = list(record.run.profile.arrivals(seed=record.run.seed))
    assert code == 0 and [sent.due for sent in record.sent] == due
    assert max(sent.seconds for sent in record.sent) < 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:1", "expected a service at http://127.0.0.1:1, but nobody listens"),
        ("http://127.0.0.1:x", "expected a service at http://127.0.0.1:x, but nobody listens"),
        ("127.0.0.1:8080", "expected --url to be like http://HOST:8080, but got 127.0.0.1:8080"),
    ],
)
def test_where_nobody_listens_nothing_is_sent(url: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steady", "--url", url]) == 2
    assert sentence in capsys.readouterr().err


def test_a_service_that_answers_nobody_ends_with_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class HangsUp(socketserver.BaseRequestHandler):
        """Whoever connects."""

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        code, record = run(write_profile(tmp_path, loop="open", seconds=1, load=5), url)
        server.shutdown()
        thread.join()
    assert code == 1 and record.sent
    assert {sent.kind for sent in record.sent} == {"no answer"}
    assert "expected an answer, but got" in capfd.readouterr().out


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["steady", "--url", "http://127.0.0.1:1", "--out", str(tmp_path / "file")]) == 2
    assert "is no folder that can be written to" in capsys.readouterr().err


def test_the_commands_of_the_readme_are_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They end where they look for the objectives, before anything is sent."""
    commands = re.findall(r"^\.venv/bin/python -m loadtest (.*?)(?:#.*)?$", README.read_text(), flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main([*shlex.split(command), "--slo", str(tmp_path / "none.toml")]) == 2
        assert "expected a file of service level objectives" in capsys.readouterr().err


def test_the_profile_of_the_readme_can_be_read(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (tmp_path / "own.toml").write_text(text)
    assert read_profile(str(tmp_path / "own.toml")).loop == "open"
    table = {
        name for row in re.findall(r"^\| (`.*?) \|", README.read_text(), flags=re.MULTILINE) for name in row.split(", ")
    }
    assert table == {f"`{path.stem}`" for path in PROFILES.glob("*.toml")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stedy"], "expected a profile, bad, fit, "),
        (["--store", "nowhere"], "expected archives in nowhere, but there is no such folder: run `make demo` first"),
        (["--slo", "nowhere.toml"], "expected a file of service level objectives, but nowhere.toml cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
