import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from segserve.artifact import Artifact, load_artifact
from training.evaluation import Evaluation
from training.held_out import LOG, note_evaluation
from training.layouts import Dataset, open_dataset
from training.synthetic import write_segmentation_set

EVALUATION = Evaluation(
    task="segmentation",
    split="test",
    num_images=1,
    tta="flips",
    aggregate="mean",
    scores={"miou": 0.5},
    classes=(),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=32)
    for kind in ("images", "masks"):
        shutil.copytree(tmp_path / "set" / kind / "val", tmp_path / "set" / kind / "test")
    return open_dataset(tmp_path / "set", "segmentation")


@pytest.fixture
def mine(artifact: Artifact, tmp_path: Path) -> Artifact:
    shutil.copytree(artifact.path, tmp_path / "artifacts/mine")
    return load_artifact(tmp_path / "artifacts/mine")


def test_looking_again_is_told(mine: Artifact, dataset: Dataset) -> None:
    before = sorted((path, path.read_bytes()) for path in mine.path.rglob("*") if path.is_file())
    first, second = (note_evaluation(mine, EVALUATION, dataset) for _ in range(2))
    assert first.endswith("the first evaluation on this test split")
    assert "was evaluated before: 1 time(s) with this artifact, last at 2" in second
    assert "and with 0 other artifact(s)" in second
    lines = [json.loads(line) for line in (mine.path.parent / LOG).read_text().splitlines()]
    assert [(line["artifact"], line["digest"], line["tta"]) for line in lines] == [("mine", mine.digest, "flips")] * 2
    assert lines[0]["scores"] == {"miou": 0.5}
    assert sorted((path, path.read_bytes()) for path in mine.path.rglob("*") if path.is_file()) == before


def test_other_artifacts_count_and_other_data_do_not(mine: Artifact, dataset: Dataset, tmp_path: Path) -> None:
    note_evaluation(mine, EVALUATION, dataset)
    told = note_evaluation(replace(mine, digest="another"), EVALUATION, dataset)
    assert "0 time(s) with this artifact, and with 1 other artifact(s) beside it" in told
    (tmp_path / "set/masks/test/0000.png").write_bytes(b"changed")
    assert "the first evaluation" in note_evaluation(mine, EVALUATION, dataset)


def test_a_line_that_was_cut_off_does_not_count(mine: Artifact, dataset: Dataset) -> None:
    note_evaluation(mine, EVALUATION, dataset)
    log = mine.path.parent / LOG
    whole = log.read_text()
    log.write_text(whole + whole[:50])
    assert "1 time(s) with this artifact" in note_evaluation(mine, EVALUATION, dataset)
    assert [json.loads(line)["artifact"] for line in log.read_text().splitlines()] == ["mine", "mine"]


def test_a_broken_line_is_named(mine: Artifact, dataset: Dataset) -> None:
    (mine.path.parent / LOG).write_text("broken\n")
    with pytest.raises(ValueError, match=rf"{LOG}: expected JSON, but it cannot be read"):
        note_evaluation(mine, EVALUATION, dataset)


def test_where_nothing_can_be_noted_the_scores_are_not_lost(
    mine: Artifact, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("training.held_out.append_lines", read_only)
    told = note_evaluation(mine, EVALUATION, dataset)
    assert "the first evaluation on this test split, which could not be noted: Read-only file system" in told
