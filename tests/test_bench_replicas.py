"""Measured against simulated: the comparison itself, and the nginx in front of the replicas."""

import itertools
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from bench.replicas import checks, cluster_of, compare, front, main, read_serving, simulate
from loadtest.record import Record, Run, Sent
from loadtest.service_time import ServiceTime
from segserve.spec import ModelSpec, ServingSpec
from tests.system.toy_service import nginx_or_skip

SERVICE = ServiceTime(
    seconds_per_megapixel=0.02,
    seconds_per_view=0.02,
    seconds_per_batch=0.01,
    ratios=(0.9, 1.0, 1.1),
    outside_seconds=0.003,
)
SERVING = ServingSpec()


def measured(*, index: int) -> Record:
    """What two replicas that are as the simulation says would leave behind."""
    profile = list(checks(SERVICE, SERVING, seconds=40))[index]
    arrivals = profile.arrivals(seed=1) if profile.loop == "open" else range(500)
    sent = [
        Sent(number, "x", float(due), 0.0, "ok", "ok", megapixels, views, 0, 0)
        for number, due, (megapixels, views) in zip(
            itertools.count(), arrivals, itertools.cycle([(0.08, 1), (0.3, 1), (0.8, 2)]), strict=False
        )
    ]
    run = Run(profile=profile, models={}, record=Path("x"))
    record = Record(run=run, url="", began="", sent=tuple(sent), scrapes=(), complaints=())
    return simulate(record, SERVICE, cluster_of(SERVICE, SERVING), seed=7)


@pytest.mark.parametrize("index", [0, 1], ids=["closed", "open"])
def test_the_comparison_sees_what_agrees_and_what_does_not(index: int) -> None:
    record = measured(index=index)
    cluster = cluster_of(SERVICE, SERVING)
    same = list(compare(record, SERVICE, cluster))
    assert [found.agrees for found in same] == [True] * len(record.run.profile.steps)
    assert max(abs(found.throughput_off) for found in same) < 0.05
    slower = SERVICE.model_copy(update={"seconds_per_view": 0.04})
    assert not any(found.agrees for found in compare(record, slower, cluster))


def test_failed_requests_are_told_and_do_not_agree() -> None:
    """One in fifty is answered wrongly; the others are as the simulation says."""
    record, cluster = measured(index=1), cluster_of(SERVICE, SERVING)
    assert all(found.line().endswith("| 0.0% |") for found in compare(record, SERVICE, cluster))
    broken = [
        entry._replace(kind="wrong answer", outcome="failed") if entry.number % 50 == 0 else entry
        for entry in record.sent
    ]
    for found in compare(record.model_copy(update={"sent": tuple(broken)}), SERVICE, cluster):
        assert abs(found.throughput_off) < 0.1 and abs(found.p95_off) < 0.2
        assert not found.agrees
        assert 0.01 < found.failed < 0.03 and found.line().endswith(f"| {found.failed:.1%} |")


def test_the_open_checks_are_shares_of_what_the_replicas_can_do() -> None:
    """Of 0.2625 megapixels, times (76800 + 83583 + 307200 + 786432) / 4 pixels exactly, and 1.2 views."""
    closed, opened = checks(SERVICE, SERVING, seconds=5)
    assert [step.load for step in closed.steps] == [4, 16, 48]
    megapixels = (320 * 240 + 333 * 251 + 640 * 480 + 768 * 1024) / 4e6
    most = 2 * 8 / (8 * megapixels * 0.02 + 8 * 1.2 * 0.02 + 0.01)
    assert [step.load for step in opened.steps] == pytest.approx([0.5 * most, 0.8 * most])


def test_how_an_archive_is_served(spec: ModelSpec, tmp_path: Path) -> None:
    def write(serving: ServingSpec) -> None:
        with zipfile.ZipFile(tmp_path / "masks.mar", "w") as archive:
            archive.writestr("artifact/spec.json", spec.model_copy(update={"serving": serving}).model_dump_json())

    write(ServingSpec(batch_size=3))
    assert read_serving(tmp_path, "masks").batch_size == 3
    write(ServingSpec(workers=2))
    with pytest.raises(ValueError, match=r"expected one worker a replica, but .* asks for 2"):
        read_serving(tmp_path, "masks")


def test_no_archive_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "but there is none: run `make demo`, or name --store and --model" in capsys.readouterr().err


@contextmanager
def named_server(name: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(name).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_replica_in_turn(tmp_path: Path) -> None:
    nginx_or_skip()
    with ExitStack() as stack:
        addresses = [stack.enter_context(named_server(name)) for name in "ab"]
        url = stack.enter_context(front(addresses, folder=tmp_path / "front"))
        client = stack.enter_context(httpx.Client(transport=httpx.HTTPTransport(retries=5)))
        answers = [client.post(url, content=b"x").json() for _ in range(10)]
    assert Counter(answers) == {"a": 5, "b": 5}
