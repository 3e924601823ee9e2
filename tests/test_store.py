import errno
import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from handlers.settings import ServeSettings
from handlers.store import ServedModel, exchanged, previous, put, served_models


def write_archive(path: Path, manifest: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def write_model(path: Path, name: str = "seg", version: str = "1.0") -> None:
    write_archive(path, {"model": {"modelName": name, "modelVersion": version}})


def test_every_archive_is_served_under_its_manifests_name(tmp_path: Path) -> None:
    write_model(tmp_path / "b.mar", "seg", "1.0")
    write_model(tmp_path / "a.mar", "labels", "2.0")
    (tmp_path / "notes.txt").touch()
    assert served_models(ServeSettings(store=tmp_path)) == (
        ServedModel("a.mar", "labels", "2.0"),
        ServedModel("b.mar", "seg", "1.0"),
    )


def test_named_archives_only_each_once_in_the_order_given(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path / f"{name}.mar", name)
    models = served_models(ServeSettings(store=tmp_path, models=("c.mar", "a.mar", "c.mar")))
    assert [model.archive for model in models] == ["c.mar", "a.mar"]


def test_two_versions_of_a_model_are_served_together(tmp_path: Path) -> None:
    write_model(tmp_path / "old.mar", "seg", "1.0")
    write_model(tmp_path / "new.mar", "seg", "1.1")
    assert [str(model) for model in served_models(ServeSettings(store=tmp_path))] == ["seg 1.1", "seg 1.0"]


def refusal(settings: ServeSettings) -> str:
    with pytest.raises(ValueError) as caught:
        served_models(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_store_says_how_to_fill_one(tmp_path: Path) -> None:
    sentence = refusal(ServeSettings(store=tmp_path / "none"))
    assert re.match(r"expected the model store .*/none to be a folder, but there is none: .*segserve package", sentence)


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    sentence = refusal(ServeSettings(store=tmp_path))
    assert "expected an archive (*.mar) in the model store" in sentence
    assert "segserve package" in sentence


def test_a_missing_archive_is_answered_with_those_there_are(tmp_path: Path) -> None:
    write_model(tmp_path / "seg.mar")
    sentence = refusal(ServeSettings(store=tmp_path, models=("sag.mar",)))
    assert f"expected --models to name archives in {tmp_path} (seg.mar), but got 'sag.mar'" in sentence


def test_the_same_model_twice_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "a.mar")
    write_model(tmp_path / "b.mar")
    assert "but a.mar and b.mar are both seg 1.0" in refusal(ServeSettings(store=tmp_path))


@pytest.mark.parametrize("name", ["a,b.mar", "a=b.mar", "-a.mar", "a..b.mar", "a b.mar"])
def test_a_file_name_that_torchserve_would_split_is_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / name)
    assert f"but got {name!r}: rename the file" in refusal(ServeSettings(store=tmp_path))


@pytest.mark.parametrize("manifest", [None, [], {}, {"model": {}}, {"model": {"modelName": "seg"}}])
def test_a_manifest_without_a_model_is_refused(tmp_path: Path, manifest: Any) -> None:
    write_archive(tmp_path / "seg.mar", manifest)
    assert "seg.mar to be a model archive whose MAR-INF/MANIFEST.json names" in refusal(ServeSettings(store=tmp_path))


def test_something_else_under_the_name_of_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seg.mar").write_bytes(b"no archive")
    assert "make it again with `segserve package`" in refusal(ServeSettings(store=tmp_path))
    (tmp_path / "seg.mar").unlink()
    zipfile.ZipFile(tmp_path / "seg.mar", "w").close()
    assert "KeyError" in refusal(ServeSettings(store=tmp_path))


def test_places_and_task_come_from_the_archive(tmp_path: Path) -> None:
    model = {"modelName": "seg", "modelVersion": "1.0", "handler": "segmentation_handler.py", "configFile": "c.yaml"}
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.writestr("c.yaml", "minWorkers: 2\nbatchSize: 8\nresponseTimeout: 90\n")
    [served] = served_models(ServeSettings(store=tmp_path))
    assert (served.task, served.places, served.answer_seconds) == ("segmentation", 16, 90)


@pytest.mark.parametrize("config", ["minWorkers: many", "{", "batchSize: [8]", "- batchSize: 8", "batchSize"])
def test_a_configuration_that_cannot_be_read_is_said_in_one_sentence(tmp_path: Path, config: str) -> None:
    model = {"modelName": "seg", "modelVersion": "1.0", "configFile": "c.yaml"}
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.writestr("c.yaml", config)
    with pytest.raises(ValueError, match="make it again with `segserve package`"):
        served_models(ServeSettings(store=tmp_path))


def test_an_archive_that_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a\.mar to be readable, but got: No such file or directory; let whoever"):
        served_models(ServeSettings(store=tmp_path))


def test_a_store_that_cannot_be_listed_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the system's refusal is called for by hand."""

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(ValueError, match="to be readable, but got: Permission denied; let whoever serves read it"):
        served_models(ServeSettings(store=tmp_path))


def sums(store: Path, *digests: str) -> None:
    (store / "SHA256SUMS").write_text("".join(f"{digest}  some.mar\n" for digest in digests))


def test_where_there_are_sums_each_archive_must_be_among_them(tmp_path: Path) -> None:
    write_model(tmp_path / "a.mar")
    write_model(tmp_path / "b.mar", "labels")
    digests = [subprocess.check_output(["sha256sum", tmp_path / name], text=True)[:64] for name in ("a.mar", "b.mar")]
    sums(tmp_path, *digests)
    assert len(served_models(ServeSettings(store=tmp_path))) == 2
    sums(tmp_path, digests[0])
    assert len(served_models(ServeSettings(store=tmp_path, models=("a.mar",)))) == 1
    assert f"expected the SHA-256 of {tmp_path}/b.mar to stand in {tmp_path}/SHA256SUMS, but it does not" in refusal(
        ServeSettings(store=tmp_path)
    )


def test_what_is_put_in_an_archive_s_place_and_what_was_there_change_places(tmp_path: Path) -> None:
    (tmp_path / "seg.mar").write_text("1")
    (tmp_path / "seg.mar.new").write_text("2")
    put(tmp_path, "seg.mar", tmp_path / "seg.mar.new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"seg.mar": "2", "seg.mar.previous": "1"}
    put(tmp_path, "seg.mar", previous(tmp_path, "seg.mar"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"seg.mar": "1", "seg.mar.previous": "2"}


def test_what_was_served_before_is_not_served(tmp_path: Path) -> None:
    write_model(tmp_path / "seg.mar", version="2.0")
    write_model(previous(tmp_path, "seg.mar"), version="1.0")
    assert [str(model) for model in served_models(ServeSettings(store=tmp_path))] == ["seg 2.0"]


def test_what_fails_after_an_exchange_finds_everything_as_it_was(tmp_path: Path) -> None:
    for name, text in (("seg.mar", "2"), ("seg.mar.previous", "1"), ("seg.mar.new", "3")):
        (tmp_path / name).write_text(text)
    with pytest.raises(RuntimeError), exchanged(tmp_path, "seg.mar", tmp_path / "seg.mar.new"):
        assert {path.name: path.read_text() for path in tmp_path.glob("seg*")} == {
            "seg.mar": "3",
            "seg.mar.previous": "2",
        }
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"seg.mar": "2", "seg.mar.previous": "1"}
    with exchanged(tmp_path, "seg.mar", previous(tmp_path, "seg.mar")):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"seg.mar": "1", "seg.mar.previous": "2"}


def test_an_archive_with_a_damaged_compressed_manifest_is_none(tmp_path: Path) -> None:
    """As torch-model-archiver makes them; segserve's own are not compressed."""
    with zipfile.ZipFile(tmp_path / "seg.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "seg"}}) * 9)
    content = bytearray((tmp_path / "seg.mar").read_bytes())
    content[60:70] = bytes(10)
    (tmp_path / "seg.mar").write_bytes(content)
    assert "seg.mar to be a model archive whose MAR-INF/MANIFEST.json names" in refusal(ServeSettings(store=tmp_path))
