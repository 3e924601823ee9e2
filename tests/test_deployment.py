"""What is refused before TorchServe is asked to load anything. The rest is done to the real service: system/."""

import json
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handlers import running
from handlers.deployment import DeploySettings, RollbackSettings, _requests, _sampled, deploy, rollback
from handlers.settings import ServeSettings
from handlers.store import SUMS
from handlers.torchserve import RunFolder, free_port
from segserve.digest import sha256_of
from segserve.spec import ModelSpec, Task
from tests.conftest import CLASSES, tiny_spec


class _Recorded(BaseHTTPRequestHandler):
    """The management API with version 1.0 of cells loaded; it takes nothing."""

    def do_GET(self) -> None:
        state = {
            "modelName": "cells",
            "modelVersion": "1.0",
            "maxBatchDelay": 5,
            "jobQueueStatus": {"pendingRequests": 0},
        }
        worker = {"status": "READY", "pid": -1}
        body = json.dumps([{**state, "workers": [worker]}]).encode()
        self.send_response(200 if self.path == "/models/cells/all" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def write_archive(path: Path, *, name: str = "cells", version: str = "2.0", spec: ModelSpec | None) -> Path:
    path.parent.mkdir(exist_ok=True)
    model = {"modelName": name, "modelVersion": version, "handler": "segmentation_handler.py"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        if spec is not None:
            archive.writestr("artifact/spec.json", spec.model_dump_json())
    return path


@pytest.fixture
def store(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a service that says it runs."""
    write_archive(tmp_path / "store/cells.mar", version="1.0", spec=spec)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    management = ThreadingHTTPServer(("127.0.0.1", 0), _Recorded)
    threading.Thread(target=management.serve_forever, args=[0.05], daemon=True).start()
    settings = ServeSettings(store=tmp_path / "store", management_port=management.server_address[1])
    folder = RunFolder(tmp_path / "segserve-a")
    folder.root.mkdir()
    running.announce(folder, settings=settings, inner=settings)
    with running.alive(folder):
        yield tmp_path / "store"
    management.shutdown()
    management.server_close()
    assert {path.name for path in (tmp_path / "store").iterdir()} <= {"cells.mar", "more.mar", SUMS}
    assert not folder.sample.exists()


def refusal(archive: Path, store: Path, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        deploy(DeploySettings(archive=archive, store=store, **settings), say=print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_is_not_served(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", name="cell", spec=spec)
    assert "expected a model that is served (cells), but got 'cell': name one of them" in refusal(archive, store)


def test_the_version_that_is_served(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", version="1.0", spec=spec)
    assert "expected another version than cells 1.0, which is served: package it with" in refusal(archive, store)


@pytest.mark.parametrize(
    ("task", "classes", "words"),
    [
        ("classification", CLASSES, "but it is for classification with sky, road, tree, car"),
        ("segmentation", CLASSES[:3], "but it is for segmentation with sky, road, tree: its answers would mean"),
    ],
)
def test_another_task_or_other_classes(store: Path, tmp_path: Path, task: Task, classes: Any, words: str) -> None:
    spec = tiny_spec(task).model_copy(update={"classes": classes})
    sentence = refusal(write_archive(tmp_path / "new.mar", spec=spec), store)
    assert "expected cells 2.0 to be for segmentation with the classes sky, road, tree, car, as 1.0 is" in sentence
    assert words in sentence


def test_an_archive_without_a_spec_or_with_a_broken_one(store: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "new.mar", spec=None)
    assert "to be made by `segserve package`, but it has no artifact/spec.json" in refusal(archive, store)
    whole = write_archive(tmp_path / "broken.mar", spec=tiny_spec("segmentation"))
    whole.write_bytes(whole.read_bytes().replace(b"resnet18", b"resnet34"))
    assert "broken.mar to be whole, but got: Bad CRC-32 for file 'artifact/spec.json'; fetch" in refusal(whole, store)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("artifact/spec.json", '{"name": "a"}')
    assert f"artifact/spec.json in {archive}: expected a value for 'task'" in refusal(archive, store)


def test_no_archive(store: Path, tmp_path: Path) -> None:
    assert "new.mar to be readable, but got: No such file" in refusal(tmp_path / "new.mar", store)
    (tmp_path / "new.mar").write_bytes(b"no zip")
    assert "new.mar to be a model archive" in refusal(tmp_path / "new.mar", store)


def test_another_digest_than_was_named(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", version="1.0", spec=spec)
    assert f"to have SHA-256 {'0' * 64}, but it has {sha256_of(archive)}" in refusal(archive, store, sha256="0" * 64)
    assert "expected another version" in refusal(archive, store, sha256=sha256_of(archive).upper())


def test_a_digest_that_the_store_does_not_list(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", name="cell", spec=spec)
    (store / SUMS).write_text(f"{sha256_of(store / 'cells.mar')}  cells.mar\n")
    assert "say with --sha256 which it must have" in refusal(archive, store)
    assert "expected a model that is served" in refusal(archive, store, sha256=sha256_of(archive))


def test_a_store_that_no_longer_holds_what_is_served(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", version="3.0", spec=spec)
    write_archive(store / "cells.mar", version="2.0", spec=spec)
    assert "to be the version that answers, cells 1.0, but it is cells 2.0: put" in refusal(archive, store)


@pytest.mark.parametrize("name", ["empty", "nowhere", "others"])
def test_a_folder_without_images(store: Path, tmp_path: Path, spec: ModelSpec, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    for other in (".DS_Store", "README.md", "labels.csv"):
        (tmp_path / "others" / other).touch()
    archive = write_archive(tmp_path / "new.mar", spec=spec)
    sentence = refusal(archive, store, images=tmp_path / name)
    assert (
        sentence == f"expected images in the folder {tmp_path / name}, but there are none: name another with --images"
    )


def test_two_archives_of_one_model(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", version="3.0", spec=spec)
    write_archive(store / "more.mar", version="2.0", spec=spec)
    sentence = refusal(archive, store)
    assert f"expected one archive of cells in {store}, but there are cells.mar, more.mar: start" in sentence


def test_too_few_requests(store: Path, tmp_path: Path) -> None:
    settings = DeploySettings(archive=tmp_path / "new.mar", store=store, wait_seconds=0.01)
    folder = RunFolder(tmp_path / "segserve-a")
    words = "expected 20 requests within 0.01 s, but 0 were answered: allow more with --wait, ask for fewer"
    with _sampled(settings, folder), pytest.raises(RuntimeError, match=words):
        _requests(settings, folder, say=print)


def test_a_service_that_ends_in_the_middle(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    archive = write_archive(tmp_path / "new.mar", spec=spec)
    folder = RunFolder(tmp_path / "segserve-a")
    text = folder.announcement.read_text()
    port = ServeSettings.model_validate(json.loads(text)["settings"]).management_port
    folder.announcement.write_text(text.replace(str(port), str(free_port())))
    with pytest.raises(RuntimeError, match="expected the service to go on answering, but got: ConnectionRefusedError"):
        deploy(DeploySettings(archive=archive, store=store), say=print)


def test_what_torchserve_does_not_take_leaves_nothing_behind(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    (RunFolder(tmp_path / "segserve-a").store).mkdir()
    archive = write_archive(tmp_path / "new.mar", spec=spec)
    with pytest.raises(RuntimeError, match=r"expected TorchServe to take POST /models\?url=next.mar&synchronous=false"):
        deploy(DeploySettings(archive=archive, store=store), say=print)
    assert list(RunFolder(tmp_path / "segserve-a").store.iterdir()) == []


def test_the_link_of_a_killed_deployment_is_in_nobodys_way(store: Path, tmp_path: Path, spec: ModelSpec) -> None:
    folder = RunFolder(tmp_path / "segserve-a")
    folder.store.mkdir()
    folder.offer(store / "cells.mar.new", name="next.mar")
    archive = write_archive(tmp_path / "new.mar", spec=spec)
    with pytest.raises(RuntimeError, match="expected TorchServe to take POST"):
        deploy(DeploySettings(archive=archive, store=store), say=print)


def test_without_a_previous_version_there_is_nothing_to_roll_back_to(store: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cells\.mar\.previous, the archive that was served before, but there is none"
    ):
        rollback(RollbackSettings(model="cells", store=store), say=print)
