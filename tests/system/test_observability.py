"""A real Prometheus scrapes the service under a little load: every query is answered, other images are noticed."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from deploy import dashboard
from handlers.archive import package
from handlers.torchserve import free_port
from segserve.artifact import Artifact, save_artifact
from segserve.drift import BINS, bin_of, summary
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import build_predictor
from segserve.spec import ReferenceSpec
from tests.conftest import random_image
from tests.system.toy_service import ROOT, Service, serving, short_folder, until

pytestmark = pytest.mark.system

MODEL = "cells"
USUAL, OTHER = range(15), range(120)
"""Seeds of images. The first are noise, as those of the reference; the others are of one dark colour each."""
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"


def usual(seed: int) -> NDArray[np.uint8]:
    return random_image(48, 64, seed=seed)


def other(seed: int) -> NDArray[np.uint8]:
    return np.full((48, 64, 3), (seed % 3, 0, 2 * (seed % 5)), dtype=np.uint8)


def with_reference(artifact: Artifact, folder: Path) -> Artifact:
    """As export does, on noise with other seeds."""
    predictor = build_predictor(artifact.spec, TorchEngine(artifact.network))
    counts_K, images = np.zeros(artifact.spec.num_classes), dict.fromkeys(BINS, 0)
    for seed in range(100, 120):
        [prediction] = predictor.predict([Query(image_HWC=usual(seed))])
        counted = summary(prediction, num_classes=artifact.spec.num_classes)
        counts_K += counted.counts_K
        images[bin_of(counted.confidence)] += 1
    reference = ReferenceSpec(
        split="val",
        num_images=20,
        class_shares=tuple(counts_K / counts_K.sum()),
        confidence_shares={entry: count / 20 for entry, count in images.items()},
    )
    spec = artifact.spec.model_copy(update={"reference": reference})
    return save_artifact(folder, spec, artifact.network, example_HWC=usual(0))


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def ask(self, query: str) -> list[Any]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    def number(self, query: str) -> float:
        """The one sample's value, or not a number."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else float("nan")

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def service(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package: prometheus)")
    folder = tmp_path_factory.mktemp("observed")
    package(with_reference(artifact, folder / "artifact").path, name=MODEL, store=folder / "store")
    with (
        short_folder() as temporary,
        serving(folder / "store", temporary=temporary, environment={"OMP_NUM_THREADS": "1"}) as running,
    ):
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The repository's rules, computed every second instead of every minute."""
    folder = tmp_path_factory.mktemp("prometheus")
    labels = {"namespace": "a", "pod": "1", "app_kubernetes_io_instance": "stable"}
    targets = [{"targets": [service.ops.removeprefix("http://")], "labels": labels}]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "segserve", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address={address}", "--log.level=warn"], stderr=log
        )
    running = Prometheus(f"http://{address}")
    try:
        until(running.is_up, 60, (folder / "log").read_text)
        until(lambda: running.ask("segserve_workers"), 30)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)


def png(image_HWC: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def send(service: Service, images: list[NDArray[np.uint8]]) -> None:
    def one(image_HWC: NDArray[np.uint8]) -> int:
        head = {"Content-Type": "image/png"}
        return httpx.post(service.prediction_url(MODEL), content=png(image_HWC), headers=head, timeout=60).status_code

    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(one, images)) == {200}


@pytest.fixture(scope="module")
def watched(service: Service, prometheus: Prometheus) -> Prometheus:
    """After usual images, one that cannot be read and one that comes too late."""
    send(service, [usual(seed) for seed in USUAL])
    head = {"Content-Type": "image/png"}
    late = {**head, "X-Segserve-Deadline-Ms": "1"}
    bad = httpx.post(service.prediction_url(MODEL), content=b"no image", headers=head, timeout=60)
    gone = httpx.post(service.prediction_url(MODEL), content=png(random_image(1500, 1500)), headers=late, timeout=60)
    assert (bad.status_code, gone.status_code) == (415, 504)
    send(service, [usual(seed) for seed in USUAL])
    count = f'segserve_requests_total{{model="{MODEL}",outcome="ok"}}'
    until(lambda: prometheus.number(count) == 2 * len(USUAL), 30)
    until(lambda: prometheus.ask("segserve:class_psi:rate1h"), 30)
    until(lambda: prometheus.ask("rate(ts_requests_5xx_total[1m])"), 30)
    return prometheus


def test_every_query_of_the_dashboard_has_an_answer(watched: Prometheus) -> None:
    panels = json.loads(dashboard.FILE.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    filled = [
        query.replace("$__rate_interval", "1m").replace("$model", ".+")
        for query in queries
        if "segserve_gateway_" not in query  # there is none here
    ]

    def unanswered() -> list[str]:
        return [query for query in filled if not is_answered(watched, query)]

    until(lambda: unanswered() == [], 30, lambda: str(unanswered()))  # recording rules come after what they record


def is_answered(prometheus: Prometheus, query: str) -> bool:
    return any(sample["value"][1] != "NaN" for sample in prometheus.ask(query))


def test_the_autoscalers_queries_have_an_answer(watched: Prometheus) -> None:
    components = ROOT / "deploy" / "kubernetes" / "components"
    keda = yaml.safe_load((components / "keda" / "autoscaler.yaml").read_text())["spec"]["triggers"]
    hpa = yaml.safe_load((components / "hpa" / "adapter.yaml").read_text())["rules"]["custom"]
    queries = [trigger["metadata"]["query"] for trigger in keda] + [rule["metricsQuery"] for rule in hpa]
    filled = [query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="a"') for query in queries]
    assert [query for query in filled if not is_answered(watched, query)] == []
    assert all(watched.ask(rule["seriesQuery"]) for rule in hpa)


def test_all_rules_are_evaluated_without_an_error(watched: Prometheus) -> None:
    groups = httpx.get(f"{watched.url}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    assert {rule["health"] for rule in rules} == {"ok"}


def test_usual_images_are_no_drift_and_others_are(service: Service, watched: Prometheus) -> None:
    psi = f'max(segserve:class_psi:rate1h{{model="{MODEL}"}} or segserve:confidence_psi:rate1h{{model="{MODEL}"}})'
    alert = 'ALERTS{alertname="SegserveDrift",alertstate="pending"}'
    assert watched.number(f'segserve:class_psi:rate1h{{model="{MODEL}"}}') < 0.1
    assert watched.ask(alert) == []
    send(service, [other(seed) for seed in OTHER])
    until(lambda: watched.ask(alert), 30, lambda: str(watched.ask(psi)))
    assert watched.number(psi) > 0.25


def test_the_workers_log_comes_through_as_it_is(service: Service, watched: Prometheus) -> None:
    """One object a line, between the supervisor's lines and TorchServe's."""
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    head = {"Content-Type": "image/png", "X-Request-ID": "abc", "traceparent": traceparent}
    answer = httpx.post(service.prediction_url(MODEL), content=png(usual(0)), headers=head, timeout=60)
    assert answer.status_code == 200
    until(lambda: "4bf92f3577b34da6" in service.text(), 10, service.text)
    entries = [json.loads(line) for line in service.text().splitlines() if line.startswith("{")]
    [own] = [entry for entry in entries if entry["trace_id"] == traceparent.split("-")[1]]
    assert (own["request_id"], own["status"], own["images"]) == ("abc", 200, ["64x48"])
    assert {entry["status"] for entry in entries} == {200, 415, 504}
