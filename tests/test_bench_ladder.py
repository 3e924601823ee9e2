import re
import shlex
from pathlib import Path

import pytest

from bench.ladder import _parser, main, recipes
from segserve.artifact import load_artifact
from training.evaluate import evaluate
from training.synthetic import write_classification_set, write_segmentation_set

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/networks.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/python -m bench\.ladder (.*)$", PAGE, flags=re.MULTILINE)

RECIPE = """
name = "tiny"
task = "{task}"
[data]
root = "{root}"
[preprocess]
working_side = 48
[augment]
crop = [48, 48]
[optim]
epochs = 1
batch_size = 4
learning_rate = 1e-3
"""


def rows(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in cells]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_name_networks_that_can_be_trained(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = _parser().parse_args(shlex.split(command))
    ladder = recipes(given)
    names = (given.encoders or given.architectures).split(",")
    assert [len(seeds) for seeds in ladder] == [3] * len(names)
    assert len({recipe.name for seeds in ladder for recipe in seeds}) == 3 * len(names)


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 4


def test_a_line_says_what_evaluate_says_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=4, num_val=2, side=48)
    (tmp_path / "tiny.toml").write_text(RECIPE.format(task="segmentation", root=tmp_path / "set"))
    out, runs = tmp_path / "ladder.md", tmp_path / "runs"
    where = ["--runs", str(runs), "--out", str(out)]
    command = [str(tmp_path / "tiny.toml"), "--encoders", "mobilenet_v3_small", *where]
    assert main(command) == 0
    (row,) = rows(out)
    artifact = load_artifact(runs / "tiny-mobilenet_v3_small-0" / "artifact")
    evaluation = evaluate(artifact, tmp_path / "set")
    assert row["network"] == "unet, mobilenet_v3_small"
    assert row["miou"] == f"{evaluation.scores['miou']:.4f}"
    assert evaluation.certainty is not None
    assert row["ece"] == f"{evaluation.certainty.ece:.4f}"
    assert row["M parameters"] == f"{sum(p.numel() for p in artifact.network.parameters()) / 1e6:.2f}"
    assert float(row["MB"]) == pytest.approx(4 * float(row["M parameters"]), rel=0.05)
    assert float(row["ms"]) > 0

    logs = {path: path.stat().st_mtime_ns for path in runs.glob("*/log.jsonl")}
    teacher = ["--teacher", str(artifact.path)]
    assert main([*command, *teacher]) == 0
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    assert out.read_text().count("# One recipe, many networks\n") == 1
    assert "| unet, mobilenet_v3_small, distilled |" in out.read_text()


def test_classifiers_and_several_seeds(tmp_path: Path) -> None:
    write_classification_set(tmp_path / "set", seed=0, num_train=8, num_val=4, side=48)
    (tmp_path / "tiny.toml").write_text(RECIPE.format(task="classification", root=tmp_path / "set"))
    out = tmp_path / "ladder.md"
    where = ["--runs", str(tmp_path / "runs"), "--out", str(out)]
    change = ["--set", "optim.learning_rate=2e-3"]
    assert main([str(tmp_path / "tiny.toml"), "--networks", "squeezenet1_1", "--seeds", "2", *change, *where]) == 0
    (row,) = rows(out)
    assert row["network"] == "squeezenet1_1"
    told = "recipe tiny.toml with optim.learning_rate=2e-3, trained on "
    assert told in out.read_text() and "; 2 seeds, mean ± standard deviation." in out.read_text()
    found = [
        evaluate(load_artifact(tmp_path / f"runs/tiny-squeezenet1_1-{seed}/artifact"), tmp_path / "set").scores[
            "accuracy"
        ]
        for seed in (0, 1)
    ]
    assert row["accuracy"] == f"{sum(found) / 2:.4f} ± {abs(found[0] - found[1]) / 2**0.5:.4f}"


def test_no_seed_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(ROOT / "training/recipes/wbc.toml"), "--encoders", "resnet18", "--seeds", "0"]
    assert main([*arguments, "--out", str(tmp_path / "a.md")]) == 2
    assert "expected at least one training of each network, but got 0" in capsys.readouterr().err


def test_a_network_that_cannot_be_had_is_said_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE.format(task="segmentation", root=tmp_path / "set"))
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "ladder.md")]
    assert main([str(tmp_path / "tiny.toml"), "--encoders", "resnet18,resnet19", *where]) == 2
    assert "but got 'resnet19': did you mean resnet18?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
