"""`segserve serve` with the real TorchServe and a toy model: a real process, real signals, real sockets."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.toy_service import (
    Sent,
    Service,
    children,
    hammer,
    is_gone,
    nginx_or_skip,
    serving,
    short_folder,
    until,
    write_toy_archive,
)

pytestmark = pytest.mark.system


def test_a_signal_costs_no_request_that_was_sent_before(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store", name="toy", minWorkers=2, maxWorkers=2)
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


def test_a_signal_while_one_model_does_not_load_costs_no_request_to_another(tmp_path: Path, temporary: Path) -> None:
    nginx_or_skip()
    for name in ("toy", "broken"):
        write_toy_archive(tmp_path / "store", name=name)
    environment = {"TOY_SECONDS": "4"}
    with serving(tmp_path / "store", temporary=temporary, environment=environment, gateway={}) as service:
        until(lambda: waits_only_for(service, "broken"), 60)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, service.prediction_url(), content=b"x", timeout=30)
            until(lambda: 'segserve_in_flight{model="toy"} 1.0' in httpx.get(f"{service.ops}/metrics").text, 5)
            service.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert asked.result().status_code == 200
        code, output = service.end()
    assert (code, time.monotonic() - began < 20) == (0, True), output
    assert "segserve: draining" in output
    assert "the drain was cut short" not in output


def waits_only_for(service: Service, model: str) -> bool:
    answer = service.ready()
    reasons = answer.json().get("reasons", []) if answer is not None else []
    return len(reasons) == 1 and reasons[0].startswith(f"model {model} 1.0: no worker is ready")


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


def test_java_nginx_and_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path, temporary: Path) -> None:
    nginx_or_skip()
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary, gateway={}) as service:
        service.wait_ready()
        processes = service.processes()
        assert {"java", "nginx"} <= {psutil.Process(pid).name() for pid in processes}
        assert len(processes) >= 5
        service.process.kill()
        until(lambda: all(is_gone(pid) for pid in processes), 10)


def test_what_a_killed_service_left_is_deleted_at_the_next_start(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary) as service:
        service.wait_ready()
        [left] = temporary.glob("segserve-*")
        service.process.kill()
        service.end()
    assert left.exists()
    with serving(tmp_path / "store", temporary=temporary) as service:
        service.wait_ready()
        [own] = temporary.glob("segserve-*")
        assert own != left


def test_the_death_of_java_ends_the_service_after_its_clients_were_answered(tmp_path: Path, temporary: Path) -> None:
    nginx_or_skip()
    write_toy_archive(tmp_path / "store")
    environment = {"TOY_SECONDS": "20"}
    with serving(tmp_path / "store", temporary=temporary, environment=environment, gateway={}) as service:
        service.wait_ready()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(httpx.post, service.prediction_url(), content=b"x", timeout=30) for _ in range(4)]
            until(lambda: 'segserve_in_flight{model="toy"} 0.0' not in httpx.get(f"{service.ops}/metrics").text, 10)
            time.sleep(0.5)
            java, worker = service.torchserve()
            os.kill(java, signal.SIGKILL)
            began = time.monotonic()
            answers = [one.result() for one in asked]
        code, output = service.end()
        took = time.monotonic() - began
        assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "2")] * 4
        assert {answer.json()["type"] for answer in answers} == {"urn:segserve:problem:not-ready"}
        assert code == 1
        assert took < 10
        assert "segserve: TorchServe ended by itself" in output
        until(lambda: is_gone(worker), 1)
    assert list(temporary.iterdir()) == []


def test_a_model_that_cannot_load_is_given_up_with_the_workers_last_words(tmp_path: Path, temporary: Path) -> None:
    write_toy_archive(tmp_path / "store", name="broken")
    with serving(tmp_path / "store", temporary=temporary, start_seconds=12.0) as service:
        until(lambda: (answer := service.ready()) is not None and "no worker is ready" in answer.text, 12)
        code, output = service.end()
    assert code == 1
    assert "expected every model to be ready within 12 s, but model broken 1.0: no worker is ready" in output
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


@pytest.fixture
def small_disk(temporary: Path) -> list[str]:
    """A command that runs another where the temporary folder is a disk of 24 MiB."""
    mount = f'mount -t tmpfs -o size=24m tmpfs {temporary} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: needs root")
    return command


def test_a_disk_that_is_full_at_the_start_is_named(tmp_path: Path, temporary: Path, small_disk: list[str]) -> None:
    write_toy_archive(tmp_path / "store")
    within = [*small_disk, "sh", "-c", f'head -c {24 * 2**20 - 4096} /dev/zero > {temporary}/fill; exec "$@"', "sh"]
    with serving(tmp_path / "store", temporary=temporary, within=within) as service:
        code, output = service.end()
    assert code == 1
    assert output == (
        f"segserve: expected room for temporary files below {temporary}, but got: No space left on device; "
        "make room there, or let TMPDIR name another folder\n"
    )


@pytest.mark.chaos
def test_a_disk_that_fills_up_costs_large_uploads_and_new_workers_only(
    tmp_path: Path, temporary: Path, small_disk: list[str]
) -> None:
    nginx_or_skip()
    write_toy_archive(tmp_path / "store")
    with serving(tmp_path / "store", temporary=temporary, within=small_disk, gateway={}) as service:
        service.wait_ready()
        worker = httpx.post(service.prediction_url(), content=b"x").json()["pid"]
        fill = Path(f"/proc/{service.process.pid}/root{temporary}/fill")
        with pytest.raises(OSError, match="No space left on device"):
            fill.write_bytes(b"x" * 24 * 2**20)
        assert httpx.post(service.prediction_url(), content=b"x").status_code == 200
        large = httpx.post(service.prediction_url(), content=b"x" * 3 * 2**20)
        assert (large.status_code, large.headers["retry-after"]) == (503, "2")
        assert not not_ready(service)

        os.kill(worker, signal.SIGKILL)
        until(lambda: not_ready(service), 10)
        answers = list[int]()

        def gave_up() -> bool:
            """A worker may find room to start, but none for its first request; at last it does not start."""
            answers.append(httpx.post(service.prediction_url(), content=b"x", timeout=30).status_code)
            return not_ready(service) and len(answers) >= 5

        until(gave_up, 60)
        assert set(answers) == {503}
        fill.unlink()
        service.wait_ready()
        assert httpx.post(service.prediction_url(), content=b"x" * 3 * 2**20).status_code == 200


def not_ready(service: Service) -> bool:
    answer = service.ready()
    return answer is not None and answer.status_code == 503
