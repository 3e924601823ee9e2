"""`segserve predict`, on files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from cli import main
from segserve import offline, regions
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.offline import load_predictor, predict_files
from segserve.prediction import Prediction, Query
from segserve.predictor import SegmentationPredictor
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


def test_large_images_are_not_all_held_at_once(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = []
    attempt = SegmentationPredictor.attempt

    def attempts(
        self: SegmentationPredictor, queries: Sequence[Query], *, clock: StageClock
    ) -> Sequence[Prediction | Exception]:
        together.append(len(queries))
        return attempt(self, queries, clock=clock)

    loaded, predictor = load_predictor(artifact.path)
    monkeypatch.setattr(SegmentationPredictor, "attempt", attempts)
    monkeypatch.setattr(offline, "SAMPLES_AT_ONCE", 3 * 2000)
    images = [tmp_path / f"{index}.png" for index in range(5)]
    for image, side in zip(images, (50, 30, 30, 50, 10), strict=True):
        Image.fromarray(random_image(side, side)).save(image)
    done = dict(predict_files(images, artifact=loaded, predictor=predictor, out=tmp_path / "out"))
    assert done == dict.fromkeys(images)
    assert [count for count in together if count] == [1, 3, 1]
    assert len(list((tmp_path / "out").glob("*.json"))) == 5


def test_a_folder_among_the_images_is_said_in_one_sentence(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    assert main(["predict", str(artifact.path), str(tmp_path / "photos"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "expected the file of an image, but it cannot be read: Is a directory" in printed.err + printed.out
    assert "Errno" not in printed.err + printed.out


def test_an_image_without_an_answer_does_not_end_the_others(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask has more runs than the JSON may name; the limit is lowered."""
    monkeypatch.setattr(regions, "MAX_RUNS", 1000)
    Image.fromarray(random_image(32, 1)).save(tmp_path / "a.png")
    Image.fromarray(random_image(1100, 1)).save(tmp_path / "b.png")
    Image.fromarray(random_image(16, 1)).save(tmp_path / "c.png")
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    assert main(["predict", str(artifact.path), *images, "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "expected at most 1000 runs of one class" in printed.err + printed.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.png", "c.json", "c.png"]
