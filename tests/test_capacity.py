"""The capacity plan against formulas and arithmetic by hand; the page's commands are run, and print what it says."""

import math
import re
import shlex
from pathlib import Path

import pytest

from bench import replicas
from loadtest.capacity import Question, lose_zone, main, most_per_second, plan, saturation, surge
from loadtest.service_time import ServiceTime

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/capacity.md").read_text()
EXAMPLES = re.findall(
    r"```sh\n\.venv/bin/python (-m loadtest\.capacity .*?)\n```\n\n(.*?)\n\n##", PAGE, flags=re.DOTALL
)
BATCHED = ServiceTime(seconds_per_megapixel=0.05, seconds_per_view=0.02, seconds_per_batch=0.05, outside_seconds=0.002)


def test_the_rate_of_a_replica_is_that_of_theory() -> None:
    """One image at a time, exponential times of 0.1 s: 95 % within ln(20) / (10 - rate), 1 s at a rate of 7."""
    quantiles = [(index + 0.5) / 1000 for index in range(1000)]
    ratios = tuple(-math.log(1 - quantile) for quantile in quantiles)
    service = ServiceTime(seconds_per_megapixel=0, seconds_per_view=0, seconds_per_batch=0.1, ratios=ratios)
    question = Question(p95_ms=1000, batch_size=1, batch_delay_ms=0, waiting_batches=10_000)
    assert most_per_second(service, question) == pytest.approx(10 - math.log(20), rel=0.08)


def test_more_time_and_larger_batches_allow_more() -> None:
    most = saturation(BATCHED, Question())
    assert most == pytest.approx(8 / (8 * 0.3 * 0.05 + 8 * 0.02 + 0.05))
    found = [most_per_second(BATCHED, Question(p95_ms=p95)) for p95 in (300, 1500)]
    assert found[0] < 0.9 * found[1] and found[1] == 0.8 * most
    assert most_per_second(BATCHED, Question(p95_ms=1500, batch_size=1)) < 0.7 * found[-1]


def test_a_target_that_no_replica_meets_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected 50 ms to be enough for an image that is alone, but .* about 92 ms"):
        most_per_second(BATCHED, Question(p95_ms=50))


def test_the_arithmetic_by_hand() -> None:
    question = Question(zones=3, gpus=1, price=2.0, price_per_gb=0.1, upload_kb=100, answer_kb=10)
    found = plan(question, rate=1000, per_replica=30)
    assert (found.needed, found.replicas, found.gpus) == (34, 51, 51)
    assert (found.up_mbit, found.down_mbit) == (800, 80)
    per_hour = 51 * 2.0 + 1000 * 3600 * 10e3 / 1e9 * 0.1
    assert found.per_month == pytest.approx(per_hour * 730)
    assert found.per_million == pytest.approx(per_hour / 3.6)
    alone = plan(question.model_copy(update={"zones": 1}), rate=1000, per_replica=30)
    assert (alone.needed, alone.replicas) == (34, 34)


def test_the_loss_of_a_zone() -> None:
    """Two of three replicas are left. At two thirds of the rate that is enough; at all of it, the rest is refused."""
    question = Question(p95_ms=1500, most_busy=1)
    rate = most_per_second(BATCHED, question)
    spared = lose_zone(BATCHED, question, per_replica=rate, spare=True)
    assert spared.p95_ms < 1.2 * 1500 and spared.refused < 0.02
    lost = lose_zone(BATCHED, question, per_replica=rate, spare=False)
    assert lost.refused == pytest.approx(1 - 2 * saturation(BATCHED, question) / (3 * rate), abs=0.05)
    assert lost.seconds == 60


def test_twice_the_rate() -> None:
    question = Question(p95_ms=1500, start_seconds=40, most_busy=1)
    rate = most_per_second(BATCHED, question)
    found = surge(BATCHED, question, per_replica=rate, factor=2)
    assert found.seconds == 30 - 20 + 40  # it looks at 30 s, the rate doubles at 20 s
    assert found.refused == pytest.approx(1 - saturation(BATCHED, question) / (2 * rate), abs=0.05)


@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_the_page_prints_what_its_commands_print(
    command: str, answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    module, *arguments = shlex.split(command.replace("\\\n", " "))[1:]
    assert module == "loadtest.capacity" and main(arguments) == 0
    assert capsys.readouterr().out.strip() == answer.strip()


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) == 2 and PAGE.count("```sh\n") == 3


def test_the_pages_measurement_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes minutes, so only that its options exist: it ends where it looks for the archive."""
    [command] = re.findall(r"\.venv/bin/python -m bench\.replicas (.*)", PAGE)
    assert replicas.main([*shlex.split(command), "--store", str(tmp_path)]) == 2
    assert "expected an archive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["0"], "expected rates above 0, but got 0"),
        (["1", "--zones", "0"], "expected 'zones' to be greater than or equal to 1, but got '0'"),
        (["1", "--p95-ms", "3"], "expected p95_ms to be more than batch_delay_ms, 5, but got 3"),
        (["1", "--service-time", "nowhere.json"], "expected a file of service times, but nowhere.json cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    path.write_text(BATCHED.model_dump_json())
    assert main(["--service-time", str(path), *arguments]) == 2
    assert sentence in capsys.readouterr().err
