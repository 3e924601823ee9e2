"""The fit against batches whose times are known, from a log as the workers write it."""

import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from loadtest.profile import Profile, Step
from loadtest.record import Record, Run, Sent
from loadtest.service_time import Batch, ServiceTime, _usual_gaps, fit, read_batches, read_service_time
from loadtest.simulation import Request

TRUE = ServiceTime(seconds_per_megapixel=0.05, seconds_per_view=0.03, seconds_per_batch=0.01)
START = 1_800_000_000.0


def line(number: int | None, *, at: float, batch: int, seconds: float, model: str = "masks") -> str:
    time = datetime.fromtimestamp(START + at, UTC).isoformat(timespec="milliseconds")
    request = None if number is None else f"loadtest-1-{number}"
    return json.dumps(
        {"time": time, "message": "request", "request_id": request, "model": model, "batch": batch, "seconds": seconds}
    )


def sent(number: int, *, due: float, seconds: float, views: int = 1, megapixels: float = 0.1) -> Sent:
    return Sent(number, "x", due, seconds, "ok", "ok", megapixels, views, 0, 0)


def record(*requests: Sent) -> Record:
    profile = Profile(about="", steps=(Step(seconds=1, load=1),))
    run = Run(profile=profile, models={}, record=Path("r.json"), seed=1)
    began = datetime.fromtimestamp(START, UTC).isoformat(timespec="milliseconds")
    return Record(run=run, url="", began=began, sent=requests, scrapes=(), complaints=())


def test_batches_are_read_from_the_log() -> None:
    known = record(
        sent(0, due=0, seconds=0.6),
        sent(1, due=0.1, seconds=1.5, views=2),
        sent(2, due=0.2, seconds=1.4, megapixels=0.4),
        sent(3, due=2, seconds=0.5),
    )
    log = [
        "segserve: ready",
        line(0, at=0.55, batch=1, seconds=0.5),
        line(9, at=0.7, batch=2, seconds=0.1, model="labels"),
        line(1, at=1.56, batch=2, seconds=1.0),
        line(2, at=1.57, batch=2, seconds=1.0),
        line(None, at=1.8, batch=1, seconds=0.001),
        line(3, at=2.45, batch=1, seconds=0.4),
        '{"message": "something else"}',
    ]
    first, second, third = read_batches(log, known, model="masks")
    assert first == Batch(images=1, megapixels=0.1, views=1, seconds=0.5, latency=0.6, gap=None)
    assert second == Batch(
        images=2, megapixels=0.5, views=3, seconds=1.0, latency=1.5, gap=pytest.approx(1.56 - 1.0 - 0.55, abs=1e-5)
    )
    assert (third.images, third.gap) == (1, None)


def batches(*, noise: float, seed: int = 0) -> list[Batch]:
    """Full ones of 8 that wait, and lone ones that do not; a gap of 2 ms, 5 ms of delay, 4 ms outside."""
    rng = random.Random(seed)
    found = []
    for index in range(400):
        images = 8 if index % 2 else 1
        megapixels = sum(rng.choice((0.1, 0.3, 1.2)) for _ in range(images))
        views = sum(rng.choice((1, 2, 8)) for _ in range(images))
        seconds = TRUE.mean(megapixels=megapixels, views=views) * rng.uniform(1 - noise, 1 + noise)
        latency = seconds + 0.002 + 0.005 + 0.004
        gap = 0.002 if index % 2 else None
        found.append(
            Batch(images=images, megapixels=megapixels, views=views, seconds=seconds, latency=latency, gap=gap)
        )
    return found


def test_the_fit_is_exact_where_there_is_no_noise() -> None:
    found = fit(batches(noise=0), max_batch_delay=0.005, measured="here")
    assert found.seconds_per_megapixel == pytest.approx(0.05)
    assert found.seconds_per_view == pytest.approx(0.03)
    assert found.seconds_per_batch == pytest.approx(0.01 + 0.002)
    assert found.outside_seconds == pytest.approx(0.004)
    assert found.ratios == pytest.approx([1.0] * 50)
    assert (found.batches, found.measured) == (400, "here")


def test_noise_goes_into_the_ratios() -> None:
    found = fit(batches(noise=0.2), max_batch_delay=0.005)
    assert found.seconds_per_megapixel == pytest.approx(0.05, rel=0.1)
    assert found.seconds_per_view == pytest.approx(0.03, rel=0.1)
    assert np.mean(found.ratios) == pytest.approx(1, abs=0.03)
    assert (min(found.ratios), max(found.ratios)) == pytest.approx((0.8, 1.2), abs=0.02)
    batch = [Request(due=0, megapixels=0.3, views=2)] * 3
    rng = random.Random(0)
    drawn = [found(batch, rng) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(found.mean(megapixels=0.9, views=6), rel=0.02)
    assert max(drawn) / min(drawn) == pytest.approx(1.5, abs=0.15)


def test_lone_batches_count_as_much_as_full_ones() -> None:
    """Where full ones are slower by a third than any line allows, the fit is off by as much for both."""
    slower = [replace(batch, seconds=batch.seconds * 1.3) if batch.images == 8 else batch for batch in batches(noise=0)]
    found = fit(slower, max_batch_delay=0.005)
    errors = {
        images: np.median(
            [
                (batch.seconds + 0.002) / found.mean(megapixels=batch.megapixels, views=batch.views)
                for batch in slower
                if batch.images == images
            ]
        )
        for images in (1, 8)
    }
    assert errors[8] / errors[1] < 1.2
    assert errors[1] == pytest.approx(1, abs=0.1)


def test_each_size_has_its_own_gap() -> None:
    """Eight answers take longer on their way out than one; a size that never waited has the median of all."""
    some = [replace(batch, gap=0.01 if batch.images == 8 else 0.003) for batch in batches(noise=0)]
    gaps = _usual_gaps([*some, replace(some[0], images=4, gap=None)])
    assert gaps == {1: 0.003, 8: 0.01, 4: pytest.approx(0.0065)}


def test_too_little_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected 20 full batches and more that waited.*but got 15 and 15 of 30"):
        fit(batches(noise=0)[:30], max_batch_delay=0.005)
    with pytest.raises(ValueError, match="but got 0 and 0 of 0"):
        fit([], max_batch_delay=0.005)


def test_a_file_of_service_times(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(TRUE.model_dump_json())
    assert read_service_time(path) == TRUE
    path.write_text(TRUE.model_dump_json().replace("per_view", "per_image"))
    with pytest.raises(ValueError, match=r"'seconds_per_image' is not a known key.*known are seconds_per_megapixel"):
        read_service_time(path)
    with pytest.raises(ValueError, match="expected a file of service times"):
        read_service_time(tmp_path / "none.json")
