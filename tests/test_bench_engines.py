import pytest

from bench.engines import engines_of, main
from segserve.artifact import Artifact


def test_every_engine_is_measured(
    engine_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["torch float32", "torch bfloat16", "openvino float32", "openvino bfloat16"]
    assert list(engines_of(engine_artifact)) == names
    monkeypatch.setattr("sys.argv", ["bench", str(engine_artifact.path), "--batch", "1", "--size", "32", "64"])
    monkeypatch.setattr("bench.limit.SIDES", {"cpu": 128})
    monkeypatch.setattr("bench.limit.ROUNDS", 1)
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[2:6]] == names
    assert "1.00 times torch float32" in lines[2]
    assert [line.split()[3] for line in lines[6:9]] == ["float32", "bfloat16", "int8"]
    assert lines[9].startswith("limit: memory")


def test_no_artifact_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "nowhere"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("bench.engines: expected an artifact, but nowhere has no spec.json")
