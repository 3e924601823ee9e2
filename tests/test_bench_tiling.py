from pathlib import Path

import pytest

from bench.tiling import main
from segserve.artifact import Artifact


def test_mistakes_are_one_sentence(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in [
        (["nowhere", str(tmp_path)], "bench.tiling: expected an artifact, but nowhere has no spec.json"),
        ([str(artifact.path), str(tmp_path)], "there are none: name a folder of them"),
        ([str(artifact.path), str(tmp_path / "nowhere")], "nowhere, but there are none"),
    ]:
        monkeypatch.setattr("sys.argv", ["bench", *arguments])
        assert main() == 2
        assert sentence in capsys.readouterr().err
