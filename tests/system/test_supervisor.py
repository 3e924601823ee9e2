"""`segserve serve` with the real TorchServe and a toy model: a real process, real signals, real sockets."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlers.supervisor import ServeSettings
from handlers.torchserve import free_port

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
START = """
import sys
from handlers.supervisor import ServeSettings, serve
sys.exit(serve(ServeSettings.model_validate_json(sys.argv[1])))
"""
TOY_HANDLER = '''
import os
import time

from prometheus_client import Gauge

IN_FLIGHT = Gauge("segserve_in_flight", "Requests in the workers", ["model"], multiprocess_mode="livesum")


class ToyHandler:
    """Sleeps and answers. Obeys the drain flag as segserve's own handlers do."""

    def initialize(self, context):
        self.model = context.manifest["model"]["modelName"]
        if self.model == "broken":
            raise ValueError("the example did not reproduce")
        IN_FLIGHT.labels(self.model).set(0)

    def handle(self, rows, context):
        if os.path.exists(os.environ["SEGSERVE_DRAIN_FLAG"]):
            for index in range(len(rows)):
                context.set_response_status(503, "Service Unavailable", index)
                context.set_response_header(index, "Retry-After", "1")
            return ["stopping"] * len(rows)
        IN_FLIGHT.labels(self.model).inc(len(rows))
        try:
            time.sleep(float(os.environ.get("TOY_SECONDS", "0.035")))
            kinds = [type(row["body"]).__name__ for row in rows]
            return [{"batch": len(rows), "kind": kind, "pid": os.getpid()} for kind in kinds]
        finally:
            IN_FLIGHT.labels(self.model).dec(len(rows))
'''


def write_toy_archive(
    store: Path, *, name: str = "toy", version: str = "1.0", workers: int = 1, runtime: str = "python"
) -> None:
    store.mkdir(exist_ok=True)
    model = {
        "modelName": name,
        "modelVersion": version,
        "handler": "toy_handler.py",
        "configFile": "model-config.yaml",
    }
    manifest = {"createdOn": "01/01/2026 00:00:00", "archiverVersion": "0.12.0", "runtime": runtime, "model": model}
    config = {"minWorkers": workers, "maxWorkers": workers, "batchSize": 8, "maxBatchDelay": 5, "responseTimeout": 30}
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("toy_handler.py", TOY_HANDLER)
        archive.writestr("model-config.yaml", "".join(f"{key}: {value}\n" for key, value in config.items()))


@dataclass
class Service:
    """A supervisor in a process of its own."""

    settings: ServeSettings
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @property
    def ops(self) -> str:
        return f"http://127.0.0.1:{self.settings.ops_port}"

    def prediction_url(self, model: str = "toy") -> str:
        return f"http://127.0.0.1:{self.settings.inference_port}/predictions/{model}"

    def ready(self) -> httpx.Response | None:
        assert self.process.poll() is None, self.text()
        try:
            return httpx.get(f"{self.ops}/ready")
        except httpx.TransportError:
            return None

    def wait_ready(self) -> None:
        until(lambda: (answer := self.ready()) is not None and answer.status_code == 200, 90, self.text)

    def text(self) -> str:
        return "".join(self.output)

    def end(self) -> tuple[int, str]:
        """Wait for the end; the exit code and all output."""
        code = self.process.wait(timeout=90)
        self.reader.join(timeout=5)
        return code, self.text()

    def processes(self) -> list[int]:
        """Java and its workers."""
        java = children(self.process.pid)
        return java + [worker for pid in java for worker in children(pid)]

    def read(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.output.extend(lines)


def until(
    condition: Callable[[], Any], seconds: float, detail: Callable[[], str] = str, *, pause: float = 0.05
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, detail()
        time.sleep(pause)


def is_gone(pid: int) -> bool:
    """Ended, even if nobody has asked how."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] in ("", "Z")


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@contextmanager
def serving(
    store: Path, *, temporary: Path, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[Service]:
    """Start a service on free ports; end it whatever happens."""
    ports = {name: free_port() for name in ("inference_port", "management_port", "ops_port")}
    settings = ServeSettings(store=store, **{**ports, **options})
    process = subprocess.Popen(
        [sys.executable, "-c", START, settings.model_dump_json()],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = Service(settings, process)
    service.read()
    try:
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        service.reader.join(timeout=5)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder for sockets, whose paths must be short; pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="sst-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def temporary() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@dataclass(frozen=True)
class Sent:
    """One request of the hammering clients."""

    at: float
    status: int | str
    retry_after: str | None = None


def hammer(url: str, stop: threading.Event, record: list[Sent]) -> None:
    """Send requests one after the other until the service is gone."""
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            at = time.monotonic()
            try:
                answer = client.post(url, content=b"x" * 50_000, headers={"Content-Type": "image/jpeg"})
            except httpx.TransportError as error:
                record.append(Sent(at, type(error).__name__))
                if isinstance(error, httpx.ConnectError):
                    return
            else:
                record.append(Sent(at, answer.status_code, answer.headers.get("Retry-After")))


def test_a_signal_costs_no_request_that_was_sent_before(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store", name="toy", workers=2)
    with serving(tmp_path / "store", temporary=temporary) as service:
        service.wait_ready()
        record: list[Sent] = []
        stop = threading.Event()
        clients = [threading.Thread(target=hammer, args=[service.prediction_url(), stop, record]) for _ in range(16)]
        for client in clients:
            client.start()
        time.sleep(2)
        signalled = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        until(lambda: (answer := service.ready()) is None or answer.status_code == 503, 1)
        code, output = service.end()
        took = time.monotonic() - signalled
        stop.set()
        for client in clients:
            client.join()
    before = [sent for sent in record if sent.at < signalled]
    after = [sent for sent in record if sent.at >= signalled]
    print(f"\nsent before the signal: {dict(Counter(sent.status for sent in before))}")
    print(f"sent after it: {dict(Counter(sent.status for sent in after))}; the stop took {took:.1f} s")
    assert code == 0, output
    assert len(before) > 200
    assert {sent.status for sent in before} == {200}
    assert all(sent.retry_after for sent in after if sent.status == 503)
    assert {sent.status for sent in after if isinstance(sent.status, int)} <= {200, 503}
    assert not list(temporary.iterdir())


def test_a_second_signal_does_not_wait_for_slow_requests(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary, environment={"TOY_SECONDS": "25"}) as service:
        service.wait_ready()
        record: list[Sent] = []
        client = threading.Thread(target=hammer, args=[service.prediction_url(), threading.Event(), record])
        client.start()
        until(lambda: 'segserve_in_flight{model="toy"} 1.0' in httpx.get(f"{service.ops}/metrics").text, 5)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(2)
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code, output = service.end()
        client.join()
    assert time.monotonic() - began < 15
    assert (code, record[0].status == 200) == (0, False)
    assert "segserve: the drain was cut short" in output


def test_a_signal_in_the_moment_of_readiness_still_drains(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary, environment={"TOY_SECONDS": "1.5"}) as service:
        until(lambda: (answer := service.ready()) is not None and answer.status_code == 200, 60, pause=0.005)
        service.process.send_signal(signal.SIGTERM)
        assert httpx.post(service.prediction_url(), content=b"x", timeout=30).status_code == 200
        code, output = service.end()
    assert code == 0
    assert "segserve: draining" in output


def test_a_signal_during_the_start_ends_it(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary) as service:
        until(lambda: "starting TorchServe" in service.text(), 10)
        service.process.send_signal(signal.SIGTERM)
        assert service.end()[0] == 0
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that only look."""
    store = tmp_path_factory.mktemp("served") / "store"
    write_toy_archive(store, name="toy")
    write_toy_archive(store, name="other-toy", version="2.1")
    environment = {"TS_CONFIG_FILE": "/nowhere", "PYTHONPATH": "/nowhere"}
    with short_folder() as temporary, serving(store, temporary=temporary, environment=environment) as service:
        service.wait_ready()
        yield service


def test_models_are_announced_and_answer(two_models: Service) -> None:
    until(lambda: "segserve: ops http" in two_models.text(), 5)
    for model, version in (("toy", "1.0"), ("other-toy", "2.1")):
        assert f"{model} {version} -> {two_models.prediction_url(model)}" in two_models.text()
        assert httpx.post(two_models.prediction_url(model), content=b"x").status_code == 200


def test_normal_operation_prints_nothing_but_its_own_lines(two_models: Service) -> None:
    assert [line for line in two_models.output if not line.startswith("segserve: ")] == []


def test_a_json_body_reaches_the_handler_as_bytes(two_models: Service) -> None:
    assert httpx.post(two_models.prediction_url(), json={"a": 1}).json()["kind"] == "bytearray"


def test_models_cannot_be_registered_over_http(two_models: Service) -> None:
    management = f"http://127.0.0.1:{two_models.settings.management_port}/models"
    assert httpx.post(management, params={"url": "toy.mar"}).status_code == 405


def test_ready_names_the_workers_of_each_version(two_models: Service) -> None:
    until(lambda: httpx.get(f"{two_models.ops}/live").json() == {"status": "live"}, 5)
    workers = {"ready": 1, "loading": 0, "other": 0}
    answer = httpx.get(f"{two_models.ops}/ready").json()
    assert answer == {"status": "ready", "models": {"toy": {"1.0": workers}, "other-toy": {"2.1": workers}}}


def test_one_scrape_has_every_family_once_and_passes_promtool(two_models: Service) -> None:
    httpx.post(two_models.prediction_url(), content=b"x")
    text = httpx.get(f"{two_models.ops}/metrics").text
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    expected = {
        "segserve_queue_depth",
        "segserve_workers",
        "segserve_in_flight",
        "segserve_torchserve_up",
        "ts_inference_requests",
        "ts_inference_latency_seconds",
        "ts_queue_time_seconds",
        "ts_requests_2xx",
    }
    assert expected <= set(names)
    assert 'segserve_workers{model="toy",state="other"} 0.0' in text
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("expected promtool in CI, but there is none: apt-get install prometheus")
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_second_service_runs_beside_the_first(two_models: Service, tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary) as second:
        second.wait_ready()
        own = httpx.post(second.prediction_url(), content=b"x").json()["pid"]
        assert own != httpx.post(two_models.prediction_url(), content=b"x").json()["pid"]
        second.process.send_signal(signal.SIGINT)
        assert second.end()[0] == 0
    assert list(temporary.iterdir()) == []
    assert httpx.post(two_models.prediction_url(), content=b"x").status_code == 200


def test_a_worker_that_dies_makes_the_service_unready_until_it_is_back(two_models: Service) -> None:
    os.kill(httpx.post(two_models.prediction_url(), content=b"x").json()["pid"], signal.SIGKILL)
    until(lambda: (answer := two_models.ready()) is not None and answer.status_code == 503, 10)
    answer = two_models.ready()
    assert answer is not None
    assert "model toy 1.0: no worker is ready" in answer.json()["reasons"][0]
    assert answer.headers["Retry-After"]
    two_models.wait_ready()
    samples = [line for line in httpx.get(f"{two_models.ops}/metrics").text.splitlines() if "_in_flight{" in line]
    assert sorted(samples) == ['segserve_in_flight{model="other-toy"} 0.0', 'segserve_in_flight{model="toy"} 0.0']


def test_a_hanging_java_leaves_the_ops_port_quick(two_models: Service) -> None:
    (java,) = children(two_models.process.pid)
    os.kill(java, signal.SIGSTOP)
    try:
        for path in ("metrics", "ready", "live"):
            began = time.monotonic()
            text = httpx.get(f"{two_models.ops}/{path}").text
            assert time.monotonic() - began < 1
            assert path != "metrics" or "segserve_torchserve_up 0.0" in text
        until(lambda: httpx.get(f"{two_models.ops}/live").status_code == 503, 15)
        assert httpx.get(f"{two_models.ops}/ready").json()["reasons"] == ["TorchServe does not answer"]
    finally:
        os.kill(java, signal.SIGCONT)
    two_models.wait_ready()


def test_java_and_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary) as service:
        service.wait_ready()
        processes = service.processes()
        assert len(processes) == 2
        service.process.kill()
        until(lambda: all(is_gone(pid) for pid in processes), 10)


def test_the_death_of_java_ends_the_service(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary) as service:
        service.wait_ready()
        java, worker = service.processes()
        os.kill(java, signal.SIGKILL)
        code, output = service.end()
        assert code == 1
        assert "segserve: TorchServe ended by itself" in output
        until(lambda: is_gone(worker), 1)
    assert list(temporary.iterdir()) == []


def test_a_model_that_cannot_load_is_given_up_with_the_workers_last_words(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store", name="broken")
    with serving(tmp_path / "store", temporary=temporary, start_seconds=20.0) as service:
        until(lambda: (answer := service.ready()) is not None and "no worker is ready" in answer.text, 20)
        code, output = service.end()
    assert code == 1
    assert "expected every model to be ready within 20 s, but model broken 1.0: no worker is ready" in output
    assert "ValueError: the example did not reproduce" in output


def test_an_archive_that_torchserve_refuses_ends_the_service(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store", runtime="cobol")
    with serving(tmp_path / "store", temporary=temporary) as service:
        code, output = service.end()
    assert code == 1
    assert "segserve: TorchServe did not take the archive toy.mar (toy 1.0)" in output


@pytest.mark.parametrize("option", ["inference_port", "management_port", "ops_port"])
def test_a_taken_port_is_named(tmp_path: Path, temporary: Path, option: str) -> None:
    write_toy_archive(tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path / "store", temporary=temporary, **{option: port}) as service:
            code, output = service.end()
    assert code == 1
    assert output == (
        f"segserve: expected port {port} of 127.0.0.1 to be free, but got: Address already in use; "
        f"stop what listens there, or choose another with --{option.replace('_', '-')}\n"
    )
