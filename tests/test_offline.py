"""`segserve predict`, on files."""

from pathlib import Path

import pytest
from PIL import Image

from cli import main
from segserve.artifact import Artifact
from tests.conftest import random_image


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_an_answer_never_takes_an_images_place(
    artifact: Artifact, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name, tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(random_image(40, 60)).save(path)
    before = [path.read_bytes() for path in paths]
    assert main(["predict", str(artifact.path), *map(str, paths), "--out", str(tmp_path / "x/..")]) == 2
    assert f"would take the place of {paths[0 if name == 'a.png' else 1]}: change --out" in capsys.readouterr().err
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
