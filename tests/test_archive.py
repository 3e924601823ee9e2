import zipfile
from pathlib import Path

import pytest

from cli import main
from handlers.archive import package
from segserve.artifact import Artifact, load_artifact


def test_the_archive_carries_the_engine_and_what_chooses_it(engine_artifact: Artifact, tmp_path: Path) -> None:
    archive = package(engine_artifact.path, store=tmp_path / "store")
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "unpacked")
    engine = {"engine/model.xml", "engine/model.bin", "example/mask-openvino.png", "weights.safetensors"}
    assert {f"artifact/{name}" for name in engine} <= names
    assert {
        "segserve/choice.py",
        "segserve/engines/openvino_engine.py",
        "handlers/adapter.py",
        "handlers/contract.py",
    } <= names
    assert load_artifact(tmp_path / "unpacked/artifact").digest == engine_artifact.digest


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", "a/../../escape"),
        ("--name", "a/b"),
        ("--name", "my model"),
        ("--name", "a,b=c"),
        ("--name", ""),
        ("--version", ""),
        ("--version", "1/0"),
        ("--version", "1..0"),
    ],
)
def test_what_could_not_be_served_is_not_packaged(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    store = tmp_path / "inside" / "store"
    assert main(["package", str(artifact.path), option, value, "--store", str(store)]) == 2
    what = option.removeprefix("--")
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"segserve: expected a {what} of letters") and sentence.count("\n") == 1
    assert f"but got {value!r}: choose another with {option}" in sentence
    assert not list(tmp_path.iterdir())
