"""The ops port before a recorded management API: an HTTP server that answers what TorchServe 0.12.0 answered."""

import errno
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlers import health as health_module
from handlers.exposition import Scrape, SupervisorMetrics, TorchServeMetrics
from handlers.health import Health
from handlers.management import Management, VersionState
from handlers.ops import OpsServer
from handlers.store import ServedModel
from handlers.torchserve import free_port
from tests.system.toy_service import until

MODELS = (ServedModel("old.mar", "toy", "1.0"), ServedModel("new.mar", "toy", "1.1"))


def description(version: str, *, statuses: tuple[str, ...], pid: int = -1, pending: int = 0) -> dict[str, Any]:
    return {
        "modelName": "toy",
        "modelVersion": version,
        "maxBatchDelay": 5,
        "workers": [{"id": "9000", "status": status, "pid": pid, "gpu": False} for status in statuses],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": pending},
    }


class _Recorded(BaseHTTPRequestHandler):
    descriptions: ClassVar[list[dict[str, Any]]] = []
    default: ClassVar[int] = 0
    """Which of them answers requests that name no version."""

    def do_GET(self) -> None:
        assert self.path in ("/models/toy/all", "/models/toy")
        asked = self.descriptions if self.path.endswith("/all") else self.descriptions[self.default :][:1]
        body = json.dumps(asked).encode()
        self.send_response(200 if self.descriptions else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Ops:
    """An ops port, the health behind it, and what the management API is to answer."""

    def __init__(self, management_port: int) -> None:
        self.running = True
        self.port = free_port()
        management = Management(management_port, timeout=1)
        self.admitted: dict[str, str] = {}
        self.health = Health(
            MODELS, management=management, is_running=lambda: self.running, admit=lambda ready: self._admit(ready)
        )
        metrics = Scrape(SupervisorMetrics(self.health), TorchServeMetrics(free_port(), timeout=0.5))
        self.server = OpsServer("127.0.0.1", self.port, health=self.health, metrics=metrics)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}")

    def _admit(self, ready: Mapping[str, VersionState]) -> None:
        self.admitted = {name: state.version for name, state in ready.items()}

    def wait_for(self, reasons: list[str]) -> None:
        deadline = time.monotonic() + 5
        while self.health.reasons() != reasons:
            assert time.monotonic() < deadline, self.health.reasons()
            time.sleep(0.01)


@contextmanager
def serving(*descriptions: dict[str, Any], default: int = 0) -> Iterator[Ops]:
    class Answers(_Recorded):
        pass

    Answers.descriptions, Answers.default = list(descriptions), default
    management = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=management.serve_forever, args=[0.05], daemon=True).start()
    ops = Ops(management.server_address[1])
    ops.health.start()
    ops.server.start()
    try:
        yield ops
    finally:
        ops.client.close()
        ops.server.close()
        ops.health.close()
        management.shutdown()
        management.server_close()


READY = (
    description("1.0", statuses=("READY",), pending=2),
    description("1.1", statuses=("READY", "UNLOADING"), pending=3),
)


def test_ready_when_each_version_has_a_worker() -> None:
    with serving(*READY) as ops:
        ops.wait_for([])
        answer = ops.client.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "models": {
            "toy": {"1.0": {"ready": 1, "loading": 0, "other": 0}, "1.1": {"ready": 1, "loading": 1, "other": 0}}
        },
    }


def test_a_version_without_a_worker_is_a_reason() -> None:
    with serving(description("1.0", statuses=("READY",)), description("1.1", statuses=("UNLOADING",))) as ops:
        ops.wait_for(["model toy 1.1: no worker is ready (0 ready, 1 loading, 0 other)"])
        answer = ops.client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "unready")
    assert int(answer.headers["Retry-After"]) > 0


READY_2_0 = description("2.0", statuses=("READY",))
LOADING_2_0 = description("2.0", statuses=("UNLOADING",))
DEAD_2_0 = description("2.0", statuses=("UNLOADING",), pid=2**22 + 1)
DEAD_1_1 = description("1.1", statuses=("UNLOADING",))


def test_a_version_that_loads_beside_those_of_the_start_is_no_reason() -> None:
    with serving(*READY, LOADING_2_0) as ops:
        ops.wait_for([])
        assert ops.health.refused() == []
        assert ops.admitted == {"toy": "1.0"}
        assert set(ops.client.get("/ready").json()["models"]["toy"]) == {"1.0", "1.1", "2.0"}


def test_once_another_version_answers_it_alone_decides() -> None:
    """What was there at the start may have been unloaded, or have lost its worker."""
    with serving(DEAD_1_1, READY_2_0, default=1) as ops:
        ops.wait_for([])
        assert ops.health.refused() == []
        assert ops.admitted == {"toy": "2.0"}
        assert ops.health.is_ready("toy")
    with serving(READY[0], DEAD_2_0, default=1) as ops:
        ops.wait_for(["model toy 2.0: no worker is ready (0 ready, 0 loading, 1 other)"])
        assert 'segserve_workers{model="toy",state="ready"} 0.0' in ops.client.get("/metrics").text
    with serving(READY[0], LOADING_2_0, default=1) as ops:
        ops.wait_for(["model toy 2.0: no worker is ready (0 ready, 1 loading, 0 other)"])
        assert ops.admitted == {}
        assert not ops.health.is_ready("toy")


def test_a_worker_whose_process_ended_is_not_loading() -> None:
    ended = 2**22 + 1
    with serving(
        description("1.0", statuses=("READY",)), description("1.1", statuses=("UNLOADING",), pid=ended)
    ) as ops:
        ops.wait_for(["model toy 1.1: no worker is ready (0 ready, 0 loading, 1 other)"])


def test_an_archive_that_torchserve_did_not_take_is_a_reason() -> None:
    with serving(READY[0]) as ops:
        ops.wait_for(["model toy 1.1: TorchServe did not take new.mar"])
        assert ops.health.refused() == [MODELS[1]]
        assert ops.client.get("/ready").status_code == 503


def test_a_full_disk_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway is told by files."""
    told = list[list[str]]()

    def admit(ops: Ops, ready: Mapping[str, VersionState]) -> None:
        told.append(list(ready))
        if len(told) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Ops, "_admit", admit)
    with serving(*READY) as ops:
        until(lambda: told[1:] == [["toy"]], 5)
        ops.wait_for([])
        assert [ops.client.get(path).status_code for path in ("/ready", "/live")] == [200, 200]


def test_while_draining_the_service_is_live_and_not_ready() -> None:
    with serving(*READY) as ops:
        ops.wait_for([])
        ops.health.draining = True
        answer = ops.client.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert answer.json()["reasons"] == ["the service is stopping"]
        assert ops.client.get("/live").status_code == 200


def test_without_java_the_service_is_neither() -> None:
    with serving(*READY) as ops:
        ops.wait_for([])
        ops.running = False
        assert ops.client.get("/live").status_code == 503
        assert ops.client.get("/ready").json()["reasons"] == ["TorchServe is not running"]


def test_a_management_api_that_falls_silent_counts_as_dead_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ops = Ops(silent.getsockname()[1])
        ops.health.start()
        ops.server.start()
        began = time.monotonic()
        assert ops.client.get("/live").status_code == 200
        assert ops.client.get("/ready").json()["reasons"] == ["TorchServe does not answer"]
        monkeypatch.setattr(health_module, "START_GRACE_SECONDS", 0.0)
        assert ops.client.get("/live").status_code == 503
        assert "segserve_torchserve_up 0.0" in ops.client.get("/metrics").text
        assert time.monotonic() - began < 1
        ops.client.close()
        ops.server.close()
        ops.health.close()


def test_metrics_sum_over_versions_and_show_zeros() -> None:
    with serving(*READY) as ops:
        ops.wait_for([])
        answer = ops.client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples == {
        ("segserve_queue_depth", None): 5,
        ("segserve_workers", "ready"): 2,
        ("segserve_workers", "loading"): 1,
        ("segserve_workers", "other"): 0,
        ("segserve_torchserve_up", None): 0,
    }


def test_head_has_the_headers_only() -> None:
    with serving(*READY) as ops:
        ops.wait_for([])
        got, head = ops.client.get("/ready"), ops.client.head("/ready")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Length"] == str(len(got.content))


def test_a_query_string_does_not_matter() -> None:
    with serving(*READY) as ops:
        assert ops.client.get("/live?probe=1").status_code == 200


def test_other_paths_and_methods_are_refused_and_the_next_request_is_answered() -> None:
    with serving(*READY) as ops:
        assert ops.client.get("/").status_code == 404
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = ops.client.request(method, "/ready", content=b"a body")
            assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
            assert ops.client.get("/live").status_code == 200


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000])
def test_a_length_that_is_none_is_said(length: str, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(*READY) as ops, closing(http.client.HTTPConnection("127.0.0.1", ops.port, timeout=5)) as client:
        client.request("POST", "/ready", headers={"Content-Length": length})
        answer = client.getresponse()
        assert answer.status == 400
        detail = json.loads(answer.read())["detail"]
        assert detail.startswith(f"expected Content-Length to be a number of bytes, but got {length[:100]!r}")
    assert "Traceback" not in capfd.readouterr().err
