"""A load test as one HTML page, which needs nothing beside it: no network, no script."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from loadtest.record import Record, Sent, key
from loadtest.summary import Server, StepResult, good_per_second, latency_of, servers_between, summarise
from training.charts import Axis, Point, Series, line_chart
from training.markup import document, figure, grid, row, scrolling

BINS = 60
"""Of a chart over time, at most; none is shorter than a second."""


def page(record: Record, faults: Sequence[str], *, title: str, machine: str) -> str:
    """The whole page.

    Args:
        record: the run.
        faults: what it lacks of its objectives, a sentence each.
        title: its heading.
        machine: what it ran on.
    """
    steps = summarise(record)
    sections = {
        "Throughput and latency": _knee(record, steps) + _step_table(record, steps),
        "Over time": _over_time(record),
        "Client and service": _both_views(record, steps),
        "Errors": _errors(record),
        "Requests": _requests(record),
    }
    head = _subtitle(record, machine) + _tiles(record) + _verdict(faults)
    return document(title, head=head, sections=sections)


# --- head ---


def _subtitle(record: Record, machine: str) -> str:
    profile = record.run.profile
    parts = (record.began, machine, f"{profile.loop} loop", f"{len(record.sent):,} requests to {record.url}")
    return f'<p class="subtitle">{escape(profile.about)}<br>{escape(" · ".join(parts))}</p>'


def _tiles(record: Record) -> str:
    latency = latency_of(record.sent)
    tiles = {"good answers a second": f"{good_per_second(record):.3g}"}
    if latency:
        shown = {"median": latency.p50_ms, "95th percentile": latency.p95_ms, "99th percentile": latency.p99_ms}
        tiles |= {name: f"{value:,.0f} ms" for name, value in shown.items()}
    for outcome in ("refused", "failed"):
        tiles[outcome] = f"{sum(sent.outcome == outcome for sent in record.sent):,}"
    entries = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{entries}</dl>'


def _verdict(faults: Sequence[str]) -> str:
    said = ". ".join(faults) + "." if faults else "All are met."
    return f'<p class="protocol"><strong>Objectives.</strong> {escape(said[0].upper() + said[1:])}</p>'


# --- sections ---


def _knee(record: Record, steps: Sequence[StepResult]) -> str:
    found = [(step, step.latency) for step in steps if step.latency is not None]
    if not found:
        return ""
    unit = record.run.profile.unit
    latency = [
        Series(name="95th percentile", points=[(step.per_second, value.p95_ms) for step, value in found]),
        Series(name="median", points=[(step.per_second, value.p50_ms) for step, value in found]),
    ]
    throughput = [Series(name="good answers", points=[(step.load, step.per_second) for step, _ in found])]
    return grid(
        [
            figure(
                "Latency by throughput",
                line_chart(
                    latency,
                    label="latency against good answers a second, a point a step",
                    x=Axis(title="good answers a second", ends=_from_zero(step.per_second for step, _ in found)),
                    y=Axis(title="ms", ends=_from_zero(value.p95_ms for _, value in found)),
                ),
                note="Where the line turns upwards is the knee: more load brings waiting and no more answers.",
            ),
            figure(
                "Throughput by load",
                line_chart(
                    throughput,
                    label=f"good answers a second by {unit}",
                    x=Axis(title=unit, ends=_from_zero(step.load for step, _ in found)),
                    y=Axis(title="a second", ends=_from_zero(step.per_second for step, _ in found)),
                ),
            ),
        ]
    )


def _step_table(record: Record, steps: Sequence[StepResult]) -> str:
    unit = record.run.profile.unit
    columns = ["seconds", "good answers a second", "median, ms", "95 %, ms", "99 %, ms", "refused", "failed"]
    rows = []
    for step, planned in zip(steps, record.run.profile.steps, strict=True):
        found = step.latency
        latencies = [f"{v:,.0f}" for v in (found.p50_ms, found.p95_ms, found.p99_ms)] if found else ["&ndash;"] * 3
        shares = [f"{step.shares.get(outcome, 0.0):.1%}" for outcome in ("refused", "failed")]
        cells = [f"{planned.seconds:g}", f"{step.per_second:.2f}", *latencies, *shares]
        rows.append(row(cells, first=f"{step.load:g}"))
    return _table(columns, rows, first=unit, label="steps")


def _over_time(record: Record) -> str:
    width = max(1.0, record.run.profile.seconds / BINS)
    good = [sent for sent in record.sent if sent.outcome == "ok"]
    if not good:
        return ""
    p95 = [(at, 1000 * _percentile(found, 95)) for at, found in _by_due(good, width)]
    charts = [
        _chart_over_time("Good answers a second", [Series(name="good answers", points=_rates(good, width))]),
        _chart_over_time("95th percentile by when requests were due, ms", [Series(name="95 %", points=p95)]),
    ]
    inside = [_gauge(record, name) for name in ("segserve_in_flight", "segserve_queue_depth")]
    if all(inside):
        series = [
            Series(name=name, points=points) for name, points in zip(("in workers", "waiting"), inside, strict=True)
        ]
        charts.append(_chart_over_time("Requests in the service", series))
    return grid(charts)


def _both_views(record: Record, steps: Sequence[StepResult]) -> str:
    known = [(step, step.latency) for step in steps if step.servers and step.latency]
    if not known:
        return ""
    unit = record.run.profile.unit
    lines: dict[str, list[Point]] = {
        "client, mean": [(step.load, latency.mean_ms) for step, latency in known],
        "TorchServe, from arrival to answer": [(s.load, _mean_ms(s.servers, lambda v: v.total_ms)) for s, _ in known],
        "waiting for a worker": [(s.load, _mean_ms(s.servers, lambda v: v.queue_ms)) for s, _ in known],
        "in the worker": [(s.load, _mean_ms(s.servers, lambda v: v.worker_ms)) for s, _ in known],
    }
    chart = line_chart(
        [Series(name=name, points=points) for name, points in lines.items()],
        label=f"mean milliseconds by {unit}, as the client and the service see it",
        x=Axis(title=unit, ends=_from_zero(step.load for step, _ in known)),
        y=Axis(title="ms", ends=_from_zero(value for points in lines.values() for _, value in points)),
    )
    note = "What lies between the first two is the network, the gateway, and the load test itself."
    return grid([figure("Mean time of a request", chart, note=note), _stage_table(record)])


def _stage_table(record: Record) -> str:
    servers = servers_between(record, 0.0, record.run.profile.seconds)
    stages = list(servers[0].stages_ms) if servers else []
    if not stages:
        return ""
    rows = [
        row([f"{server.requests:,.0f}" for server in servers], first="requests"),
        row([f"{server.batch:.2f}" for server in servers], first="images in a batch"),
        row([f"{server.queue_ms:.1f}" for server in servers], first="waiting for a worker"),
        row([f"{server.worker_ms:.1f}" for server in servers], first="in the worker"),
        *(row([f"{server.stages_ms.get(stage, 0.0):.1f}" for server in servers], first=stage) for stage in stages),
    ]
    columns = [escape(server.model) for server in servers]
    note = '<p class="note">Means in ms. decode and encode are of one image, the other stages of a batch.</p>'
    return f"<div>{note}{_table(columns, rows, first='service', label='stages')}</div>"


def _errors(record: Record) -> str:
    bad = [sent for sent in record.sent if sent.outcome != "ok"]
    if not bad:
        return "<p>None.</p>"
    width = max(1.0, record.run.profile.seconds / BINS)
    kinds = [kind for kind, _ in Counter(sent.kind for sent in bad).most_common(6)]
    series = [Series(name=kind, points=_rates([sent for sent in bad if sent.kind == kind], width)) for kind in kinds]
    counts = Counter((sent.kind, sent.name) for sent in bad)
    rows = [row([escape(name), f"{count:,}"], first=escape(kind)) for (kind, name), count in counts.most_common()]
    said = "".join(f"<li>{escape(complaint)}</li>" for complaint in record.complaints[:20])
    return grid(
        [
            _chart_over_time("Requests without the answer asked for, a second", series),
            _table(["request", "how many"], rows, first="kind", label="errors by kind"),
        ]
    ) + (f"<ul>{said}</ul>" if said else "")


def _requests(record: Record) -> str:
    rows = []
    for name in sorted({sent.name for sent in record.sent}):
        found = [sent for sent in record.sent if sent.name == name]
        latency = latency_of(found)
        times = [f"{v:,.0f}" for v in (latency.p50_ms, latency.p95_ms)] if latency else ["&ndash;"] * 2
        sizes = [f"{np.mean([getattr(s, side) for s in found]) / 1000:,.1f}" for side in ("bytes_up", "bytes_down")]
        rows.append(row([f"{len(found):,}", *times, *sizes], first=escape(name)))
    columns = ["sent", "median, ms", "95 %, ms", "kB up", "kB down"]
    return _table(columns, rows, first="request", label="requests by kind") if rows else ""


# --- pieces ---


def _table(columns: Sequence[str], rows: Sequence[str], *, first: str, label: str) -> str:
    head = row(columns, first=first, tag="th", scope="col")
    return scrolling(f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>", label=label)


def _chart_over_time(title: str, series: Sequence[Series]) -> str:
    highest = _from_zero(value for line in series for _, value in line.points)
    chart = line_chart(series, label=f"{title}, over time", x=Axis(title="seconds"), y=Axis(ends=highest))
    return figure(title, chart)


def _by_due(sent: Sequence[Sent], width: float) -> list[tuple[float, list[Sent]]]:
    """Requests by equal spans of the time when they were due, with the middle of each span that has any."""
    bins: dict[int, list[Sent]] = {}
    for entry in sent:
        bins.setdefault(int(entry.due / width), []).append(entry)
    return [((index + 0.5) * width, bins[index]) for index in sorted(bins)]


def _rates(sent: Sequence[Sent], width: float) -> list[Point]:
    """Answers a second by when they came, from the start to the last one."""
    counts = Counter(int(entry.done / width) for entry in sent)
    return [((index + 0.5) * width, counts[index] / width) for index in range(max(counts) + 1)]


def _percentile(sent: Sequence[Sent], percent: float) -> float:
    return float(np.percentile([entry.seconds for entry in sent], percent))


def _gauge(record: Record, name: str) -> list[Point]:
    """Summed over the models, at each scrape that has it."""
    places = [key(name, model=model) for model in record.run.models.values()]
    return [
        (scrape.at, sum(scrape.values.get(place, 0.0) for place in places))
        for scrape in record.scrapes
        if any(place in scrape.values for place in places)
    ]


def _mean_ms(servers: Sequence[Server], of: Callable[[Server], float]) -> float:
    """Over the requests of all models."""
    return sum(server.requests * of(server) for server in servers) / sum(server.requests for server in servers)


def _from_zero(values: Iterable[float]) -> tuple[float, float]:
    return 0.0, 1.08 * max(values) or 1.0
