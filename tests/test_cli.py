"""Mistakes at the command line: one sentence, exit code 2, and nothing begun."""

from pathlib import Path

import pytest

from cli import main
from segserve.artifact import Artifact
from tests.system.toy_service import write_toy_archive


def sentence(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command complains of."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("workers", ["0", "-3", "two"])
@pytest.mark.parametrize("command", ["predict", "pseudolabel"])
def test_ray_wants_workers(
    command: str, workers: str, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, str(artifact.path), str(tmp_path), "--out", str(tmp_path / "out"), f"--ray={workers}"])
    assert caught.value.code == 2
    assert f"expected 1 worker or more, but got '{workers}': give a number such as 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", ["tune ARTIFACT --slo-p95-ms 5 --plot", "evaluate ARTIFACT data --json", "lint data --html"]
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    command: str, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(artifact.path) if word == "ARTIFACT" else word for word in command.split()]
    assert f"expected a file to write to, but {tmp_path} is a folder" in sentence(capsys, *words, tmp_path)


def test_what_the_system_refuses_is_said_with_the_path_that_was_given(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, file = tmp_path / "none.toml", tmp_path / "file"
    file.touch()
    assert sentence(capsys, "serve", "--store", tmp_path, "--gateway", missing) == (
        f"segserve: expected to use {missing}, but the system says: No such file or directory; "
        "correct the path, or what is there\n"
    )
    said = sentence(capsys, "package", artifact.path, "--store", file)
    assert said.startswith(f"segserve: expected to use {file}, but the system says: File exists; ")


@pytest.mark.parametrize("host", ["192.0.2.1", "nohost.invalid"])
def test_a_host_that_is_none_of_this_machine(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy_archive(tmp_path / "store")
    said = sentence(capsys, "serve", "--store", tmp_path / "store", "--host", host)
    assert f"expected --host to be an address of this machine, but got {host}: give 127.0.0.1 or 0.0.0.0" in said
