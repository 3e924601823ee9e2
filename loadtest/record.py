"""What a load test leaves behind: each request and its outcome, and the service's counters from time to time."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import Metric
from pydantic import TypeAdapter

from loadtest.profile import Profile
from segserve.settings import Settings
from segserve.spec import Task
from segserve.whole import write_whole

KEPT = re.compile(
    "segserve_(stage_seconds|request_seconds|batch_images|image_megapixels)_(sum|count)"
    "|ts_(queue_latency_seconds|inference_latency_seconds|inference_requests)_total"
    "|segserve_(in_flight|queue_depth)"
)
"""Samples of a scrape that are kept."""
Outcome = Literal["ok", "refused", "failed"]


class Sent(NamedTuple):
    """One request."""

    number: int
    """Its `X-Request-ID` is `Run.request_id` of it."""
    name: str
    due: float
    """Seconds from the start to when it was to be sent."""
    seconds: float
    """From then to its answer."""
    kind: str
    """`ok`; status and problem of a refusal; `wrong answer`; `no answer`."""
    outcome: Outcome
    megapixels: float
    views: int
    bytes_up: int
    bytes_down: int

    @property
    def done(self) -> float:
        """Seconds from the start to its answer."""
        return self.due + self.seconds


class Scrape(NamedTuple):
    """The service's counters at a time."""

    at: float
    """Seconds from the start."""
    values: dict[str, float]
    """By `key`."""


class Run(Settings):
    """A load test that is to be run."""

    profile: Profile
    models: dict[Task, str]
    ops: str | None = None
    """The ops port's address; None: the service's own counters are not read."""
    record: Path
    """Where to leave the record."""
    seed: int = 20240917

    def request_id(self, number: int) -> str:
        return f"loadtest-{self.seed}-{number}"


class Record(Settings):
    """A load test that was run."""

    run: Run
    url: str
    began: str
    """ISO 8601."""
    sent: tuple[Sent, ...]
    scrapes: tuple[Scrape, ...]
    complaints: tuple[str, ...]
    """What was wrong, each sentence once."""

    def write(self, path: Path) -> None:
        """Replace the file, whole."""
        write_whole(path, TypeAdapter(Record).dump_json(self))


def read_record(path: Path) -> Record:
    """What `Record.write` wrote."""
    return Record.model_validate_json(path.read_bytes())


def key(name: str, *, model: str = "", stage: str = "") -> str:
    """Of a sample in `Scrape.values`."""
    return f"{name}/{model}/{stage}"


def kept_samples(families: Iterable[Metric]) -> Mapping[str, float]:
    """The samples of a scrape that a report needs, summed over whatever labels are not model and stage."""
    values: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if KEPT.fullmatch(sample.name):
                model = sample.labels.get("model") or sample.labels.get("model_name", "")
                place = key(sample.name, model=model, stage=sample.labels.get("stage", ""))
                values[place] = values.get(place, 0.0) + sample.value
    return values
