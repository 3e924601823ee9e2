"""What clients are told, and that it has the form of the handlers' own problems."""

import json
from typing import get_args

import pytest

from handlers import refusals
from handlers.health import Health
from handlers.management import Management, VersionState
from handlers.refusals import Why
from handlers.store import ServedModel
from handlers.throughput import UNKNOWN_SECONDS, Throughput
from segserve.problem import STATUS, TITLE

MODEL = ServedModel("toy.mar", "toy", "1.0")


class KnownHealth(Health):
    """One whose workers are as they are told to be."""

    ready = 1

    @property
    def versions(self) -> tuple[VersionState, ...]:
        workers = {"ready": self.ready, "loading": 1 - self.ready, "other": 0}
        return (VersionState(name="toy", version="1.0", workers=workers, pending=0, batch_delay_seconds=0.0),)  # type: ignore[arg-type]


@pytest.fixture
def health() -> KnownHealth:
    return KnownHealth((MODEL,), management=Management(1, timeout=1), is_running=lambda: True)


@pytest.fixture
def throughput() -> Throughput:
    return Throughput({"toy": 4}, counts=dict)


@pytest.mark.parametrize(
    ("why", "ready", "status", "kind", "retry_after"),
    [
        ("overloaded", 1, 429, "overloaded", str(UNKNOWN_SECONDS)),
        ("overloaded", 0, 503, "not-ready", "2"),
        ("not-ready", 0, 503, "not-ready", "2"),
        ("not-ready", 1, 503, "not-ready", "2"),
        ("lost", 1, 503, "not-ready", "2"),
        ("stopping", 1, 503, "not-ready", "2"),
        ("silent", 1, 504, "no-answer", None),
        ("failed", 1, 500, "internal", None),
        ("deadline-passed", 1, 504, "deadline-passed", None),
        ("out-of-memory", 1, 507, "out-of-memory", None),
    ],
)
def test_each_reason_has_its_answer(
    health: KnownHealth,
    throughput: Throughput,
    why: Why,
    ready: int,
    status: int,
    kind: str,
    retry_after: str | None,
) -> None:
    health.ready = ready
    refusal = refusals.of_model(why, "toy", health=health, throughput=throughput)
    assert (refusal.status, refusal.kind, refusal.headers.get("Retry-After")) == (status, kind, retry_after)
    assert (kind not in STATUS) or (STATUS[kind], TITLE[kind]) == (status, refusal.title)  # type: ignore[index]


def test_a_handler_s_503_means_a_stop_only_while_the_service_stops(health: KnownHealth, throughput: Throughput) -> None:
    said = refusals.of_model("stopping", "toy", health=health, throughput=throughput).detail
    assert said == "the worker that had this request is being replaced: send the request again"
    health.draining = True
    assert "being stopped" in refusals.of_model("stopping", "toy", health=health, throughput=throughput).detail


def test_no_reason_is_left_out() -> None:
    assert set(get_args(Why)) >= {"overloaded", "lost"}
    assert len(get_args(Why)) == 8


def test_a_service_that_is_not_ready_says_why(health: KnownHealth, throughput: Throughput) -> None:
    health.ready = 0
    detail = refusals.of_model("not-ready", "toy", health=health, throughput=throughput).detail
    assert detail.startswith("model toy 1.0: no worker is ready (0 ready, 1 loading, 0 other)")


def test_the_form_is_the_handlers() -> None:
    problem = refusals.of_gateway(max_body_bytes=5, routes="here", models="toy")[413]
    assert json.loads(problem.body("a-1")) == {
        "type": "urn:segserve:problem:too-large",
        "title": TITLE["too-large"],
        "status": 413,
        "detail": "expected a body of at most 5 bytes, but this one has more: send a smaller image",
        "request_id": "a-1",
    }


def test_who_may_come_back_is_told_when() -> None:
    for problem in refusals.of_gateway(max_body_bytes=5, routes="here", models="toy").values():
        assert ("Retry-After" in problem.headers) == (problem.status in (429, 503))
