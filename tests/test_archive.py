import zipfile
from pathlib import Path

from handlers.archive import package
from segserve.artifact import Artifact, load_artifact


def test_the_archive_carries_the_engine_and_what_chooses_it(engine_artifact: Artifact, tmp_path: Path) -> None:
    archive = package(engine_artifact.path, store=tmp_path / "store")
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "unpacked")
    engine = {"engine/model.xml", "engine/model.bin", "example/mask-openvino.png", "weights.safetensors"}
    assert {f"artifact/{name}" for name in engine} <= names
    assert {"segserve/choice.py", "segserve/engines/openvino_engine.py", "handlers/adapter.py"} <= names
    assert load_artifact(tmp_path / "unpacked/artifact").digest == engine_artifact.digest
