from pathlib import Path

import pytest
from PIL import Image

from bench.decoding import main
from tests.conftest import random_image


def test_both_ways_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the working side is that of the file, nothing is scaled, and nothing differs."""
    path = tmp_path / "a.png"
    Image.fromarray(random_image(30, 40)).save(path)
    assert main([str(path), "--working-side", "64", "--sides", "64", "1024"]) == 0
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0].strip() for row in rows] == ["64 x 48", "1024 x 768"]
    assert [float(row[5]) > 0 for row in rows] == [False, True]
    assert float(rows[1][4]) > 1


def test_no_picture_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.startswith("bench.decoding: ")
