"""`segserve tune` on the real service, over a space so small that two starts are enough."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import cli
from handlers import tuning
from handlers.tuning import Space
from segserve.artifact import Artifact, load_artifact
from tests.test_engines_page import COMMANDS

pytestmark = pytest.mark.system

SPACE = Space(
    engine=("auto",),
    workers=(1,),
    batch_size=(1,),
    max_batch_delay_ms=(0,),
    threads=(None, 1),
    clients=(1, 2),
    seconds=0.5,
)


def test_the_pages_command_keeps_the_best_settings(
    engine_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [command] = [line for line in COMMANDS if " tune " in line]
    program, *arguments = command.replace("500", "60000").split()
    assert program == ".venv/bin/segserve"
    path = tmp_path / "artifacts/demo-segmentation"
    shutil.copytree(engine_artifact.path, path)
    document = json.loads((path / "spec.json").read_text())
    document["serving"] |= {"batch_size": 1, "max_batch_delay_ms": 0, "max_seconds": 7}
    (path / "spec.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "space_of", lambda spec: SPACE)
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.rpartition(", ")[2] for line in told[:2]] == ["auto thread(s)", "1 thread(s)"]
    assert "images/s within 60000 ms, by auto, 1 worker(s), batch 1, 0 ms, " in told[-1]
    kept = load_artifact(path).spec
    assert (kept.serving.batch_size, kept.serving.max_seconds) == (1, 7)
    assert kept.serving.threads in (None, 1)
    assert kept.model_copy(update={"serving": engine_artifact.spec.serving}) == engine_artifact.spec
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert ElementTree.parse(tmp_path / f"runs/tune/{kept.name}.svg").getroot().tag.endswith("svg")
