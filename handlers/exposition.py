"""One scrape for everything: the workers' metrics, the supervisor's, and TorchServe's under names Prometheus takes.

Naming follows https://prometheus.io/docs/practices/naming/: snake case, base units, `_total` for counters only.
"""

import http.client
import os
import re
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from handlers.health import Health
from handlers.management import WORKER_STATES, is_alive
from handlers.torchserve import LOOPBACK

_LIVE_GAUGE_FILE = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


class _Family(NamedTuple):
    name: str
    """As prometheus-client counts it: without `_total`."""
    factor: float
    help: str


_TORCHSERVE_FAMILIES = {
    "ts_inference_requests": _Family("ts_inference_requests", 1, "Requests for a prediction that TorchServe took"),
    "ts_inference_latency_microseconds": _Family(
        "ts_inference_latency_seconds", 1e-6, "Sum of the times from a request's arrival in TorchServe to its answer"
    ),
    "ts_queue_latency_microseconds": _Family(
        "ts_queue_latency_seconds", 1e-6, "Sum of the times that requests waited in TorchServe's queue"
    ),
    "Requests2XX": _Family(
        "ts_requests_2xx", 1, "Answers of TorchServe with a status from 200 to 299, on all its ports"
    ),
    "Requests4XX": _Family(
        "ts_requests_4xx", 1, "Answers of TorchServe with a status from 400 to 499, on all its ports"
    ),
    "Requests5XX": _Family(
        "ts_requests_5xx", 1, "Answers of TorchServe with a status from 500 to 599, on all its ports"
    ),
    "QueueTime": _Family("ts_queue_time_seconds", 1e-3, "Time in TorchServe's queue, of the last request only"),
    "WorkerThreadTime": _Family(
        "ts_worker_thread_time_seconds", 1e-3, "TorchServe's own share of the time for a batch, of the last batch only"
    ),
    "WorkerLoadTime": _Family("ts_worker_load_time_seconds", 1e-3, "From a worker's start until its model was loaded"),
    "HandlerTime": _Family("ts_handler_time_seconds", 1e-3, "Time inside the handler, of the last batch only"),
    "PredictionTime": _Family("ts_prediction_time_seconds", 1e-3, "Time inside the worker, of the last batch only"),
}
"""What is served of TorchServe's metrics. The rest are system metrics, which are switched off and have no samples."""

_TORCHSERVE_LABELS = {
    "Level": "level",
    "Hostname": "hostname",
    "ModelName": "model_name",
    "WorkerName": "worker_name",
}


class WorkerMetrics(Collector):
    """What the handlers count, added up over all workers, the dead ones' counters included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        """Read the workers' files. One that a worker is creating at this moment can be half written: read again."""
        for _ in range(3):
            try:
                return self._collect()
            except (struct.error, ValueError, FileNotFoundError):
                time.sleep(0.02)
        return self._collect()

    def in_flight(self) -> float:
        """Requests that are inside living workers."""
        families = (family for family in self.collect() if family.name == "segserve_in_flight")
        return sum(sample.value for family in families for sample in family.samples)

    def _collect(self) -> list[Metric]:
        with self._lock:
            self._forget_dead_workers()
        workers = MultiProcessCollector(None, path=str(self.folder))  # type: ignore[no-untyped-call]
        return list(workers.collect())  # type: ignore[no-untyped-call]

    def _forget_dead_workers(self) -> None:
        """A gauge says how things are now, so it ends with its process; a killed worker cannot see to that itself."""
        for file in os.listdir(self.folder):
            found = _LIVE_GAUGE_FILE.fullmatch(file)
            if found and not is_alive(int(found[1])):
                mark_process_dead(int(found[1]), str(self.folder))  # type: ignore[no-untyped-call]


class SupervisorMetrics(Collector):
    """What only the management API knows."""

    def __init__(self, health: Health) -> None:
        self.health = health

    def collect(self) -> Iterator[Metric]:
        """Queue of each model, summed over its versions; workers of those that are to answer.

        A version that is kept for a rollback must not hide that the one that answers has lost its workers.
        """
        versions, needed = self.health.versions, self.health.needed()
        queue = GaugeMetricFamily("segserve_queue_depth", "Requests that wait for a worker", labels=["model"])
        workers = GaugeMetricFamily("segserve_workers", "Workers by state", labels=["model", "state"])
        for name in self.health.names:
            own = [version for version in versions if version.name == name]
            if own:
                queue.add_metric([name], sum(version.pending for version in own))
            for state in WORKER_STATES:
                workers.add_metric([name, state], sum(one.workers[state] for one in needed if one.name == name))
        yield queue
        yield workers


class GatewayMetrics(Collector):
    """What clients were answered by the gateway, which refuses much that no worker hears of.

    Args:
        answers: how many, by model and status; counted on by others.
    """

    def __init__(self, answers: Mapping[tuple[str, str], int]) -> None:
        self.answers = answers

    def collect(self) -> Iterator[Metric]:
        """One family."""
        family = CounterMetricFamily(
            "segserve_gateway_answers",
            "Answers of the gateway to requests that name a model",
            labels=["model", "status"],
        )
        for (model, status), count in list(self.answers.items()):
            family.add_metric([model, status], count)
        yield family


class TorchServeMetrics(Collector):
    """TorchServe's own metrics, fetched from its loopback port and renamed."""

    def __init__(self, port: int, *, timeout: float) -> None:
        self.port = port
        self.timeout = timeout

    def collect(self) -> Iterator[Metric]:
        """First whether TorchServe answered, then what."""
        try:
            text = self._fetch()
        except (OSError, http.client.HTTPException):
            text = None
        yield GaugeMetricFamily(
            "segserve_torchserve_up", "1 if TorchServe answered this scrape with its metrics", value=text is not None
        )
        yield from translate(text_string_to_metric_families(text or ""))

    def _fetch(self) -> str:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=self.timeout)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise http.client.HTTPException(f"TorchServe's metrics port answered {answer.status}")
            return text
        finally:
            connection.close()


class Scrape(Collector):
    """All collectors in one; a family that two of them know is served once, the first one's."""

    def __init__(self, *collectors: Collector) -> None:
        self.collectors = collectors

    def collect(self) -> Iterator[Metric]:
        """Each family once."""
        seen = set()
        for collector in self.collectors:
            for family in collector.collect():
                if family.name not in seen:
                    seen.add(family.name)
                    yield family


def translate(families: Iterable[Metric]) -> Iterator[Metric]:
    """Rename TorchServe's families, convert them to base units and say what they mean."""
    for family in families:
        target = _TORCHSERVE_FAMILIES.get(family.name)
        if target is None or not family.samples:
            continue
        renamed = Metric(target.name, target.help, family.type)
        suffix = "_total" if family.type == "counter" else ""
        for sample in family.samples:
            labels = {_TORCHSERVE_LABELS.get(name, name): value for name, value in sample.labels.items()}
            renamed.add_sample(target.name + suffix, labels, sample.value * target.factor)
        yield renamed
