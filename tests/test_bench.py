"""`python -m bench` without a service: what becomes of servers that fail."""

from argparse import Namespace
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench.comparison import Bare, Extra, Measurement
from bench.servers import Server
from handlers.load import Load
from segserve.artifact import Artifact

OURS = Server(name="segserve", engine="ours", command=(), path="/")
PEER = Server(name="LitServe", engine="torch", command=(), path="/")
GIVEN = Namespace(rounds=2, seconds=1.0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the servers that break off; nothing is really measured."""
    names: set[str] = set()

    def measured(server: Server, *_: object) -> Measurement:
        if server.name in names:
            raise ConnectionResetError("Connection reset by peer")
        return Measurement(load=Load(seconds=[0.1], duration=1.0), start_seconds=1.0, megabytes=1.0)

    bare = Bare(engine_images_per_second=1.0, service_images_per_second=1.0, tail=1.0, share_of_limit=1.0)
    monkeypatch.setattr(bench, "_measured", measured)
    monkeypatch.setattr(bench, "bare_of", lambda *_, **__: bare)
    monkeypatch.setattr(bench, "ask_more", lambda *_: Extra(p50_ms=1.0, p99_ms=1.0, tta_cost=1.0))
    return names


def test_a_peer_that_breaks_off_has_failed_and_the_others_are_measured(artifact: Artifact, broken: set[str]) -> None:
    broken.add("LitServe")
    found = bench.measure([OURS, PEER], artifact, b"", GIVEN)
    assert found.failed == ["LitServe, torch fp32"]
    assert {title: len(rounds) for title, rounds in found.measured.items()} == {"segserve, our engine": 2}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rounds", "0"], "expected at least one round and one client, and some seconds, but got 0, 16 and 8"),
        (["--clients", "0"], "but got 3, 0 and 8: correct --rounds, --clients or --seconds"),
        (["--only", "LitServe,Tritom"], "Triton, but got Tritom"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(artifact.path), *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("only", "titles"), [("none", 2), ("FastAPI", 4), ("", 15)])
def test_which_peers_are_asked(only: str, titles: int, artifact: Artifact, tmp_path: Path) -> None:
    given = bench._parser().parse_args([str(artifact.path), "--only", only])
    bench.check(given)
    servers = bench.servers_of(given, artifact.spec.serving, tmp_path)
    assert len({server.title for server in servers}) == titles
    assert [server.is_ours for server in servers] == [True, True] + [False] * (titles - 2)


def test_without_ours_there_is_no_page_but_a_sentence(
    artifact: Artifact,
    broken: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken.add("segserve")
    monkeypatch.setattr(bench, "LOG", tmp_path / "log")
    monkeypatch.setattr(bench, "image_of", lambda _: b"")
    monkeypatch.setattr(bench, "servers_of", lambda *_: [OURS])
    assert bench.main([str(artifact.path), "--out", str(tmp_path / "page.md")]) == 1
    assert capsys.readouterr().err.endswith("bench: Connection reset by peer\n")
    assert not (tmp_path / "page.md").exists()
