"""How long a worker needs for a batch: a * megapixels + b * views + c, fitted to what it logged of a load test.

Decoding and encoding grow with the pixels that are uploaded, the network's work with the views, each of which it sees
at its working size; the rest comes once a batch.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from scipy import optimize

from loadtest.record import Record, Sent
from loadtest.simulation import Request
from segserve.settings import Settings, explain

LEAST_BATCHES = 20
QUANTILES = tuple((index + 0.5) / 50 for index in range(50))


class ServiceTime(Settings):
    """Seconds of a worker."""

    seconds_per_megapixel: float = Field(ge=0)
    seconds_per_view: float = Field(ge=0)
    seconds_per_batch: float = Field(ge=0)
    """What TorchServe needs between two batches included."""
    ratios: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Of what was measured to what was fitted: equally likely values."""
    outside_seconds: float = Field(default=0.0, ge=0)
    """Of a request outside its worker and the queue: network, gateway, TorchServe."""
    measured: str = ""
    """On what, and when."""
    batches: int = 0
    """From how many this was fitted."""

    def mean(self, *, megapixels: float, views: float) -> float:
        """Of a batch with so many megapixels and views, all its images together."""
        return self.seconds_per_megapixel * megapixels + self.seconds_per_view * views + self.seconds_per_batch

    def __call__(self, batch: Sequence[Request], rng: random.Random) -> float:
        """Of a batch, as much longer or shorter than the mean as some batch that was measured."""
        megapixels, views = sum(r.megapixels for r in batch), sum(r.views for r in batch)
        return rng.choice(self.ratios) * self.mean(megapixels=megapixels, views=views)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch, as the worker logged it and its clients saw it."""

    images: int
    megapixels: float
    views: int
    seconds: float
    """In the worker."""
    latency: float
    """Of the request that was longest under way, in seconds."""
    gap: float | None
    """Seconds from the end of the batch before it to its own begin; None: it did not wait for that."""


def read_service_time(path: Path) -> ServiceTime:
    """What `python -m bench.replicas` wrote.

    Raises:
        ValueError: the file is not there, or is something else.
    """
    try:
        return ServiceTime.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"expected a file of service times, but {path} cannot be read: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, known_keys=tuple(ServiceTime.model_fields))}") from None


def read_batches(log: Iterable[str], record: Record, *, model: str) -> list[Batch]:
    """The batches of a model's only worker, by the lines of its log (docs/observability.md) and what was sent.

    Batches with a request that the record does not know, or that was not answered well, are left out.
    """
    began = datetime.fromisoformat(record.began).timestamp()
    sent = {record.run.request_id(entry.number): entry for entry in record.sent if entry.outcome == "ok"}
    found: list[Batch] = []
    before = float("-inf")
    for batch in _grouped(_logged(log, model=model)):
        own = [sent[line.request_id] for line in batch if line.request_id in sent]
        if len(own) == len(batch):
            waited = began + max(entry.due for entry in own) < before
            found.append(_batch(own, batch[0], gap=batch[0].began - before if waited else None))
        before = batch[0].time.timestamp()
    return found


class _Line(BaseModel):
    """What is needed of a line of the log."""

    time: datetime
    model: str
    request_id: str | None
    batch: int
    seconds: float

    @property
    def began(self) -> float:
        """Seconds since the epoch; the line is written at the batch's end."""
        return self.time.timestamp() - self.seconds


def _logged(log: Iterable[str], *, model: str) -> Iterator[_Line]:
    lines = (_Line.model_validate_json(line) for line in log if line.startswith("{") and '"message": "request"' in line)
    return (line for line in lines if line.model == model)


def _grouped(lines: Iterator[_Line]) -> Iterator[list[_Line]]:
    """A worker logs the requests of a batch one after the other."""
    for first in lines:
        yield [first, *islice(lines, first.batch - 1)]


def _batch(sent: Sequence[Sent], line: _Line, *, gap: float | None) -> Batch:
    return Batch(
        images=len(sent),
        megapixels=sum(entry.megapixels for entry in sent),
        views=sum(entry.views for entry in sent),
        seconds=line.seconds,
        latency=max(entry.seconds for entry in sent),
        gap=gap,
    )


def fit(batches: Sequence[Batch], *, max_batch_delay: float, measured: str = "") -> ServiceTime:
    """Least squares of the relative error, so that a batch of one counts as much as a full one; no coefficient below 0.

    What TorchServe needs from one batch to the next, the median gap before those of the same size that waited, belongs
    to each batch. What a lone request needs beyond that, its batch's delay and its time in the worker is
    `outside_seconds`.

    Args:
        batches: of all the sizes that matter, many of them full and some of one image.
        max_batch_delay: of the model, in seconds.
        measured: on what, and when.

    Raises:
        ValueError: there are too few batches, or only such of one kind.
    """
    full = max((batch.images for batch in batches), default=0)
    gaps = [max(0.0, batch.gap) for batch in batches if batch.gap is not None and batch.images == full]
    alone = [batch.latency - batch.seconds for batch in batches if batch.images == 1 and batch.gap is None]
    if min(len(gaps), len(alone), len(batches) - len(gaps)) < LEAST_BATCHES:
        raise ValueError(
            f"expected {LEAST_BATCHES} full batches and more that waited, and as many of one image that did not, but "
            f"got {len(gaps)} and {len(alone)} of {len(batches)}: send for longer, with one user and with many"
        )
    between = _usual_gaps(batches)
    rows_NF = np.array([(batch.megapixels, batch.views, 1.0) for batch in batches])
    seconds_N = np.array([batch.seconds + between[batch.images] for batch in batches])
    coefficients_F, _ = optimize.nnls(rows_NF / seconds_N[:, None], np.ones(len(batches)))
    ratios_N = seconds_N / (rows_NF @ coefficients_F)
    a, b, c = (ratios_N.mean() * coefficients_F).tolist()
    return ServiceTime(
        seconds_per_megapixel=a,
        seconds_per_view=b,
        seconds_per_batch=c,
        ratios=tuple(np.quantile(ratios_N / ratios_N.mean(), QUANTILES).tolist()),
        outside_seconds=max(0.0, float(np.median(alone)) - max_batch_delay - between[1]),
        measured=measured,
        batches=len(batches),
    )


def _usual_gaps(batches: Sequence[Batch]) -> dict[int, float]:
    """By the number of images; of a size that never waited, that of all the others."""
    known = [(batch.images, max(0.0, batch.gap)) for batch in batches if batch.gap is not None]
    of_all = float(np.median([gap for _, gap in known]))
    usual = {batch.images: of_all for batch in batches}
    for images in {images for images, _ in known}:
        usual[images] = float(np.median([gap for size, gap in known if size == images]))
    return usual
