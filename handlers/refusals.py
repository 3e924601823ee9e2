"""What a client is told by the gateway and by the supervisor behind it: the same problem details as from a handler.

The gateway alone finds faults before any model is asked; nginx has their answers in its configuration. Why a model did
not answer is for the supervisor to say: nginx asks it, see `handlers/config/nginx.conf`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from handlers.health import Health
from handlers.throughput import Throughput
from segserve.api import ProblemAnswer
from segserve.problem import DEADLINE_PASSED, OUT_OF_MEMORY, STATUS, STOPPING, TITLE, Problem, type_of

REQUEST_ID = "@id@"
"""Where nginx puts the request's own."""
SHORT_SECONDS = 2
"""Retry-After where nothing is known: as long as a worker needs to come back without its model's loading time."""

Why = Literal["overloaded", "not-ready", "lost", "silent", "stopping", "failed", "deadline-passed", "out-of-memory"]
"""Why a model did not answer; the last four were answers of a handler, whose words nginx does not keep."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A problem and what belongs in its head."""

    status: int
    kind: str
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, request_id: str = REQUEST_ID) -> str:
        """JSON, in the form of segserve's own problems."""
        answer = ProblemAnswer(
            type=type_of(self.kind),
            title=self.title,
            status=self.status,
            detail=self.detail,
            request_id=request_id,
        )
        return answer.model_dump_json(exclude_none=True)


def of_gateway(*, max_body_bytes: int, routes: str, models: str) -> dict[int, Refusal]:
    """By the status with which nginx finds the fault: its own, or one of those that the configuration invents (46x)."""
    too_large = f"expected a body of at most {max_body_bytes} bytes, but this one has more: send a smaller image"
    unreadable = _refusal(400, "bad-request", "The request cannot be read", "expected a request in HTTP/1.1")
    unavailable = _refusal(
        503,
        "not-ready",
        TITLE["not-ready"],
        "the gateway could not hand this request on: send it again",
        {"Retry-After": str(SHORT_SECONDS)},
    )
    return {
        400: unreadable,
        401: _refusal(
            401,
            "no-token",
            "A token is needed",
            "expected a header 'Authorization: Bearer NAME.SECRET', but there is none",
            {"WWW-Authenticate": 'Bearer realm="segserve"'},
        ),
        403: _refusal(
            403,
            "wrong-token",
            "The token is not known",
            "expected the token of a client of this service, but got another: ask whoever runs it for one",
        ),
        404: _refusal(404, "no-such-path", "There is nothing at this path", f"expected {routes}"),
        405: _refusal(
            405, "wrong-method", "The method is wrong", "expected POST, with the image as the body", {"Allow": "POST"}
        ),
        411: _refusal(411, "bad-request", "The length is missing", "expected a Content-Length"),
        413: _refusal(413, "too-large", TITLE["too-large"], too_large),
        414: _refusal(
            414,
            "bad-request",
            "The address is too long",
            "expected an address of at most 8192 bytes: send fewer options",
        ),
        421: unreadable,
        429: _refusal(
            429,
            "too-many-requests",
            "Too many requests of this client",
            "expected fewer requests a second, or at the same time: wait as long as Retry-After says",
            {"Retry-After": "1"},
        ),
        460: _refusal(404, "no-such-model", "There is no such model", f"expected ?model= to name one of: {models}"),
        461: _refusal(405, "wrong-method", "The method is wrong", "expected GET or HEAD", {"Allow": "GET, HEAD"}),
        494: _refusal(
            431, "bad-request", "The headers are too large", "expected at most 32768 bytes of headers, 8192 in each"
        ),
        497: _refusal(400, "bad-request", "TLS is expected", "expected https:// here, but got plain HTTP"),
        500: unavailable,
        501: _refusal(501, "bad-request", "Not implemented", "expected Transfer-Encoding to be chunked, or none"),
        502: unavailable,
        503: unavailable,
        504: unavailable,
        505: _refusal(505, "bad-request", "Not this version of HTTP", "expected HTTP/1.1 or 1.0"),
    }


def of_model(why: Why, name: str, *, health: Health, throughput: Throughput) -> Refusal:
    """What to say where the model `name` did not answer. What looks like overload is none while no worker is ready."""
    if why == "overloaded" and health.is_ready(name):
        seconds = throughput.drain_seconds(name)
        detail = f"expected fewer requests at the same time: those that wait for {name} need {seconds} s"
        return _refusal(429, "overloaded", "The service is busy", detail, {"Retry-After": str(seconds)})
    retry = {"Retry-After": str(SHORT_SECONDS)}
    match why:
        case "overloaded" | "not-ready":
            reason = "; ".join(health.reasons()) or f"model {name} is loading"
            return _refusal(503, "not-ready", TITLE["not-ready"], f"{reason}: send the request again", retry)
        case "stopping" if not health.draining:
            detail = "the worker that had this request is being replaced: send the request again"
            return _refusal(503, "not-ready", TITLE["not-ready"], detail, retry)
        case "stopping":
            return _as_by_a_handler(STOPPING, retry)
        case "lost":
            detail = "the worker that had this request ended before it answered: send the request again"
            return _refusal(503, "not-ready", TITLE["not-ready"], detail, retry)
        case "silent":
            detail = "expected an answer of the model in time, but none came: the server's log may say why"
            return _refusal(504, "no-answer", "The model does not answer", detail)
        case "failed":
            detail = "computing an answer for this image failed: the server's log says why"
            return _refusal(STATUS["internal"], "internal", TITLE["internal"], detail)
        case "deadline-passed":
            return _as_by_a_handler(DEADLINE_PASSED)
        case "out-of-memory":
            return _as_by_a_handler(OUT_OF_MEMORY)


def _as_by_a_handler(problem: Problem, headers: Mapping[str, str] | None = None) -> Refusal:
    return _refusal(problem.status, problem.kind, TITLE[problem.kind], problem.detail, headers)


def _refusal(status: int, kind: str, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Refusal:
    return Refusal(status=status, kind=kind, title=title, detail=detail, headers=headers or {})
