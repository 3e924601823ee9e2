"""What `segserve predict --ray` finds to do; the doing is in `tests/system/test_bulk.py`."""

import json
import os
from pathlib import Path

import pytest

from cli import main
from segserve.artifact import Artifact

bulk = pytest.importorskip("segserve.bulk", reason="Ray is not installed (the extra `ray`)")


def job(tmp_path: Path, **places: str) -> "bulk.Job":  # type: ignore[name-defined]
    named = {"images": str(tmp_path / "images"), "out": str(tmp_path / "out"), **places}
    return bulk.Job(artifact=tmp_path / "artifact", **named)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "deep/er/a.jpg", "deep/b.tif", "classes.json", ".hidden/c.png", "deep/.d.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def test_images_are_found_in_subfolders_and_nothing_else(images: Path, tmp_path: Path) -> None:
    assert bulk.find_images(job(tmp_path)) == (["a.png", "deep/b.tif", "deep/er/a.jpg"], [])


def test_a_uri_names_the_same_folder(images: Path, tmp_path: Path) -> None:
    assert bulk.find_images(job(tmp_path, images=images.as_uri())) == bulk.find_images(job(tmp_path))


def test_what_has_its_json_is_done(images: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.json", "deep/b.png", "er/a.json"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert bulk.find_images(job(tmp_path)) == (["deep/b.tif", "deep/er/a.jpg"], ["a.png"])


def test_two_images_with_one_answer_are_refused(images: Path, tmp_path: Path) -> None:
    (images / "deep/b.png").touch()
    with pytest.raises(ValueError, match=r"expected different file names, but several are called deep/b"):
        bulk.find_images(job(tmp_path))


@pytest.mark.parametrize("out", ["images", "images/out"])
def test_answers_among_the_images_are_refused(images: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(ValueError, match="outside of"):
        bulk.find_images(job(tmp_path, out=str(tmp_path / out)))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="but there are none"):
        bulk.find_images(job(tmp_path))


def test_nothing_left_to_do_needs_no_cluster(
    images: Path, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.json", "deep/b.json", "deep/er/a.json"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        model = {"name": "tiny", "version": "1.0", "digest": artifact.digest}
        path.write_text(json.dumps({"model": model, "tta": {"plan": "d4", "views": 8, "aggregate": "mean"}}))
    command = ["predict", str(artifact.path), str(images), "--ray", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--tta", "d4"]) == 0
    assert "3 of 3 images have their answers already" in capsys.readouterr().out
    assert main(command) == 2
    told = f"a.json is by model tiny {artifact.digest[:12]} with tta d4: choose another --out, or delete the answers"
    assert told in capsys.readouterr().err


def test_a_name_that_is_no_text_is_named(images: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(images) + b"/f\xfcr.png")).touch()
    with pytest.raises(ValueError, match=r"expected names in UTF-8 below .*, but one has the bytes b'.*f\\xfcr.png'"):
        bulk.find_images(job(tmp_path))


def test_one_folder_is_asked_for(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(artifact.path), "a.png", "b.png", "--ray", "2", "--out", "out"]) == 2
    assert "expected one folder with --ray, but got 2 names" in capsys.readouterr().err
