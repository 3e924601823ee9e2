"""A record in figures: of each step, what clients saw and where the service says that the time went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.record import Record, Scrape, Sent, key
from segserve.spec import Task

SETTLING = 0.2
"""Of a step, at its begin, is not counted: the step before still has its say."""
MOST_SETTLING_SECONDS = 2.0
STAGES = ("decode", "preprocess", "forward", "tta", "postprocess", "encode")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of good answers, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Server:
    """Means of what the service says of one model, in milliseconds; of a batch where a stage is one."""

    model: str
    requests: float
    batch: float
    """Images, the mean."""
    queue_ms: float
    """Wait for a worker."""
    worker_ms: float
    """In the worker."""
    total_ms: float
    """From arrival in TorchServe to its answer."""
    stages_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step of the profile, after it has settled."""

    load: float
    per_second: float
    """Good answers."""
    latency: Latency | None
    """None: there was no good answer."""
    shares: Mapping[str, float]
    """Of each outcome among the requests that were due."""
    servers: Sequence[Server]


def summarise(record: Record) -> tuple[StepResult, ...]:
    """One result a step, in order."""
    profile = record.run.profile
    return tuple(
        _step(record, load=step.load, start=start + min(SETTLING * step.seconds, MOST_SETTLING_SECONDS), end=end)
        for step, start, end in zip(profile.steps, profile.starts, profile.starts[1:], strict=False)
    )


def _step(record: Record, *, load: float, start: float, end: float) -> StepResult:
    due = [sent for sent in record.sent if start <= sent.due < end]
    done = [sent for sent in record.sent if sent.outcome == "ok" and start <= sent.done < end]
    outcomes = Counter(sent.outcome for sent in due)
    return StepResult(
        load=load,
        per_second=len(done) / (end - start),
        latency=latency_of(due),
        shares={outcome: count / len(due) for outcome, count in outcomes.items()},
        servers=servers_between(record, start, end),
    )


def good_per_second(record: Record) -> float:
    """Good answers a second that came while the load lasted; what was still waiting at its end is not among them."""
    seconds = record.run.profile.seconds
    return sum(sent.outcome == "ok" and sent.done < seconds for sent in record.sent) / seconds


def latency_of(sent: Sequence[Sent]) -> Latency | None:
    """Of the good answers among them."""
    seconds = [entry.seconds for entry in sent if entry.outcome == "ok"]
    if not seconds:
        return None
    p50, p95, p99 = (1000 * np.percentile(seconds, (50, 95, 99))).tolist()
    return Latency(mean_ms=1000 * float(np.mean(seconds)), p50_ms=p50, p95_ms=p95, p99_ms=p99)


def servers_between(record: Record, start: float, end: float) -> Sequence[Server]:
    """What the service did between the scrapes that are nearest to `start` and `end`, by model."""
    if not record.scrapes:
        return ()
    before, after = (min(record.scrapes, key=lambda scrape: abs(scrape.at - at)) for at in (start, end))
    models: Mapping[Task, str] = record.run.models
    found = (_server(before, after, model) for model in models.values())
    return [server for server in found if server is not None]


def _server(before: Scrape, after: Scrape, model: str) -> Server | None:
    def change(name: str, stage: str = "") -> float:
        place = key(name, model=model, stage=stage)
        return after.values.get(place, 0.0) - before.values.get(place, 0.0)

    def mean_ms(histogram: str, stage: str = "") -> float:
        return 1000 * change(f"{histogram}_sum", stage) / max(1.0, change(f"{histogram}_count", stage))

    requests, batches = change("segserve_request_seconds_count"), change("segserve_batch_images_count")
    taken = change("ts_inference_requests_total")
    if not requests or not batches or not taken:
        return None
    return Server(
        model=model,
        requests=requests,
        batch=change("segserve_batch_images_sum") / batches,
        queue_ms=1000 * change("ts_queue_latency_seconds_total") / taken,
        worker_ms=mean_ms("segserve_request_seconds"),
        total_ms=1000 * change("ts_inference_latency_seconds_total") / taken,
        stages_ms={
            stage: mean_ms("segserve_stage_seconds", stage)
            for stage in STAGES
            if change("segserve_stage_seconds_count", stage)
        },
    )
