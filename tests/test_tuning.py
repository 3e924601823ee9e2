import math
import shutil
from pathlib import Path

import pytest

from handlers import tuning
from handlers.tuning import Load, Space, Trial, load_once, search, space_of, tune
from segserve.artifact import Artifact
from segserve.spec import ServingSpec
from tests.slow_server import ANSWER_SECONDS, slow_server

SPACE = Space(engine=("auto", "torch"), workers=(1, 2, 4), threads=(None, 1, 2))


def trial(images_per_second: float, p95_ms: float, serving: ServingSpec | None = None) -> Trial:
    load = Load(clients=1, images_per_second=images_per_second, p95_ms=p95_ms)
    return Trial(serving=serving or ServingSpec(), loads=(load,), slo_p95_ms=100)


def test_the_best_load_is_the_fastest_within_the_target() -> None:
    loads = [Load(clients=c, images_per_second=r, p95_ms=p) for c, r, p in ((1, 10, 50), (2, 18, 90), (4, 30, 120))]
    found = Trial(serving=ServingSpec(), loads=tuple(loads), slo_p95_ms=100)
    assert (found.best.clients, found.meets) == (2, True)
    late = Trial(serving=ServingSpec(), loads=tuple(loads), slo_p95_ms=40)
    assert (late.best.clients, late.meets) == (1, False)


@pytest.mark.parametrize(
    ("ours", "theirs", "better"),
    [
        (trial(10, 90), trial(50, 110), True),
        (trial(50, 110), trial(10, 90), False),
        (trial(10.4, 99), trial(10, 10), True),
        (trial(10.2, 10), trial(10, 99), False),
        (trial(1, 150), trial(9, 200), True),
        (trial(9, 199), trial(1, 200), False),
    ],
)
def test_the_target_comes_first_then_images_then_latency_beyond_noise(ours: Trial, theirs: Trial, better: bool) -> None:
    assert ours.is_better_than(theirs) is better


def rate(serving: ServingSpec) -> float:
    """One peak: 2 workers, batch 16, 1 ms, auto, 1 thread."""
    return 100 * math.prod(
        (
            0.5 if serving.engine == "torch" else 1,
            {1: 0.8, 2: 1, 4: 0.7}[serving.workers],
            1 / (1 + abs(math.log2(serving.batch_size / 16))),
            1 / (1 + abs(serving.max_batch_delay_ms - 1) / 10),
            0.9 if serving.threads is None else 1 / serving.threads,
        )
    )


@pytest.mark.parametrize("start", [ServingSpec(), ServingSpec(batch_size=3, max_batch_delay_ms=40, max_seconds=7)])
def test_the_search_finds_the_peak_in_few_trials(start: ServingSpec) -> None:
    asked: list[ServingSpec] = []

    def measure(serving: ServingSpec) -> Trial:
        asked.append(serving)
        return trial(rate(serving), 50, serving)

    found = list(search(start, SPACE, measure))
    best = found[-1][1].serving
    assert best == start.model_copy(
        update={"engine": "auto", "workers": 2, "batch_size": 16, "max_batch_delay_ms": 1, "threads": 1}
    )
    assert len(asked) == len(set(map(str, asked))) == len(found) <= SPACE.most_trials < 2 * 3 * 6 * 6 * 3 / 20
    rates = [entry.best.images_per_second for _, entry in found]
    assert rates == sorted(rates)


def test_what_an_artifact_can_try(
    artifact: Artifact, engine_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "available_cores", lambda: 6)
    assert space_of(artifact.spec).engine == ("auto",)
    found = space_of(engine_artifact.spec)
    assert (found.engine, found.workers, found.threads) == (("auto", "torch"), (1, 2, 4, 7), (None, 1, 2, 4))


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_target_that_is_none_is_refused(target: float, artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="expected a latency target above 0 ms, but got"):
        next(tune(artifact.path, slo_p95_ms=target))


def test_an_artifact_is_tuned_from_within_its_own_folder(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packaged(Exception):
        pass

    def packages(path: Path, **_: object) -> None:
        assert not list(path.rglob("artifact"))
        raise Packaged

    shutil.copytree(artifact.path, tmp_path / "artifact")
    monkeypatch.chdir(tmp_path / "artifact")
    monkeypatch.setattr(tuning, "package", packages)
    with pytest.raises(Packaged):
        next(tune(Path(), slo_p95_ms=100))


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an artifact, but .* has no spec\.json"):
        next(tune(tmp_path, slo_p95_ms=100))


def test_clients_send_one_request_after_the_other() -> None:
    with slow_server() as address:
        found = load_once(address, b"200", clients=3, seconds=0.3)
    assert found.clients == 3
    assert 1000 * ANSWER_SECONDS <= found.p95_ms < 300
    assert found.images_per_second <= 3 / ANSWER_SECONDS
    assert found.images_per_second * found.p95_ms / 1000 == pytest.approx(3, rel=0.8)


def test_an_answer_that_is_none_ends_it() -> None:
    with slow_server() as address, pytest.raises(RuntimeError, match=r"expected 200 from .*, but got 503"):
        load_once(address, b"503", clients=2, seconds=0.1)
