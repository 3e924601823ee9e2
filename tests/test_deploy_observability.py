"""The rules, the dashboard and the autoscalers' queries: right by promtool, and of metrics that the service has."""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from deploy import dashboard
from handlers.exposition import _TORCHSERVE_FAMILIES, GatewayMetrics, SupervisorMetrics, TorchServeMetrics
from handlers.settings import ServeSettings
from handlers.torchserve import free_port
from segserve import metrics

ROOT = Path(__file__).parents[1]
RULES_FILE = "deploy/prometheus/rules.yaml"
RULES = ROOT / RULES_FILE
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
RECORDED = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "alert" in rule}
NAME = re.compile(r"\b(?:segserve|ts)[_:][a-z0-9_:]*\w")
PAGE = (ROOT / "docs" / "observability.md").read_text()
COMPONENTS = ROOT / "deploy" / "kubernetes" / "components"


class NoModels:
    """As much of `Health` as the names of metrics need."""

    names: tuple[str, ...] = ()
    versions: tuple[Any, ...] = ()

    def needed(self) -> tuple[Any, ...]:
        return self.versions


def exposed() -> Iterator[str]:
    """Names of all samples that a scrape can have."""
    families: list[Any] = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    for metric in families:
        [family] = metric.collect()
        yield from with_suffixes(family.name, family.type)
    supervisor = SupervisorMetrics(NoModels())  # type: ignore[arg-type]
    for collector in (supervisor, GatewayMetrics({}), TorchServeMetrics(free_port(), timeout=0.2)):
        for family in collector.collect():
            yield from with_suffixes(family.name, family.type)
    for torchserve in _TORCHSERVE_FAMILIES.values():
        yield from (torchserve.name, f"{torchserve.name}_total")


def with_suffixes(name: str, kind: str) -> list[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return [name + suffix for suffix in suffixes.get(kind, ("",))]


EXPOSED = frozenset(exposed())


def queries() -> dict[str, str]:
    """Every PromQL expression in deploy/, by where it is."""
    found = {**RECORDED, **ALERTS}
    for panel in json.loads(dashboard.FILE.read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    for trigger in yaml.safe_load((COMPONENTS / "keda" / "autoscaler.yaml").read_text())["spec"]["triggers"]:
        found[f"keda {trigger['name']}"] = trigger["metadata"]["query"]
    for rule in yaml.safe_load((COMPONENTS / "hpa" / "adapter.yaml").read_text())["rules"]["custom"]:
        found[f"hpa {rule['name']['as']}"] = f"{rule['seriesQuery']} {rule['metricsQuery']}"
    return found


QUERIES = queries()


@functools.cache
def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", QUERIES)
def test_every_metric_is_one_of_the_service_s_or_recorded(place: str) -> None:
    names = set(NAME.findall(QUERIES[place]))
    assert names
    assert names <= EXPOSED | RECORDED.keys()


def test_the_names_are_really_read() -> None:
    assert {"segserve_requests_total", "segserve_request_seconds_bucket", "segserve_queue_depth"} <= EXPOSED
    assert set(NAME.findall("rate(segserve_typo_total[5m]) / segserve:x:rate5m")) == {
        "segserve_typo_total",
        "segserve:x:rate5m",
    }


def test_every_recording_is_of_use() -> None:
    used = {name for place, query in QUERIES.items() for name in NAME.findall(query) if place != name}
    assert RECORDED.keys() <= used


def test_rules_are_valid() -> None:
    promtool("check", "rules", RULES_FILE)


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", RULES_FILE.replace("rules.yaml", "rules_test.yaml"))


def test_the_autoscalers_have_an_answer_without_traffic(tmp_path: Path) -> None:
    """Where a metric cannot be read, no replica is taken away; here requests came once, then none for ten minutes."""
    still = {"segserve_in_flight": 0, "segserve_queue_depth": 0, "ts_queue_latency_seconds_total": 30}
    answers = dict.fromkeys(("segserve_requests_held", "segserve_queue_seconds", "requests-held", "queue-seconds"), 0.0)
    check_autoscalers(tmp_path, {**still, "ts_inference_requests_total": 600}, answers)


def test_requests_that_wait_count_before_the_first_is_computed(tmp_path: Path) -> None:
    answers = {"segserve_requests_held": 500.0, "requests-held": 500.0, "segserve_queue_seconds": 0.0}
    check_autoscalers(tmp_path, {"segserve_queue_depth": 500}, answers)


def check_autoscalers(folder: Path, metrics: dict[str, int], answers: dict[str, float]) -> None:
    """Whether queries, by name, answer so of a pod whose metrics have had these values for ten minutes."""
    labels = 'namespace="a",pod="p",app_kubernetes_io_instance="stable"'
    series = [{"series": f"{name}{{{labels}}}", "values": f"{value}x60"} for name, value in metrics.items()]
    queries = autoscaler_queries()
    cases = [
        {
            "expr": queries[name],
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}" if "-" in name else '{pod="p"}', "value": value}],
        }
        for name, value in answers.items()
    ]
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": cases}]
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    promtool("test", "rules", str(folder / "test.yaml"))


def autoscaler_queries() -> dict[str, str]:
    """KEDA's as they are, those of prometheus-adapter as it would ask for a pod."""
    triggers = yaml.safe_load((COMPONENTS / "keda" / "autoscaler.yaml").read_text())["spec"]["triggers"]
    rules = yaml.safe_load((COMPONENTS / "hpa" / "adapter.yaml").read_text())["rules"]["custom"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers} | {
        rule["name"]["as"]: rule["metricsQuery"]
        .replace("<<.GroupBy>>", "pod")
        .replace("<<.LabelMatchers>>", 'namespace="a"')
        for rule in rules
    }


def test_every_alert_is_tried_firing() -> None:
    tests = yaml.safe_load(RULES.with_name("rules_test.yaml").read_text())["tests"]
    tried = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tried == ALERTS.keys()


def test_the_bucket_of_the_latency_objective_exists() -> None:
    bounds = {float(bound) for query in RECORDED.values() for bound in re.findall(r'le="([^"]+)"', query)}
    assert bounds and bounds <= set(metrics.SECONDS)


def test_the_dashboard_is_what_the_code_makes() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run python -m deploy.dashboard"


def test_panels_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard.dashboard()["panels"]]
    assert len(set(places)) == len(places) and max(x for x, _ in places) + 8 <= 24


def test_legends_name_labels_of_their_queries() -> None:
    for panel in dashboard.PANELS:
        for legend, query in panel.queries.items():
            query += "".join(RECORDED.get(name, "") for name in NAME.findall(query))
            for label in re.findall(r"\{\{(\w+)\}\}", legend):
                assert re.search(rf"\b{label}\b", query), (panel.title, label)


def test_the_page_s_commands_run() -> None:
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert {command.split()[0] for command in commands} == {"promtool", ".venv/bin/python"}
    for command in commands:
        if command.startswith("promtool"):
            promtool(*command.split()[1:])
        else:
            assert command == ".venv/bin/python -m deploy.dashboard"
            before = dashboard.FILE.read_bytes()
            subprocess.run([sys.executable, "-m", "deploy.dashboard"], cwd=ROOT, check=True, timeout=60)
            assert dashboard.FILE.read_bytes() == before


def test_the_page_names_every_alert() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `Segserve")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == ALERTS.keys()


def test_the_page_s_scrape_configuration_is_valid(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block.replace("deploy/prometheus", str(RULES.parent)))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert str(ServeSettings().ops_port) in block
