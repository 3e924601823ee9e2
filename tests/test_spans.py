"""Spans, received by a collector: a real HTTP server in this process that reads OTLP's JSON."""

import io
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segserve import spans
from segserve.artifact import Artifact
from segserve.log import start_log
from segserve.spans import Exporter, RequestSpan, Span, exporter_from, is_on
from segserve.trace import Trace
from tests.test_log import TRACEPARENT, png, request, service
from tests.test_nginx import text

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """What it was sent: path, headers and document of each request."""

    def __init__(self) -> None:
        self.status = 200
        self.got: queue.Queue[tuple[str, dict[str, str], dict[str, Any]]] = queue.Queue()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.got.put((self.path, dict(self.headers), json.loads(body)))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[dict[str, Any]]:
        """Of one resource, which the next request brings."""
        _, _, document = self.got.get(timeout=30)
        [resource] = document["resourceSpans"]
        [scope] = resource["scopeSpans"]
        found: list[dict[str, Any]] = scope["spans"]
        return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setattr(spans, "EVERY_SECONDS", 0.05)
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def test_the_document_of_a_request_by_hand() -> None:
    span = RequestSpan(
        trace=Trace(TRACE, "1" * 16, PARENT),
        whole=Span("predict masks", 10.0, 12.5),
        parts=[Span("decode", 10.5, 11.0)],
        attributes={"segserve.model": "masks", "segserve.batch": 3},
        failed=True,
    )
    whole, part = span.document()
    assert whole == {
        "traceId": TRACE,
        "spanId": "1" * 16,
        "parentSpanId": PARENT,
        "name": "predict masks",
        "kind": 2,
        "startTimeUnixNano": "10000000000",
        "endTimeUnixNano": "12500000000",
        "attributes": [
            {"key": "segserve.model", "value": {"stringValue": "masks"}},
            {"key": "segserve.batch", "value": {"intValue": "3"}},
        ],
        "status": {"code": 2},
    }
    assert (part["traceId"], part["parentSpanId"], part["kind"]) == (TRACE, "1" * 16, 1)
    assert len(part["spanId"]) == 16 and part["spanId"] != "1" * 16
    assert (part["startTimeUnixNano"], part["endTimeUnixNano"]) == ("10500000000", "11000000000")


def test_a_trace_that_begins_here_has_no_parent() -> None:
    [whole] = RequestSpan(
        trace=Trace(TRACE, "1" * 16, None), whole=Span("x", 0, 1), parts=[], attributes={}, failed=False
    ).document()
    assert "parentSpanId" not in whole and "status" not in whole


def test_the_service_tells_the_collector(artifact: Artifact, collector: Collector) -> None:
    toy = service(artifact)
    toy.exporter = exporter_from({spans.ENDPOINT: f"{collector.url}/", spans.HEADERS: "a=b, c=d%20e"})
    before = time.time()
    good = request(png(), traceparent=TRACEPARENT, x_request_start=f"t={before - 2:.3f}")
    toy.handle([good, request(b"no image")])
    path, headers, document = collector.got.get(timeout=30)
    assert (path, headers["Content-Type"], headers["A"], headers["C"]) == ("/v1/traces", "application/json", "b", "d e")
    [resource] = document["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "segserve"}}]
    found = resource["scopeSpans"][0]["spans"]
    whole, *parts = [span for span in found if span["traceId"] == TRACE]
    assert (whole["name"], whole["parentSpanId"]) == ("predict logged", PARENT)
    named = {part["name"]: part for part in parts}
    assert list(named) == ["queue", "decode", "preprocess", "forward", "tta", "postprocess", "encode"]
    assert {part["parentSpanId"] for part in parts} == {whole["spanId"]}
    times = {name: (int(p["startTimeUnixNano"]), int(p["endTimeUnixNano"])) for name, p in named.items()}
    start, end = int(whole["startTimeUnixNano"]), int(whole["endTimeUnixNano"])
    assert all(start <= begin <= done <= end for begin, done in times.values())
    assert start == times["queue"][0] == pytest.approx((before - 2) * 1e9, abs=2e6)
    assert times["queue"][1] <= times["decode"][0] <= times["decode"][1] <= times["forward"][0] <= times["encode"][1]
    assert end <= time.time() * 1e9 + 1e6
    refused, decoding = [span for span in found if span["traceId"] != TRACE]
    assert "parentSpanId" not in refused and decoding["name"] == "decode"
    attributes = {entry["key"]: entry["value"] for entry in refused["attributes"]}
    assert attributes["error.type"] == {"stringValue": "unsupported-type"}
    assert attributes["http.response.status_code"] == {"intValue": "415"}
    assert attributes["segserve.batch"] == {"intValue": "2"} and "status" not in refused


@pytest.mark.parametrize("stamp", ["", "t=1.000", "t=9999999999.000", "yesterday"])
def test_a_stamp_that_cannot_be_true_is_no_queue(stamp: str, artifact: Artifact, collector: Collector) -> None:
    toy = service(artifact)
    toy.exporter = exporter_from({spans.TRACES_ENDPOINT: f"{collector.url}/own"})
    toy.handle([request(png(), x_request_start=stamp)])
    assert "queue" not in [span["name"] for span in collector.spans()]


def test_without_an_endpoint_nothing_is_sent_and_no_thread_runs(artifact: Artifact) -> None:
    before = threading.active_count()
    assert exporter_from({}) is None and not is_on({}) and is_on({spans.ENDPOINT: "http://x"})
    assert threading.active_count() == before
    assert service(artifact).exporter is None


def test_the_gateway_stamps_requests_for_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(spans.ENDPOINT, "http://collector:4318")
    assert 'proxy_set_header X-Request-Start "t=$msec";' in text(tmp_path)


def test_another_protocol_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="to begin with http:// or https://, but got 'collector:4317/v1/traces'"):
        exporter_from({spans.ENDPOINT: "collector:4317"})


def a_span() -> RequestSpan:
    trace = Trace(TRACE, "1" * 16, None)
    return RequestSpan(trace=trace, whole=Span("x", 0, 1), parts=[], attributes={}, failed=False)


def test_what_nobody_takes_is_dropped_and_said(collector: Collector) -> None:
    written = io.StringIO()
    start_log(written)
    collector.status = 503
    exporter = Exporter(address=collector.url)
    exporter.add(a_span())
    collector.spans()
    deadline = time.monotonic() + 30
    while "1 dropped" not in written.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "to take spans, but got HTTP Error 503" in written.getvalue() and "1 dropped" in written.getvalue()
    collector.status = 200
    exporter.add(a_span())
    assert len(collector.spans()) == 1


def test_an_answer_of_another_protocol_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 4317 speaks HTTP/2."""
    monkeypatch.setattr(spans, "EVERY_SECONDS", 0.05)
    written = io.StringIO()
    start_log(written)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        exporter = Exporter(address=f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces")
        for count in (1, 2):
            exporter.add(a_span())
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\0\0\6\4\0\0\0\0\0\0\5\0\0\100\0")
            deadline = time.monotonic() + 30
            while f"{count} dropped" not in written.getvalue() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert f"{count} dropped" in written.getvalue()


def test_what_came_too_fast_is_said(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    start_log(written)
    exporter = Exporter(address=collector.url)
    for _ in range(2 * spans.MOST_WAITING):
        exporter.add(a_span())
    deadline = time.monotonic() + 30
    while "more than it takes" not in written.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert f"{exporter._dropped} dropped" in written.getvalue()


def test_a_collector_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "EVERY_SECONDS", 3600)
    exporter = Exporter(address="http://127.0.0.1:9")
    begin = time.monotonic()
    for _ in range(2 * spans.MOST_WAITING):
        exporter.add(a_span())
    assert time.monotonic() - begin < 5
    assert exporter._dropped >= spans.MOST_WAITING - 1


def test_the_log_has_the_same_ids(artifact: Artifact, collector: Collector) -> None:
    written = io.StringIO()
    start_log(written)
    toy = service(artifact)
    toy.exporter = exporter_from({spans.ENDPOINT: collector.url})
    toy.handle([request(png(), traceparent=TRACEPARENT)])
    entry = json.loads(written.getvalue().splitlines()[-1])
    whole = collector.spans()[0]
    assert (entry["trace_id"], entry["span_id"], entry["parent_id"]) == (
        whole["traceId"],
        whole["spanId"],
        whole["parentSpanId"],
    )
    assert logging.getLogger("segserve").handlers
