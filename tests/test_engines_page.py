"""The commands of docs/engines.md are executed here, on a tiny set; in float32, where an untrained network passes."""

import re
from pathlib import Path

import pytest

import cli
from segserve.artifact import load_artifact
from segserve.spec import EngineSpec
from tests.test_training_page import TINY
from training.synthetic import write_segmentation_set

PAGE = (Path(__file__).resolve().parents[1] / "docs/engines.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def run(command: str) -> None:
    program, *arguments = command.split()
    assert program == ".venv/bin/segserve"
    assert cli.main(arguments) == 0, command


def test_the_pages_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_segmentation_set(tmp_path / "runs/demo/data/segmentation", seed=0, num_train=4, num_val=1, side=32)
    (tmp_path / "recipe.toml").write_text(TINY.replace("mobilenet_v3_large", "resnet18"))
    assert cli.main(["train", "recipe.toml"]) == 0
    first, second, tune = COMMANDS
    assert tune.split()[1] == "tune"  # executed by tests/system/test_tuning.py
    run(first.replace("openvino-int8", "openvino"))
    run(second)
    found = [
        load_artifact(tmp_path / f"artifacts/{name}").spec.engine for name in ("demo-segmentation", "demo-openvino")
    ]
    assert [engine and engine.name for engine in found] == ["openvino", "openvino"]
    examples = {path.name for path in (tmp_path / "artifacts/demo-segmentation/example").iterdir()}
    assert {"input.png", "mask.png", "mask-openvino.png"} <= examples


def test_the_package_and_the_image_have_the_extras_that_the_page_names() -> None:
    root = Path(__file__).resolve().parents[1]
    project = (root / "pyproject.toml").read_text()
    for extra in re.findall(r"extra `([\w-]+)`", PAGE):
        assert f"\n{extra} = [" in project
    assert "ARG EXTRA=" in (root / "Dockerfile").read_text()
    assert all(f"`{name}`" in PAGE for name in EngineSpec.model_fields["name"].annotation.__args__)
