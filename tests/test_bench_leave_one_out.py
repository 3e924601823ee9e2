import json
from pathlib import Path

import pytest

from bench.leave_one_out import grouped, link, main
from training.engine import NonFiniteLoss
from training.layouts import Sample, open_dataset
from training.synthetic import write_segmentation_set

RECIPE = Path(__file__).parents[1] / "training/recipes/wbc.toml"
TINY = (
    *("network.encoder=resnet18", "preprocess.working_side=32", "augment.crop=[32,32]", "augment.scale=[1,1]"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=2"),
)


def samples(*names: str) -> list[Sample]:
    return [Sample(image=Path(f"{name}.png"), truth=Path(f"{name}.png")) for name in names]


def test_a_group_is_what_the_pattern_finds() -> None:
    one, two, three = samples("b_1", "a_1", "b_2")
    assert grouped([one, two, three], "^[^_]+") == {"a": [two], "b": [one, three]}


def test_a_name_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected '\^\[0-9\]\+' to find a group in each name, but not in b_1.png"):
        grouped(samples("1_a", "b_1"), "^[0-9]+")


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a regular expression, but '\(' is none .+: correct --group"):
        grouped(samples("a_1"), "(")


def test_one_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least two groups, but .+ finds a in every name"):
        grouped(samples("a_1", "a_2"), ".")


def test_the_group_left_out_becomes_val(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "linked"
    write_segmentation_set(data, seed=0, num_train=3, num_val=1, side=32)
    train = open_dataset(data, "segmentation").split("train")
    link({"a": train[:1], "b": train[1:]}, held_out="a", classes=data / "classes.json", root=out)
    linked = open_dataset(out, "segmentation")
    assert not linked.complaints
    assert [sample.image.resolve() for sample in linked.split("val")] == [train[0].image.resolve()]
    assert [sample.files[1].resolve() for sample in linked.split("train")] == [sample.files[1] for sample in train[1:]]


def test_links_to_other_images_are_refused(tmp_path: Path) -> None:
    """As after another --group or data.root: a finished run would pass for one on them."""
    write_segmentation_set(tmp_path / "data", seed=0, num_train=3, num_val=1, side=32)
    first, second, third = open_dataset(tmp_path / "data", "segmentation").split("train")
    classes, root = tmp_path / "data/classes.json", tmp_path / "linked"
    link({"a": [first], "b": [second, third]}, held_out="a", classes=classes, root=root)
    link({"a": [first], "b": [second, third]}, held_out="a", classes=classes, root=root)
    with pytest.raises(ValueError, match=r"linked to link to the images that a is left out of, but it links to others"):
        link({"a": [first, second], "b": [third]}, held_out="a", classes=classes, root=root)


def test_each_group_is_left_out_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs, out = tmp_path / "data", tmp_path / "runs", tmp_path / "out.md"
    write_segmentation_set(data, seed=0, num_train=4, num_val=1, side=32)
    for folder in ("images/train", "masks/train"):
        for index, path in enumerate(sorted((data / folder).iterdir())):
            path.rename(path.with_name(f"{'ab'[index // 2]}_{path.name}"))
    settings = [part for change in (*TINY, f"data.root={data}") for part in ("--set", change)]
    arguments = [str(RECIPE), "--group", "^[^_]+", *settings, "--runs", str(runs), "--out", str(out)]
    assert main(arguments) == 0
    *_, first, second, mean = out.read_text().splitlines()
    scores = [json.loads((runs / f"wbc-without-{group}/scores.json").read_text())["scores"]["miou"] for group in "ab"]
    assert first.startswith(f"| a | 2 | {scores[0]:.4f} |")
    assert second.startswith(f"| b | 2 | {scores[1]:.4f} |")
    assert mean.startswith(f"| mean | | {sum(scores) / 2:.4f} |")


def test_a_training_that_diverges_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverges(*_: object, **__: object) -> None:
        raise NonFiniteLoss("the loss is nan")

    monkeypatch.setattr("bench.leave_one_out.evaluations", diverges)
    assert main([str(RECIPE), "--group", ".", "--out", str(tmp_path / "a.md")]) == 1
    assert capsys.readouterr().err == "bench.leave_one_out: the loss is nan\n"


def test_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPE.with_name("clothing.toml")
    assert main([str(recipe), "--group", ".", "--out", str(tmp_path / "out.md")]) == 2
    assert (
        "expected a segmentation recipe with layout folder, but clothing has classification" in capsys.readouterr().err
    )
