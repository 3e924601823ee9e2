import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handlers import running
from handlers.running import alive, announce, find, forget_left
from handlers.settings import GatewaySettings, ServeSettings
from handlers.torchserve import RunFolder
from segserve import sample


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def announced(temporary: Path, name: str, *, store: Path) -> RunFolder:
    folder = RunFolder(temporary / f"segserve-{name}")
    folder.root.mkdir()
    settings = ServeSettings(store=store, gateway=GatewaySettings(requests_per_second=7))
    announce(folder, settings=settings, inner=settings.model_copy(update={"inference_port": 9999}))
    return folder


@contextmanager
def serving(temporary: Path, name: str, *, store: Path) -> Iterator[RunFolder]:
    folder = announced(temporary, name, store=store)
    with alive(folder):
        yield folder


def test_the_service_of_a_store_is_found(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "segserve-file").touch()
    (temporary / "segserve-starting").mkdir()
    monkeypatch.chdir(temporary)
    with serving(temporary, "a", store=temporary / "a") as folder, serving(temporary, "b", store=temporary / "b"):
        found, its_folder = find(Path("a"))
    assert its_folder == folder
    assert (found.settings.store, found.inner.inference_port) == (temporary / "a", 9999)
    assert found.settings.gateway == GatewaySettings(requests_per_second=7)


def test_a_service_of_another_version_is_none_to_talk_to(temporary: Path) -> None:
    """It may know settings that this one does not; it serves on, and is in nobody's way."""
    other = announced(temporary, "other", store=temporary / "other")
    other.announcement.write_text('{"settings": {"a_key_of_tomorrow": 1}}')
    with serving(temporary, "a", store=temporary / "a") as folder:
        assert find(temporary / "a")[1] == folder


def test_none_or_two_are_said_in_one_sentence(temporary: Path) -> None:
    store = temporary / "a"
    with pytest.raises(ValueError, match=r"one running `segserve serve` .*--store .*/a .*, but found 0: start it"):
        find(store)
    with (
        serving(temporary, "one", store=store),
        serving(temporary, "two", store=store),
        pytest.raises(ValueError, match="but found 2"),
    ):
        find(store)


def test_what_a_killed_service_or_another_user_left_does_not_count(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = temporary / "a"
    with serving(temporary, "killed", store=store):
        pass
    with pytest.raises(ValueError, match="but found 0"):
        find(store)
    with serving(temporary, "a", store=store) as folder:
        assert find(store)[1] == folder
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(ValueError, match="but found 0"):
            find(store)


def test_what_killed_services_left_is_deleted_though_their_children_live(temporary: Path) -> None:
    store = temporary / "a"
    with serving(temporary, "killed", store=store) as killed:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (killed.root / "tmp").mkdir()
    starting = announced(temporary, "starting", store=store)
    (temporary / "segserve-file").touch()
    with child, serving(temporary, "lives", store=store) as lives:
        running.delete_dead()
        assert find(store)[1] == lives
        child.communicate(b"\n")
    assert {path.name for path in temporary.iterdir()} == {"segserve-file", lives.root.name, starting.root.name}


def test_nobody_else_s_folder_is_deleted(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(temporary, "killed", store=temporary / "a") as killed:
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    running.delete_dead()
    assert killed.root.exists()


def test_only_one_at_a_time(temporary: Path) -> None:
    folder = RunFolder(temporary)
    words = "expected to be the only deploy or rollback, but another one runs"
    with running.alone(folder), pytest.raises(ValueError, match=words), running.alone(folder):
        pass
    with running.alone(folder):
        pass


def test_images_that_a_killed_deployment_left_are_deleted(temporary: Path) -> None:
    folder = RunFolder(temporary)
    folder.store.mkdir()
    sample.ask(folder.sample, count=1)
    with running.alone(folder):
        forget_left(folder)
        assert folder.sample.exists()
    forget_left(folder)
    assert not folder.sample.exists()
    forget_left(folder)


def test_a_link_that_a_killed_deployment_left_is_deleted(temporary: Path) -> None:
    folder = RunFolder(temporary)
    folder.store.mkdir()
    folder.offer(temporary / "gone.mar", name="next.mar")
    with running.alone(folder):
        forget_left(folder)
        assert len(list(folder.store.iterdir())) == 1
    forget_left(folder)
    assert list(folder.store.iterdir()) == []
