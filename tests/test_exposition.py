import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from handlers.exposition import GatewayMetrics, Scrape, TorchServeMetrics, WorkerMetrics, translate
from handlers.torchserve import free_port

TORCHSERVE_TEXT = """\
# HELP Requests2XX Torchserve prometheus counter metric with unit: Count
# TYPE Requests2XX counter
Requests2XX{Level="Host",Hostname="vm",} 2.0
# HELP ts_inference_latency_microseconds Torchserve prometheus counter metric with unit: Microseconds
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{model_name="toy",model_version="default",hostname="vm",} 78560.0
# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="toy",model_version="default",hostname="vm",} 1.0
# HELP QueueTime Torchserve prometheus gauge metric with unit: Milliseconds
# TYPE QueueTime gauge
QueueTime{Level="Host",Hostname="vm",} 39.0
# HELP HandlerTime Torchserve prometheus gauge metric with unit: ms
# TYPE HandlerTime gauge
# HELP GPUUtilization Torchserve prometheus gauge metric with unit: Percent
# TYPE GPUUtilization gauge
GPUUtilization{Level="Host",DeviceId="0",Hostname="vm",} 3.0
"""
"""Recorded from TorchServe 0.12.0; the last line added."""

WORKER = """
import os, sys, time
from prometheus_client import Counter, Gauge
Counter("segserve_requests_total", "Requests answered", ["model"]).labels("toy").inc(3)
Gauge("segserve_in_flight", "Requests in the workers", ["model"], multiprocess_mode="livesum").labels("toy").set(2)
print("counted", flush=True)
sys.stdin.read()
"""


class Fixed(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def start_worker(folder: Path) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "counted\n"
    return worker


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()


def translated() -> dict[str, float]:
    families = translate(text_string_to_metric_families(TORCHSERVE_TEXT))
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_torchserves_metrics_get_snake_case_and_base_units() -> None:
    assert translated() == {
        "ts_requests_2xx_total": 2.0,
        "ts_inference_latency_seconds_total": pytest.approx(0.07856),
        "ts_inference_requests_total": 1.0,
        "ts_queue_time_seconds": pytest.approx(0.039),
    }


def test_labels_get_snake_case_too() -> None:
    labels = {
        name
        for family in translate(text_string_to_metric_families(TORCHSERVE_TEXT))
        for sample in family.samples
        for name in sample.labels
    }
    assert labels == {"level", "hostname", "model_name", "model_version"}


def test_a_family_that_two_collectors_know_is_served_once() -> None:
    ours, theirs = GaugeMetricFamily("x", "ours", value=1), GaugeMetricFamily("x", "theirs", value=2)
    own = CounterMetricFamily("y", "their own", value=3)
    assert list(Scrape(Fixed(ours), Fixed(theirs, own)).collect()) == [ours, own]


def test_without_torchserve_the_scrape_says_so() -> None:
    text = generate_latest(TorchServeMetrics(free_port(), timeout=0.5)).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["segserve_torchserve_up 0.0"]


def test_before_the_first_worker_there_is_nothing(tmp_path: Path) -> None:
    assert WorkerMetrics(tmp_path).collect() == []
    assert WorkerMetrics(tmp_path).in_flight() == 0


def test_a_dead_workers_counters_stay_and_its_gauges_go(tmp_path: Path) -> None:
    first, second = start_worker(tmp_path), start_worker(tmp_path)
    try:
        assert WorkerMetrics(tmp_path).in_flight() == 4
        end(first)
        assert WorkerMetrics(tmp_path).in_flight() == 2
        text = generate_latest(Scrape(WorkerMetrics(tmp_path))).decode()
        assert 'segserve_requests_total{model="toy"} 6.0' in text
    finally:
        end(first)
        end(second)


def test_a_half_written_file_that_stays_is_an_error_and_not_a_silence(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(b"\x01")
    with pytest.raises(Exception, match="unpack"):
        WorkerMetrics(tmp_path).collect()


def test_renamed_metrics_pass_promtool() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("expected promtool in CI, but there is none: apt-get install prometheus")
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    families = list(translate(text_string_to_metric_families(TORCHSERVE_TEXT)))
    text = generate_latest(Fixed(*families))
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_gateway_s_answers_are_counted_by_model_and_status() -> None:
    text = generate_latest(GatewayMetrics({("toy", "200"): 3, ("my toy", "429"): 1})).decode()
    assert 'segserve_gateway_answers_total{model="toy",status="200"} 3.0' in text
    assert 'segserve_gateway_answers_total{model="my toy",status="429"} 1.0' in text
