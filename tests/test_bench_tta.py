import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.tta import WAYS, main
from segserve.artifact import Artifact
from tests.conftest import random_image
from training.evaluate import evaluate


def test_the_table_says_of_each_way_what_evaluate_says(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [{"id": entry.id, "name": entry.name} for entry in artifact.spec.classes]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": names, "ignore_index": None}))
    for kind, array in (("images", random_image(33, 40)), ("masks", random_image(33, 40, seed=1)[..., 0] % 4)):
        (tmp_path / kind / "val").mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / kind / "val/0.png")
    out = tmp_path / "tta.md"
    for _ in range(2):
        assert main([str(artifact.path), str(tmp_path), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("# Test-time augmentation: gain and cost\n") == 1
    assert text.count("## tiny-segmentation: val, 1 images, temperature 1\n") == 2
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    gains = [row for row in rows if len(row) == 11][1 : 1 + len(WAYS)]
    assert [(row[0], row[1]) for row in gains] == [(plan, how if plan != "none" else "") for plan, how in WAYS]
    flips = evaluate(artifact, tmp_path, tta="flips", aggregate="max")
    (row,) = (row for row in gains if row[:2] == ["flips", "max"])
    assert flips.certainty is not None
    assert row[2:4] == ["4", f"{flips.scores['miou']:.4f}"]
    assert row[7:9] == [f"{flips.certainty.ece:.4f}", f"{flips.certainty.risk_coverage[0].aurc['entropy']:.5f}"]
    assert round(33 * 40 * flips.scores["pixel_accuracy"]) == (
        round(33 * 40 * evaluate(artifact, tmp_path).scores["pixel_accuracy"]) + int(row[5]) - int(row[6])
    )


def test_mistakes_are_one_sentence(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "tta.md")]
    assert main(["nowhere", str(tmp_path), *out]) == 2
    assert capsys.readouterr().err.startswith("bench.tta: expected an artifact, but nowhere has no spec.json")
    assert main([str(artifact.path), str(tmp_path / "nowhere"), *out]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
