"""Spans of each request for OpenTelemetry: OTLP over HTTP, in JSON, https://opentelemetry.io/docs/specs/otlp/.

Off unless the environment names an endpoint, by the variables that all of OpenTelemetry's libraries know. A thread
sends what has come together once a second. No request waits for that: where nobody takes the spans, they are dropped,
and the log says how many.
"""

import json
import logging
import queue
import secrets
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple

from segserve.trace import Trace

logger = logging.getLogger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Environment variable: the collector's address; spans go to its path /v1/traces."""
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""Environment variable: the whole address, instead."""
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
"""Environment variable: NAME=VALUE, separated by commas, the values percent-encoded."""
SERVICE_NAME = "OTEL_SERVICE_NAME"
"""Environment variable; `segserve` if there is none."""
MOST_WAITING = 2048
"""Requests whose spans wait to be sent."""
EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
_INTERNAL, _SERVER, _ERROR = 1, 2, 2


class Span(NamedTuple):
    """A part of a request."""

    name: str
    start: float
    """Seconds since the epoch."""
    end: float


@dataclass(frozen=True, kw_only=True)
class RequestSpan:
    """A request and its parts."""

    trace: Trace
    whole: Span
    parts: Sequence[Span]
    attributes: Mapping[str, str | int]
    failed: bool
    """By a fault of the service: an answer of 500 or more."""

    def document(self) -> list[dict[str, Any]]:
        """One object a span, as OTLP has it in JSON: ids in hexadecimal, nanoseconds as text."""
        whole = _object(self.whole, self.trace.trace_id, self.trace.span_id, parent_id=self.trace.parent_id)
        whole |= {"kind": _SERVER, "attributes": _attributes(self.attributes)}
        if self.failed:
            whole["status"] = {"code": _ERROR}
        parts = [
            _object(part, self.trace.trace_id, secrets.token_hex(8), parent_id=self.trace.span_id)
            for part in self.parts
        ]
        return [whole, *parts]


def _object(span: Span, trace_id: str, span_id: str, *, parent_id: str | None) -> dict[str, Any]:
    return {
        "traceId": trace_id,
        "spanId": span_id,
        **({} if parent_id is None else {"parentSpanId": parent_id}),
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(round(span.start * 1e9)),
        "endTimeUnixNano": str(round(span.end * 1e9)),
    }


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": name, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for name, value in values.items()
    ]


@dataclass(kw_only=True)
class Exporter:
    """Sends spans to a collector."""

    address: str
    headers: Mapping[str, str] = field(default_factory=dict)
    service: str = "segserve"

    def __post_init__(self) -> None:
        self._waiting: queue.Queue[RequestSpan] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        threading.Thread(target=self._run, name="segserve-spans", daemon=True).start()

    def add(self, span: RequestSpan) -> None:
        """Have it sent soon."""
        try:
            self._waiting.put_nowait(span)
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        said = 0
        while True:
            spans = [self._waiting.get()]
            time.sleep(EVERY_SECONDS)
            spans += [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            reason = self._attempt(spans)
            if self._dropped > said:
                said = self._dropped
                logger.warning("expected %s to take spans, but got %s: %d dropped", self.address, reason, said)

    def _attempt(self, spans: Sequence[RequestSpan]) -> str:
        """What hinders spans from being sent; those of a failed attempt are dropped."""
        try:
            self._send(spans)
        except (OSError, HTTPException, ValueError) as error:
            self._dropped += len(spans)
            return repr(error) if isinstance(error, HTTPException) else str(error)
        return "more than it takes"

    def _send(self, spans: Sequence[RequestSpan]) -> None:
        resource = {"attributes": _attributes({"service.name": self.service})}
        objects = [entry for span in spans for entry in span.document()]
        scope = {"scope": {"name": "segserve"}, "spans": objects}
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}).encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self.address, data=body, headers=headers)
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()


def is_on(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for spans."""
    return bool(environment.get(ENDPOINT) or environment.get(TRACES_ENDPOINT))


def exporter_from(environment: Mapping[str, str]) -> Exporter | None:
    """What the environment asks for; None: nothing.

    Raises:
        ValueError: the address is none of HTTP.
    """
    if not is_on(environment):
        return None
    address = environment.get(TRACES_ENDPOINT) or f"{environment[ENDPOINT].rstrip('/')}/v1/traces"
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(
            f"expected {ENDPOINT} to begin with http:// or https://, but got {address!r}: OTLP over HTTP, which "
            "collectors take at port 4318, is the only one sent"
        )
    pairs = (pair.partition("=") for pair in environment.get(HEADERS, "").split(",") if "=" in pair)
    headers = {name.strip(): urllib.parse.unquote(value.strip()) for name, _, value in pairs}
    return Exporter(address=address, headers=headers, service=environment.get(SERVICE_NAME) or "segserve")
