"""What is made of a record: figures, a verdict, and a page that is opened in a browser."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.page import page
from loadtest.profile import Profile, Step
from loadtest.record import Outcome, Record, Run, Scrape, Sent, read_record
from loadtest.slo import Slo, find_faults, read_slo
from loadtest.summary import Server, good_per_second, summarise
from segserve.spec import Task
from tests.browser import BROWSER, browser

MODELS: dict[Task, str] = {"segmentation": "masks", "classification": "labels"}


def sent(number: int, due: float, seconds: float, kind: str = "ok", outcome: Outcome = "ok") -> Sent:
    return Sent(
        number=number,
        name="segmentation png",
        due=due,
        seconds=seconds,
        kind=kind,
        outcome=outcome,
        megapixels=0.3,
        views=1,
        bytes_up=1000,
        bytes_down=200,
    )


def scrape(at: float, *, done: int) -> Scrape:
    """After so many requests, in batches of 2: 3 s each in the worker and 1 s in the queue, 2 s for the pass."""
    values = {
        "segserve_request_seconds_sum/masks/": 3.0 * done,
        "segserve_request_seconds_count/masks/": done,
        "segserve_batch_images_sum/masks/": done,
        "segserve_batch_images_count/masks/": done / 2,
        "segserve_stage_seconds_sum/masks/forward": 2.0 * done / 2,
        "segserve_stage_seconds_count/masks/forward": done / 2,
        "ts_inference_requests_total/masks/": done,
        "ts_queue_latency_seconds_total/masks/": 1.0 * done,
        "ts_inference_latency_seconds_total/masks/": 4.5 * done,
        "segserve_in_flight/masks/": 2,
        "segserve_queue_depth/masks/": 1,
    }
    return Scrape(at, values)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Ten seconds of one user and an answer a second; ten of two, where one in four is refused and one in ten wrong."""
    profile = Profile(about="Two <steps>.", steps=(Step(seconds=10, load=1), Step(seconds=10, load=2)))
    first = [sent(number, number, 0.5) for number in range(10)]
    second = [sent(10 + number, 10 + number / 2, 1.0 + number / 100) for number in range(20)]
    second = [
        entry._replace(kind="429 overloaded", outcome="refused")
        if entry.number % 4 == 0
        else entry._replace(kind="wrong answer", outcome="failed")
        if entry.number % 10 == 1
        else entry
        for entry in second
    ]
    return Record(
        run=Run(profile=profile, models=MODELS, record=tmp_path / "record.json"),
        url="http://127.0.0.1:1",
        began="2026-11-25T00:00:00.000+00:00",
        sent=(*first, *second),
        scrapes=tuple(scrape(at, done=2 * at) for at in range(21)),
        complaints=("segmentation png: expected a PNG, but got b'<html>'",),
    )


def test_a_record_comes_back_as_it_was_written(record: Record) -> None:
    record.write(record.run.record)
    assert read_record(record.run.record) == record


def test_steps_by_hand(record: Record) -> None:
    """The first two seconds of each step do not count."""
    first, second = summarise(record)
    assert (first.load, first.per_second, first.shares) == (1, 1, {"ok": 1})
    assert first.latency is not None and second.latency is not None
    assert dataclasses.astuple(first.latency) == pytest.approx((500, 500, 500, 500))
    due = [entry for entry in record.sent if 12 <= entry.due < 20]
    good = [entry for entry in due if entry.outcome == "ok"]
    assert len(due) == 16
    assert second.shares == {"ok": len(good) / 16, "refused": 4 / 16, "failed": (12 - len(good)) / 16}
    assert second.latency.mean_ms == pytest.approx(1000 * sum(entry.seconds for entry in good) / len(good))
    done = [entry for entry in record.sent if entry.outcome == "ok" and 12 <= entry.due + entry.seconds < 20]
    assert second.per_second == len(done) / 8


def test_what_the_service_says_by_hand(record: Record) -> None:
    (server,) = summarise(record)[1].servers
    assert server == Server(
        model="masks",
        requests=16,
        batch=2,
        queue_ms=1000,
        worker_ms=3000,
        total_ms=4500,
        stages_ms={"forward": 2000},
    )


def test_objectives(record: Record) -> None:
    lax = Slo(failed=0.1, refused=0.2, p50_ms=2000, p95_ms=2000, p99_ms=2000, per_second=1.0)
    assert list(find_faults(record, lax)) == []
    strict = Slo(p50_ms=400, p95_ms=1000, p99_ms=1200, per_second=2)
    faults = list(find_faults(record, strict))
    assert [sentence.split(" ")[1:4] for sentence in faults[:2]] == [["at", "most", "0.0%"]] * 2
    assert "but 2 of 30 were" in faults[0] and "but 5 of 30 were" in faults[1]
    assert faults[2].startswith("expected 50 % of the answers within 400 ms, but it took 1030 ms")
    assert faults[3].startswith("expected 95 % of the answers within 1000 ms")
    assert faults[4:] == ["expected 2 good answers a second, but there were 1.1"]
    nothing = record.model_copy(update={"sent": ()})
    assert list(find_faults(nothing, lax)) == ["expected answers, but no request was sent"]


def test_what_is_answered_after_the_load_is_no_throughput(record: Record) -> None:
    """Twice what the service can do, without refusals: half of the answers come when nothing is sent any more."""
    profile = Profile(about="", loop="open", steps=(Step(seconds=10, load=10),))
    overloaded = record.model_copy(
        update={
            "run": record.run.model_copy(update={"profile": profile}),
            "sent": tuple(sent(number, number / 10, (number + 1) / 5 - number / 10) for number in range(100)),
        }
    )
    assert good_per_second(overloaded) == pytest.approx(5, abs=0.1)
    assert list(find_faults(overloaded, Slo(per_second=10))) == [
        "expected 10 good answers a second, but there were 4.9"
    ]


def test_a_table_of_objectives_for_each_profile_that_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "slo.toml"
    path.write_text("[default]\np95_ms = 10\n[spike]\nrefused = 0.5\n")
    assert read_slo(path, profile="steady") == Slo(p95_ms=10)
    assert read_slo(path, profile="spike") == Slo(refused=0.5)
    for text, sentence in [
        ("[spike]", r"expected a table \[steady\] or \[default\]"),
        ("[default]\np90_ms = 1", "'default.p90_ms' is not a known key.*known are failed, refused, p50_ms"),
        ("default", "to be TOML, but it is not"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_slo(path, profile="steady")


def test_the_page_says_it_all(record: Record) -> None:
    html = page(record, ["expected x, but y"], title="Load <test>", machine="a machine")
    for text in ("Load &lt;test&gt;", "Two &lt;steps&gt;.", "Expected x, but y.", "429 overloaded", "b&#x27;&lt;html"):
        assert text in html
    assert "http://" not in html.replace(record.url, "") and "<script" not in html


def test_the_page_of_a_service_that_answered_nothing(record: Record) -> None:
    dead = [entry._replace(kind="no answer", outcome="failed") for entry in record.sent]
    html = page(record.model_copy(update={"sent": dead, "scrapes": ()}), ["x"], title="Dead", machine="")
    assert 'id="errors"' in html and "no answer" in html
    assert 'id="client-and-service"' not in html and 'id="over-time"' not in html


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (Debian's package chromium)")
def test_in_a_browser(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(record, [], title="Load test", machine="a machine"))
    with browser(tmp_path, width=700) as tab:
        tab.open(path.as_uri())
        sections = tab.value("[...document.querySelectorAll('section')].map(part => [part.id, part.offsetHeight > 50])")
        assert [name for name, is_seen in sections if is_seen] == [
            *("throughput-and-latency", "over-time", "client-and-service", "errors", "requests")
        ]
        assert tab.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert tab.value("document.querySelectorAll('svg[role=img] polyline').length") >= 9
        assert tab.faults == []
