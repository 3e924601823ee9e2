"""What is asked of the service, from a TOML file, and what of it a load test did not find."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from loadtest.record import Record
from loadtest.summary import good_per_second, latency_of
from segserve.settings import Settings, explain
from segserve.spec import Positive

DEFAULT = "default"


class Slo(Settings):
    """What must hold of all of a run's requests."""

    failed: float = Field(default=0.0, ge=0, le=1)
    """Largest share of requests without the right answer."""
    refused: float = Field(default=0.0, ge=0, le=1)
    """Largest share of requests that are told to come again: 429, 503 or 504."""
    p50_ms: Positive | None = None
    p95_ms: Positive | None = None
    p99_ms: Positive | None = None
    """Milliseconds within which that share of the good answers came."""
    per_second: Positive | None = None
    """Least good answers a second, while the load lasts."""


def read_slo(path: Path, *, profile: str) -> Slo:
    """The table named after the profile; where there is none, the table `default`.

    Raises:
        ValueError: the file is not there, not TOML, or has keys or values that are not known.
    """
    try:
        tables = TypeAdapter(dict[str, Slo]).validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"expected a file of service level objectives, but {path} cannot be read: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, known_keys=tuple(Slo.model_fields))}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected {path} to be TOML, but it is not: {error}") from None
    if profile not in tables and DEFAULT not in tables:
        raise ValueError(f"expected a table [{profile}] or [{DEFAULT}] in {path}, but there is none: add one")
    return tables.get(profile) or tables[DEFAULT]


def find_faults(record: Record, slo: Slo) -> Iterator[str]:
    """What speaks against a run, one sentence each."""
    total = len(record.sent)
    if not total:
        yield "expected answers, but no request was sent"
        return
    for outcome, most in (("failed", slo.failed), ("refused", slo.refused)):
        found = sum(sent.outcome == outcome for sent in record.sent)
        if found > most * total:
            yield f"expected at most {most:.1%} of the requests to be {outcome}, but {found} of {total} were"
    yield from _find_slow(record, slo)


def _find_slow(record: Record, slo: Slo) -> Iterator[str]:
    latency = latency_of(record.sent)
    for percent, most in ((50, slo.p50_ms), (95, slo.p95_ms), (99, slo.p99_ms)):
        found = None if latency is None else getattr(latency, f"p{percent}_ms")
        if most is not None and found is not None and found > most:
            yield f"expected {percent} % of the answers within {most:g} ms, but it took {found:.4g} ms"
    rate = good_per_second(record)
    if slo.per_second is not None and rate < slo.per_second:
        yield f"expected {slo.per_second:g} good answers a second, but there were {rate:.3g}"
