"""The real nginx by itself: TorchServe and the ops port are not there."""

import errno
import http.client
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from handlers import gateway as gateway_module
from handlers.gateway import Gateway
from handlers.management import VersionState, WorkerState
from handlers.nginx import Place
from handlers.settings import GatewaySettings, ServeSettings
from handlers.torchserve import ServeError, free_port
from segserve.whole import write_whole
from tests.system.toy_service import is_gone, nginx_or_skip, short_folder, until

TOY = Place(name="toy", task="segmentation", version="1.0", limit=4, answer_seconds=10)


@pytest.fixture(autouse=True)
def nginx() -> None:
    nginx_or_skip()


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def make(folder: Path, **gateway: Any) -> tuple[Gateway, int]:
    settings = ServeSettings(inference_port=free_port(), ops_port=free_port())
    made = Gateway(settings, GatewaySettings(**gateway), (TOY,), folder=folder / "nginx", torchserve_port=free_port())
    return made, settings.inference_port


def start(gateway: Gateway, port: int) -> None:
    gateway.start()
    until(lambda: is_open(port), 5)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_without_a_supervisor_behind_it_the_answer_is_still_a_problem(folder: Path) -> None:
    gateway, port = make(folder)
    start(gateway, port)
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=b"x", headers={"X-Request-ID": "a-1"})
    finally:
        gateway.stop(seconds=5)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (answer.headers["content-type"], answer.json()["request_id"]) == ("application/problem+json", "a-1")


def test_its_folder_may_have_a_space_in_its_name(folder: Path) -> None:
    gateway, port = make(folder / "a b")
    start(gateway, port)
    try:
        url = f"http://127.0.0.1:{port}"
        listed, refused = httpx.get(f"{url}/v1/models"), httpx.post(f"{url}/v1/segment", content=b"x")
    finally:
        gateway.stop(seconds=5)
    assert [model["name"] for model in listed.json()["models"]] == ["toy"]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


def test_a_line_break_after_a_path_makes_another_path(folder: Path) -> None:
    """Else it would end the request line that the ops port gets."""
    gateway, port = make(folder)
    start(gateway, port)
    try:
        statuses = [httpx.get(f"http://127.0.0.1:{port}/{page}%0a").status_code for page in ("ready", "live")]
    finally:
        gateway.stop(seconds=5)
    assert statuses == [404, 404]


def test_what_nginx_refuses_by_itself_is_counted_by_the_model_that_was_asked(folder: Path) -> None:
    (folder / "tokens").write_text(f"alice.{'s3cret' * 5}\n")
    gateway, port = make(folder, tokens=folder / "tokens", max_body_bytes=10, requests_per_second=1, burst=2)
    start(gateway, port)
    known, unknown = ({"Authorization": f"Bearer alice.{secret * 5}"} for secret in ("s3cret", "wrong!"))
    asked: list[tuple[str, dict[str, str], bytes]] = [
        ("/v1/segment", {}, b"x"),
        ("/predictions/toy", unknown, b"x"),
        ("/v1/segment", known, b"x" * 11),
        *[("/v1/segment", known, b"x")] * 3,
        ("/predictions/nobody", known, b"x"),
    ]
    try:
        with socket.create_connection(("127.0.0.1", port)) as leaves:
            head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nAuthorization: {known['Authorization']}\r\n"
            leaves.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())
            time.sleep(0.2)  # until nginx has read it
        for path, headers, body in asked:
            httpx.post(f"http://127.0.0.1:{port}{path}", content=body, headers=headers)
        httpx.get(f"http://127.0.0.1:{port}/ready")
    finally:
        gateway.stop(seconds=5)
    expected = {"200": 0, "401": 1, "403": 1, "413": 1, "429": 1, "503": 2, "504": 0}
    until(lambda: gateway.answers == {("toy", status): count for status, count in expected.items()}, 5)


def test_tls(folder: Path) -> None:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-nodes"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made = ["openssl", "req", "-x509", *curve, *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    gateway, port = make(folder, certificate=certificate, key=key)
    start(gateway, port)
    try:
        trusting = ssl.create_default_context(cafile=str(certificate))
        listed = httpx.get(f"https://localhost:{port}/v1/models", verify=trusting)
        plain = httpx.get(f"http://localhost:{port}/v1/models")
    finally:
        gateway.stop(seconds=5)
    assert listed.json()["models"] == [{"name": "toy", "version": "1.0", "task": "segmentation"}]
    assert (plain.status_code, plain.json()["detail"]) == (400, "expected https:// here, but got plain HTTP")


def test_a_certificate_that_cannot_be_read_is_named(folder: Path) -> None:
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_text("not PEM")
    with pytest.raises(ValueError, match=r"expected .*tls\.crt and .*tls\.key to be a certificate and its key"):
        make(folder, certificate=folder / "tls.crt", key=folder / "tls.key")


def test_tokens_are_renewed_and_no_request_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway_module, "SETTLED_SECONDS", 0.1)
    monkeypatch.setattr(gateway_module, "CLOSING_SECONDS", 0.4)
    monkeypatch.setattr(gateway_module, "_print", lambda line: None)  # capfd loses what is written while it reads
    token = {name: f"{name}.{name}{'0123456789' * 2}" for name in ("alice", "bob", "carol")}
    file = folder / "tokens"
    write_whole(file, f"{token['alice']}\n{token['carol']}\n")
    gateway, port = make(folder, tokens=file, requests_per_second=100_000, burst=100_000)

    def status(name: str) -> int:
        gateway.watch()
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            return ask(connection, token[name])

    start(gateway, port)
    try:
        assert (status("alice"), status("bob")) == (503, 403), "there is no TorchServe"
        with asking(port, token["carol"]) as outcomes:
            for first, other in (("bob", "alice"), ("alice", "bob")):
                write_whole(file, f"{token[first]}\n{token['carol']}\n")
                until(lambda who=first: status(who) == 503, 5)  # type: ignore[misc]
                until(lambda who=other: status(who) == 403, 5)  # type: ignore[misc]
            for wrong in (f"{token['bob']}\nhush", None):
                write_whole(file, wrong) if wrong else file.unlink()
                said = said_while_watching(gateway, capfd, "keeps the tokens and the certificate it has: ")
                assert "hush" not in said
            assert (status("alice"), status("bob")) == (503, 403)
        assert set(outcomes) == {503}, Counter(outcomes)
        assert len(outcomes) > 20
    finally:
        gateway.stop(seconds=5)


def said_while_watching(gateway: Gateway, capfd: pytest.CaptureFixture[str], words: str) -> str:
    said: list[str] = []

    def is_said() -> bool:
        gateway.watch()
        said.append(capfd.readouterr().out)
        return words in "".join(said)

    until(is_said, 10)
    return "".join(said)


def test_another_version_is_listed_and_has_its_own_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway_module, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(gateway_module, "CLOSING_SECONDS", 0.1)
    gateway, port = make(folder, waiting_batches=2)
    workers: dict[WorkerState, int] = {"ready": 1, "loading": 0, "other": 0}
    same = VersionState(name="toy", version="1.0", workers=workers, pending=0, batch_delay_seconds=0, places=8)
    start(gateway, port)

    def listed() -> str:
        return str(httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["models"][0]["version"])

    try:
        assert listed() == "1.0"
        gateway.admit({"toy": replace(same, version="2.0", answer_seconds=50)})
        assert listed() == "2.0"
        said_while_watching(gateway, capfd, "the gateway has taken its tokens, certificate and places anew")
        configuration = (folder / "nginx/nginx.conf").read_text()
        assert "max_conns=24;" in configuration
        assert "proxy_read_timeout 60s;" in configuration
        gateway.admit({})
        assert gateway.models == (replace(TOY, version="2.0", limit=24, answer_seconds=60),)
        assert listed() == "2.0"
    finally:
        gateway.stop(seconds=5)


def test_a_list_that_a_full_disk_did_not_take_is_written_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workers: dict[WorkerState, int] = {"ready": 1, "loading": 0, "other": 0}
    answers = VersionState(name="toy", version="2.0", workers=workers, pending=0, batch_delay_seconds=0)
    gateway, _ = make(folder)
    with monkeypatch.context() as patched:
        patched.setattr(gateway_module, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            gateway.admit({"toy": answers})
    gateway.admit({"toy": answers})
    assert '"version": "2.0"' in (folder / "nginx/models.json").read_text()


def ask(connection: http.client.HTTPConnection, token: str) -> int:
    connection.request("POST", "/v1/segment", body=b"x", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


@contextmanager
def asking(port: int, token: str) -> Iterator[list[int | str]]:
    """Four clients that ask one time after the other, over connections that they never look at; what comes of each."""
    outcomes: list[int | str] = []
    done = threading.Event()

    def client() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            while not done.is_set():
                try:
                    outcomes.append(ask(connection, token))
                except (OSError, http.client.HTTPException) as error:
                    outcomes.append(repr(error))
                    connection.close()
                done.wait(0.01)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_everything_it_writes_is_in_its_folder_and_the_configuration_is_read_only(folder: Path) -> None:
    gateway, port = make(folder)
    start(gateway, port)
    gateway.stop(seconds=5)
    assert (folder / "nginx/nginx.conf").stat().st_mode & 0o777 == 0o400
    assert {path.name for path in (folder / "nginx").iterdir()} >= {"body", "proxy", "refusals", "unready"}


def test_workers_do_not_outlive_a_killed_master(folder: Path) -> None:
    gateway, port = make(folder)
    start(gateway, port)
    before = processes(gateway)
    try:
        before[0].kill()
        until(lambda: gateway._process.poll() is not None, 5)
        gateway.watch()
        until(lambda: is_open(port), 5)
        assert all(is_gone(process.pid) for process in before)
        assert len(processes(gateway)) >= 3
    finally:
        gateway.stop(seconds=5)
    assert not is_open(port)


def test_what_ends_again_and_again_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "MOST_STARTS", 1)
    gateway, port = make(folder)
    start(gateway, port)
    processes(gateway)[0].kill()
    until(lambda: gateway._process.poll() is not None, 5)
    with pytest.raises(ServeError, match="nginx ended 1 times, the last time with code -9"):
        gateway.watch()


def processes(gateway: Gateway) -> list[psutil.Process]:
    """The master first, then its workers, which appear a moment after it."""
    master = psutil.Process(gateway._process.pid)
    deadline = time.monotonic() + 5
    while len(master.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return [master, *master.children()]
