"""The Grafana dashboard: `python -m deploy.dashboard` writes deploy/grafana/segserve.json anew."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segserve.whole import write_whole

FILE = Path(__file__).parent / "grafana" / "segserve.json"
Unit = Literal["short", "reqps", "s", "percentunit"]
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot over time; a query has `$model` and Grafana's `$__rate_interval` in it."""

    title: str
    unit: Unit
    queries: dict[str, str]
    """PromQL by the text of its legend."""
    description: str = ""


def _quantile(quantile: float, histogram: str, *labels: str) -> str:
    by = ", ".join([*labels, "le"])
    rate = f'rate({histogram}_bucket{{model=~"$model"}}[$__rate_interval])'
    return f"histogram_quantile({quantile}, sum by ({by}) ({rate}))"


def _rate(counter: str, *labels: str, model: str = "model") -> str:
    return f'sum by ({", ".join(labels)}) (rate({counter}{{{model}=~"$model"}}[$__rate_interval]))'


def _gauge(name: str, *labels: str) -> str:
    return f'sum by ({", ".join(labels)}) ({name}{{model=~"$model"}})'


def _mean(histogram: str, *labels: str) -> str:
    return f"{_rate(f'{histogram}_sum', *labels)} / {_rate(f'{histogram}_count', *labels)}"


_QUEUE_SECONDS = (
    f"{_rate('ts_queue_latency_seconds_total', 'model_name', model='model_name')} / "
    f"{_rate('ts_inference_requests_total', 'model_name', model='model_name')}"
)
PANELS = (
    Panel(
        title="Requests",
        unit="reqps",
        queries={"{{model}} {{outcome}}": _rate("segserve_requests_total", "model", "outcome")},
        description="Answered by the workers. rejected: 4xx, failed: 5xx.",
    ),
    Panel(
        title="Problems by kind",
        unit="reqps",
        queries={"{{model}} {{reason}}": _rate("segserve_rejected_total", "model", "reason")},
    ),
    Panel(
        title="Share of failed requests",
        unit="percentunit",
        queries={"5 minutes": "segserve:failed:ratio_rate5m", "1 hour": "segserve:failed:ratio_rate1h"},
        description="The objective is 0.1 % in 30 days.",
    ),
    Panel(
        title="Seconds in the worker",
        unit="s",
        queries={
            f"{{{{model}}}} p{quantile * 100:g}": _quantile(quantile, "segserve_request_seconds", "model")
            for quantile in (0.5, 0.95, 0.99)
        },
    ),
    Panel(title="Seconds in the queue, mean", unit="s", queries={"{{model_name}}": _QUEUE_SECONDS}),
    Panel(
        title="Seconds by stage, mean",
        unit="s",
        queries={"{{model}} {{stage}}": _mean("segserve_stage_seconds", "model", "stage")},
        description="decode and encode: of one image; the other stages: of one batch.",
    ),
    Panel(
        title="Requests held",
        unit="short",
        queries={
            "{{model}} waiting": _gauge("segserve_queue_depth", "model"),
            "{{model}} computing": _gauge("segserve_in_flight", "model"),
        },
        description="What the autoscaler looks at.",
    ),
    Panel(title="Workers", unit="short", queries={"{{model}} {{state}}": _gauge("segserve_workers", "model", "state")}),
    Panel(
        title="Models",
        unit="short",
        queries={
            "{{model}} {{version}} {{engine}} {{device}}": _gauge(
                "segserve_model_info", "model", "version", "digest", "engine", "device"
            ),
            "TorchServe answers": "sum(segserve_torchserve_up)",
        },
        description="Pods that have loaded each.",
    ),
    Panel(
        title="Requests in a batch, mean",
        unit="short",
        queries={"{{model}}": _mean("segserve_batch_images", "model")},
    ),
    Panel(
        title="Less than was asked, and images that end workers",
        unit="reqps",
        queries={
            "{{model}} without {{what}}": _rate("segserve_degraded_total", "model", "what"),
            "decoders": "sum(rate(segserve_decoder_crashes_total[$__rate_interval]))",
        },
        description="A brown-out leaves out test-time augmentation; an image that ends two workers is refused.",
    ),
    Panel(
        title="Megapixels of an image",
        unit="short",
        queries={
            f"{{{{model}}}} p{quantile * 100:g}": _quantile(quantile, "segserve_image_megapixels", "model")
            for quantile in (0.5, 0.95)
        },
    ),
    Panel(
        title="Answers of TorchServe",
        unit="reqps",
        queries={
            status: f"sum(rate(ts_requests_{status}_total[$__rate_interval]))" for status in ("2xx", "4xx", "5xx")
        },
        description="On all its ports.",
    ),
    Panel(
        title="Answers of the gateway",
        unit="reqps",
        queries={"{{model}} {{status}}": _rate("segserve_gateway_answers_total", "model", "status")},
        description="Whoever made them; 429, 401 and 403 are its own.",
    ),
    Panel(
        title="Shares of the classes, last hour",
        unit="percentunit",
        queries={"{{model}} {{version}} {{class}}": 'segserve:class_share:rate1h{model=~"$model"}'},
    ),
    Panel(
        title="Confidence, median",
        unit="percentunit",
        queries={"{{model}}": _quantile(0.5, "segserve_confidence", "model")},
    ),
    Panel(
        title="Drift",
        unit="short",
        queries={
            "{{model}} {{version}} classes": 'segserve:class_psi:rate1h{model=~"$model"}',
            "{{model}} {{version}} confidence": 'segserve:confidence_psi:rate1h{model=~"$model"}',
        },
        description="Population stability index of the last hour against held-out images; 0.25 is a large change.",
    ),
)


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "title": "segserve",
        "uid": "segserve",
        "schemaVersion": 39,
        "tags": ["segserve"],
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _model()]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    for number, panel in enumerate(PANELS):
        row, column = divmod(number, _COLUMNS)
        yield {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.description,
            "datasource": _DATASOURCE,
            "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": _DATASOURCE}
                for place, (legend, query) in enumerate(panel.queries.items())
            ],
        }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model() -> dict[str, Any]:
    query = "label_values(segserve_workers, model)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "models"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    write_whole(FILE, text())
