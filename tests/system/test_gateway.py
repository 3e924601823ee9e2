"""The gateway before the real TorchServe: real nginx, toy models whose speed is known, and one of segserve's own."""

import contextlib
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from handlers.archive import package
from segserve.artifact import Artifact
from segserve.problem import TITLE
from tests.conftest import random_image
from tests.system.load import Load, open_loop
from tests.system.toy_service import Service, nginx_or_skip, serving, short_folder, until, write_toy_archive

pytestmark = pytest.mark.system

TOKENS = {name: f"{name}.{name * 8}0123456789abcdef" for name in ("alice", "bob", "carol")}
ALICE = {"Authorization": f"Bearer {TOKENS['alice']}"}
BATCH, WAITING, SECONDS = 4, 3, 0.1
"""Of the toy model: requests in a batch, batches that may wait, seconds for one."""
PLACES = BATCH * (1 + WAITING)
SLOW_SECONDS = 0.5
"""Of the slow model, which takes its requests one by one."""
HARM_SECONDS = 2
"""A worker that is silent for so long is ended."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> Iterator[Service]:
    nginx_or_skip()
    folder = tmp_path_factory.mktemp("gateway")
    store = folder / "store"
    handler = "classification_handler.py"
    write_toy_archive(store, handler=handler, batchSize=BATCH, responseTimeout=HARM_SECONDS)
    write_toy_archive(store, name="slow", batchSize=1)
    package(artifact.path, name="cells", store=store)
    (folder / "tokens").write_text("# clients\n\n" + "\n".join(TOKENS.values()) + "\n")
    gateway = {
        "tokens": folder / "tokens",
        "max_body_bytes": 2**20,
        "requests_per_second": 100,
        "burst": 60,
        "connections": 150,
        "waiting_batches": WAITING,
    }
    environment = {"TOY_SECONDS": str(SECONDS), "SLOW_SECONDS": str(SLOW_SECONDS), "OMP_NUM_THREADS": "1"}
    with (
        short_folder() as temporary,
        serving(store, temporary=temporary, environment=environment, gateway=gateway) as s,
    ):
        s.wait_ready()
        wait_for(s, 200)
        yield s


@pytest.fixture(scope="module", autouse=True)
def slow_clients(service: Service) -> Iterator[dict[str, socket.socket]]:
    """They stay while the other tests run: half a head, half a body, and nothing at all."""
    head = f"POST /predictions/toy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['alice']}\r\n"
    begun = {"silent": "", "half a head": head, "half a body": f"{head}Content-Length: 100\r\n\r\n0123456789"}
    clients = {}
    for name, text in begun.items():
        clients[name] = socket.create_connection(("127.0.0.1", service.settings.inference_port))
        clients[name].sendall(text.encode())
    yield clients
    for client in clients.values():
        client.close()


PAGE = (Path(__file__).parents[2] / "docs/gateway.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def post(service: Service, path: str = "/predictions/toy", body: bytes = b"x", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(service.url + path, content=body, headers={**ALICE, **named}, timeout=60)


def wait_for(service: Service, status: int, path: str = "/predictions/toy") -> None:
    until(lambda: post(service, path).status_code == status, 30, service.text, pause=0.1)


def png(height: int = 40, width: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def assert_problem(answer: httpx.Response, status: int, kind: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert list(problem) == ["type", "title", "status", "detail", "request_id"]
    assert (problem["type"], problem["status"]) == (f"urn:segserve:problem:{kind}", status)
    assert TITLE.get(kind, problem["title"]) == problem["title"]  # type: ignore[call-overload]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def log(service: Service, request_id: str) -> dict[str, object]:
    def lines() -> list[str]:
        return [line for line in service.output if line.startswith("{") and f'"{request_id}"' in line]

    until(lines, 5)
    [line] = lines()
    return dict(json.loads(line))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("curl")])
def test_the_page_s_requests(service: Service, tmp_path: Path, command: str) -> None:
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/input.png").write_bytes(png())
    command = command.replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "TOKEN": TOKENS["alice"]},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    written = [path.read_bytes() for path in tmp_path.glob("*.png")]
    assert written[0].startswith(b"\x89PNG") if "-o " in command else json.loads(done.stdout)


def test_segment_with_options_in_the_query(service: Service) -> None:
    answer = post(service, "/v1/segment?render=overlay&model=cells&tta=hflip", png(), Content_Type="image/png")
    assert answer.status_code == 200, answer.text
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.size, picture.mode) == ((60, 40), "RGB")
    index = post(service, "/v1/segment?format=png", png(), Content_Type="image/png")
    assert Image.open(io.BytesIO(index.content)).mode == "P"
    assert index.headers["x-segserve-model"] == "cells"


def test_classify(service: Service) -> None:
    answer = post(service, "/v1/classify?top_k=2")
    assert (answer.headers["x-segserve-model"], answer.json()["fields"]) == ("toy", {"top_k": "2"})


def test_kserve_s_path(service: Service) -> None:
    document = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}]}
    answer = httpx.post(f"{service.url}/v2/models/cells/infer", json=document, headers=ALICE, timeout=30)
    assert answer.json()["outputs"][0]["shape"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("?model=toy", {}),
        ("?model=toy&tta=flips", {"tta": "flips"}),
        ("?tta=flips&model=toy", {"tta": "flips"}),
        ("?tta=flips&model=toy&classes=a,b%20c", {"tta": "flips", "classes": "a,b c"}),
        ("?tta=flips&top_k=3", {"tta": "flips", "top_k": "3"}),
    ],
)
def test_the_query_s_options_reach_the_model_without_the_model_s_name(
    service: Service, query: str, fields: dict[str, str]
) -> None:
    assert post(service, f"/predictions/toy{query}").json()["fields"] == fields


def test_models_are_listed(service: Service) -> None:
    listed = httpx.get(f"{service.url}/v1/models", headers=ALICE).json()["models"]
    assert {"name": "cells", "version": "1.0", "task": "segmentation"} in listed
    assert {"name": "toy", "version": "1.0", "task": "classification"} in listed
    assert {"name": "slow", "version": "1.0", "task": None} in listed


@pytest.mark.parametrize("page", ["ready", "live"])
def test_probes_need_no_token(service: Service, page: str) -> None:
    asked, direct = httpx.get(f"{service.url}/{page}"), httpx.get(f"{service.ops}/{page}")
    assert (asked.status_code, asked.json()["status"]) == (200, direct.json()["status"])


def test_only_the_gateway_is_on_the_public_address(service: Service) -> None:
    """TorchServe, management and metrics listen on loopback, whatever the host; nothing else has a port at all."""
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert (("127.0.0.1", service.settings.inference_port)) in listening


@pytest.mark.parametrize(
    ("authorization", "status", "kind"),
    [
        (None, 401, "no-token"),
        ("Bearer alice.wrong0123456789abcdefghij", 403, "wrong-token"),
        ("Bearer mallory.0123456789abcdef01234567", 403, "wrong-token"),
        (f"Bearer {TOKENS['alice']}x", 403, "wrong-token"),
        (f"Bearer {TOKENS['alice'].upper()}", 403, "wrong-token"),
        (f"Bearer bob{TOKENS['alice'][5:]}", 403, "wrong-token"),
        (f"Basic {TOKENS['alice']}", 403, "wrong-token"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/predictions/toy"), ("GET", "/v1/models")])
def test_without_a_token_nothing(
    service: Service, authorization: str | None, status: int, kind: str, method: str, path: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.request(method, service.url + path, headers=headers)
    assert_problem(answer, status, kind)
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_a_token_opens_whatever_the_scheme_s_case(service: Service) -> None:
    assert post(service, Authorization=f"bearer {TOKENS['bob']}").status_code == 200


RAW = {
    "not http": (b"hello\r\n\r\n", 400, "bad-request"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
    "bad length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400, "bad-request"),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
        "bad-request",
    ),
    "smuggled": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "bad-request",
    ),
    "unknown coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "bad-request"),
    "long address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "bad-request"),
    "long header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431, "bad-request"),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: aaaaaaaa\r\n" * 9000 + b"\r\n", 431, "bad-request"),
    "version": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "bad-request"),
    "trace": (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "wrong-method"),
    "path": (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no-such-path"),
    "management": (b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no-such-path"),
    "refusals": (b"GET /refusal HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no-such-path"),
    "upwards": (b"GET /predictions/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-request"),
}


@pytest.mark.parametrize("name", RAW)
def test_what_nginx_finds_wrong_is_a_problem_too(service: Service, name: str) -> None:
    sent, status, kind = RAW[name]
    with socket.create_connection(("127.0.0.1", service.settings.inference_port), timeout=10) as connection:
        connection.sendall(sent)
        head, _, rest = receive(connection).partition(b"\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    answer = httpx.Response(int(head.split()[1]), headers=[(name, value) for name, value in lines], content=rest)
    assert_problem(answer, status, kind)


def receive(connection: socket.socket) -> bytes:
    """All of an answer: to its length, or to the connection's end."""
    received = b""
    while part := connection.recv(65536):
        received += part
        head, end, body = received.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if end and length and len(body) >= int(length[0].split(b":")[1]):
            break
    return received


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/predictions/toy", 405, "wrong-method"),
        ("POST", "/v1/models", 405, "wrong-method"),
        ("POST", "/live", 405, "wrong-method"),
        ("POST", "/predictions/nobody", 404, "no-such-model"),
        ("POST", "/predictions/toy/1.0", 404, "no-such-model"),
        ("POST", "/v1/segment?model=toy", 404, "no-such-model"),
        ("POST", "/v1/classify?model=CELLS", 404, "no-such-model"),
    ],
)
def test_wrong_addresses(service: Service, method: str, path: str, status: int, kind: str) -> None:
    answer = httpx.request(method, service.url + path, headers=ALICE)
    assert_problem(answer, status, kind)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large(service: Service, chunked: bool) -> None:
    body = b"x" * (2**20 + 1)
    content = iter([body[:1000], body[1000:]]) if chunked else body
    answer = httpx.post(service.prediction_url(), content=content, headers=ALICE, timeout=30)
    assert_problem(answer, 413, "too-large")
    assert post(service, body=b"x" * 2**20).status_code == 200


def test_a_handler_s_own_problem_passes_as_it_is(service: Service) -> None:
    answer = post(service, "/v1/segment", b"text", Content_Type="image/png", X_Request_ID="mine-1")
    assert_problem(answer, 415, "unsupported-type")
    assert answer.json()["request_id"] == "mine-1"
    assert_problem(post(service, "/v1/segment?tta=twice", png()), 400, "bad-option")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"500", 500, "internal"),
        (b"504", 504, "deadline-passed"),
        (b"507", 507, "out-of-memory"),
    ],
)
def test_a_handler_s_failure_is_said_again_in_its_own_kind(
    service: Service, body: bytes, status: int, kind: str
) -> None:
    assert_problem(post(service, body=body, X_Request_ID="mine-2"), status, kind)
    assert_problem(post(service, body=body, X_Request_ID="mine-3"), status, kind)


def test_an_expired_deadline_costs_no_forward_pass(service: Service) -> None:
    def passes() -> str:
        text = httpx.get(f"{service.ops}/metrics").text
        return "".join(line for line in text.splitlines() if 'model="cells",stage="forward"' in line)

    post(service, "/v1/segment", png())
    before = passes()
    body = png(1500, 1500)
    assert_problem(post(service, "/v1/segment?deadline_ms=1", body[: 2**20]), 422, "undecodable")
    large = Image.new("RGB", (4000, 3000))
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    assert_problem(post(service, "/v1/segment?deadline_ms=1", buffer.getvalue()), 504, "deadline-passed")
    assert passes() == before


def test_request_ids_and_traces_are_kept_or_made(service: Service) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    kept = post(service, X_Request_ID="a/b:c-1", traceparent=trace)
    assert kept.headers["x-request-id"] == "a/b:c-1"
    assert (kept.json()["headers"]["x-request-id"], kept.json()["headers"]["traceparent"]) == ("a/b:c-1", trace)
    entry = log(service, "a/b:c-1")
    assert (entry["traceparent"], entry["client"], entry["status"]) == (trace, "alice", 200)

    broken = f"00-{'0' * 32}-00f067aa0ba902b7-01"
    made = post(service, X_Request_ID='bad "id"', traceparent=broken)
    own = made.headers["x-request-id"]
    assert len(own) == 32
    assert made.json()["headers"]["traceparent"] == f"00-{own}-{own[:16]}-00"


def test_poisonous_headers_do_not_reach_torchserve(service: Service) -> None:
    poison = {"describe": "True", "explain": "True", "Cookie": "a=b", "ts_stream_next": "true", "X-Segserve-TTA": "d4"}
    headers = post(service, **poison).json()["headers"]
    assert headers.keys() & {"describe", "explain", "cookie", "authorization", "ts_stream_next"} == set()
    assert headers["x-segserve-tta"] == "d4"


def test_too_many_requests_of_one_client_are_his_own_affair(service: Service) -> None:
    carol = {"Authorization": f"Bearer {TOKENS['carol']}"}
    many = open_loop(f"{service.url}/v1/classify", rate=2000, seconds=0.1, body=b"x", headers=carol, patience=10)
    assert httpx.get(f"{service.url}/v1/models", headers=ALICE).status_code == 200
    assert set(many.statuses) == {200, 429}
    assert "urn:segserve:problem:too-many-requests" in {outcome.problem for outcome in many.outcomes}
    assert all(outcome.retry_after for outcome in many.outcomes if outcome.status == 429)


def load(service: Service, *, rate: float, seconds: float, path: str = "/predictions/toy") -> Load:
    return open_loop(service.url + path, rate=rate, seconds=seconds, body=b"x" * 1000, headers=ALICE, patience=10)


def answered(service: Service, model: str) -> Counter[int]:
    """How often each status was answered, as the ops port says."""
    found = re.findall(
        rf'^segserve_gateway_answers_total{{model="{model}",status="(\d+)"}} (\S+)$',
        httpx.get(f"{service.ops}/metrics").text,
        re.MULTILINE,
    )
    return Counter({int(status): int(float(count)) for status, count in found})


def test_twice_the_capacity(service: Service) -> None:
    """Open loop. What is accepted comes in time, what is not is told at once when to come back, and nothing is lost."""
    peak = load(service, rate=BATCH / SECONDS, seconds=2).goodput
    before = answered(service, "toy")
    over = load(service, rate=2 * BATCH / SECONDS, seconds=3)
    until(lambda: answered(service, "toy") - before == over.statuses, 5, lambda: str(answered(service, "toy") - before))
    slo = (WAITING + 2) * SECONDS + 0.5
    refused = [outcome for outcome in over.outcomes if outcome.status == 429]
    print(
        f"\npeak {peak:.1f}/s; at twice the capacity {over.goodput:.1f}/s good, {dict(over.statuses)}, "
        f"p99 {over.percentile(99):.2f} s of at most {slo:.2f} s, Retry-After {refused[-1].retry_after} s"
    )
    assert set(over.statuses) == {200, 429}
    assert over.goodput >= 0.9 * peak
    assert over.percentile(99) <= slo
    assert max(outcome.seconds for outcome in refused) < 1
    assert {outcome.retry_after for outcome in refused} <= {1, 2}


def test_retry_after_is_the_time_that_the_queue_needs(service: Service) -> None:
    over = load(service, rate=8, seconds=4, path="/predictions/slow")
    told = [outcome.retry_after for outcome in over.outcomes if outcome.status == 429]
    needed = (1 + WAITING) / over.goodput
    print(f"\n{over.goodput:.2f}/s with {1 + WAITING} places: {needed:.1f} s; Retry-After was {told}")
    assert set(over.statuses) == {200, 429}
    assert told[-1] is not None
    assert (1 + WAITING) * SLOW_SECONDS <= told[-1] <= math.ceil(needed) + 1


def test_clients_that_leave_do_not_make_room_for_more_than_fits(service: Service) -> None:
    """Their requests are still in TorchServe's queue."""

    def leave(_: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(service.prediction_url("slow"), content=b"x", headers=ALICE, timeout=httpx.Timeout(5, read=0.2))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(4)))
    assert_problem(post(service, "/predictions/slow"), 429, "overloaded")
    wait_for(service, 200, "/predictions/slow")


def in_background(
    ask: Callable[[], httpx.Response], *, times: int
) -> tuple[list[httpx.Response], list[threading.Thread]]:
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(times)]
    for thread in threads:
        thread.start()
    return answers, threads


def test_a_request_in_a_dying_worker_is_answered(service: Service) -> None:
    """Killed under clients: 503 and when to come back, and the neighbour model notices nothing."""
    answers, threads = in_background(lambda: post(service), times=8)
    died = post(service, body=b"die")
    began = time.monotonic()
    for thread in threads:
        thread.join()
    assert_problem(died, 503, "not-ready")
    assert {answer.status_code for answer in answers} <= {200, 503, 429}
    assert post(service, "/v1/segment", png()).status_code == 200
    until(lambda: (found := post(service)).status_code == 200 or assert_problem(found, 503, "not-ready"), 30)
    # The supervisor may still go by its last look, at the worker that was loading.
    until(lambda: httpx.get(f"{service.url}/ready").status_code == 200, 30)
    print(f"\nready again after {time.monotonic() - began:.1f} s")


def test_a_stuck_worker_is_ended_and_its_request_answered(service: Service) -> None:
    began = time.monotonic()
    assert_problem(post(service, body=b"hang"), 503, "not-ready")
    assert HARM_SECONDS <= time.monotonic() - began < HARM_SECONDS + 5
    wait_for(service, 200)
    print(f"\nready again after {time.monotonic() - began - HARM_SECONDS:.1f} s")


def test_a_killed_nginx_is_started_again(service: Service) -> None:
    [master] = [child for child in psutil.Process(service.process.pid).children() if child.name() == "nginx"]
    os.kill(master.pid, signal.SIGKILL)
    until(lambda: "segserve: nginx ended with code -9; starting it again" in service.text(), 5)
    until(lambda: accepts(service), 5)
    wait_for(service, 200)


def accepts(service: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.settings.inference_port), timeout=1).close()
    except OSError:
        return False
    return True


def test_slow_clients_were_closed(slow_clients: dict[str, socket.socket]) -> None:
    for client in slow_clients.values():
        client.settimeout(15)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_signal_costs_no_request_that_was_sent_before_and_no_secret_was_logged(service: Service) -> None:
    post(service, "/predictions/toy?password=hush-hush")
    answers, threads = in_background(lambda: post(service, "/predictions/slow"), times=3)
    time.sleep(0.3)
    service.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{service.url}/ready").status_code == 503, 2)
    code, output = service.end()
    for thread in threads:
        thread.join()
    assert (code, [answer.status_code for answer in answers]) == (0, [200] * 3)
    assert not [token for token in TOKENS.values() if token in output or token.split(".")[1] in output]
    assert "hush-hush" not in output
    assert not accepts(service)
