"""A training that takes a round along: whose samples count how, and that an interruption does not change a bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.rounds import made_round
from training import learner
from training.config import Recipe
from training.data import data_digest
from training.engine import train
from training.flywheel.joined import with_round
from training.flywheel.round import Round
from training.layouts import open_dataset
from training.learner import build_learner
from training.losses.objective import Objective
from training.run import THIRDS, Run
from training.synthetic import write_segmentation_set

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=2, num_val=1, side=32)
    made_round(tmp_path / "round", count=8, side=32)
    return Recipe.model_validate(
        {
            "name": "small",
            "task": "segmentation",
            "data": {"root": tmp_path / "set"},
            "pseudo": {"round": tmp_path / "round"},
            "network": {"encoder": "mobilenet_v3_small"},
            "preprocess": {"working_side": 32},
            "augment": {"crop": [32, 32], "hflip": True},
            "optim": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "steps_per_epoch": 2},
            "eval": {"every_epochs": 2, "keep_thirds": True},
        }
    )


def test_interrupted_it_ends_with_the_same_bits(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (Run(tmp_path / "runs" / name) for name in ("whole", "broken"))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.engine.write_report", dies)  # when everything else is on the disk
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run_dir=whole.path, device=CPU)
    steps = iter(range(100))

    class Dying(Objective):
        def __call__(self, logits: Any, truths: Tensor, *, progress: float) -> Tensor:
            if next(steps) in (3, 4):
                raise KeyboardInterrupt
            return super().__call__(logits, truths, progress=progress)

    monkeypatch.setattr(learner, "Objective", Dying)
    monkeypatch.setattr("training.engine._Saver.is_due", True)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run_dir=broken.path, device=CPU)
    first, second = whole.load(), broken.load()
    assert first is not None and second is not None
    for before, after in zip([first.averaged, *whole.thirds()], [second.averaged, *broken.thirds()], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    for name in THIRDS:
        assert (whole.path / name).read_bytes() == (broken.path / name).read_bytes()
    last = whole.thirds()[1]
    assert all(torch.equal(last[name], first.averaged[name]) for name in last), "two thirds of 2 epochs are 2"


def test_labelled_and_pseudo_labelled_take_turns(recipe: Recipe) -> None:
    assert recipe.pseudo is not None
    dataset = with_round(open_dataset(recipe.data.root, "segmentation"), recipe.pseudo.round)
    num_pseudo = sum(sample.is_pseudo for sample in dataset.split("train"))
    batches = build_learner(recipe, dataset, checkpoint=None, device=CPU).batches
    assert (batches.order.num_samples, batches.order.num_pseudo) == (2 + num_pseudo, num_pseudo)
    assert batches.order.is_alternating and batches.steps_per_epoch == 2
    assert batches.augment.strong is not None


def test_unless_they_are_not_to_be_oversampled(recipe: Recipe) -> None:
    assert recipe.pseudo is not None
    recipe = recipe.model_copy(update={"pseudo": recipe.pseudo.model_copy(update={"oversample": False})})
    dataset = with_round(open_dataset(recipe.data.root, "segmentation"), recipe.pseudo.round)
    batches = build_learner(recipe, dataset, checkpoint=None, device=CPU).batches
    num_samples = batches.order.num_samples
    order = batches.order.of_epoch(recipe.seed, 0, num_places=num_samples)
    assert sorted(order) == list(range(num_samples)) and batches.order.num_places == num_samples
    assert batches.augment.strong is not None


def test_the_digest_notices_another_mask_wherever_the_round_lies(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.pseudo is not None
    dataset = open_dataset(recipe.data.root, "segmentation")
    first = data_digest(with_round(dataset, recipe.pseudo.round), ["train"])
    assert first != data_digest(dataset, ["train"])
    moved = recipe.pseudo.round.rename(tmp_path / "elsewhere")
    assert data_digest(with_round(dataset, moved), ["train"]) == first
    mask = next((moved / "masks/train").iterdir())
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert data_digest(with_round(dataset, moved), ["train"]) != first


@pytest.mark.parametrize("name", ["nowhere", "set"])
def test_what_is_no_round_is_named_as_such(recipe: Recipe, name: str) -> None:
    folder = recipe.data.root.parent / name
    with pytest.raises(ValueError, match=f"expected a round, but .*{name} has no round.json: make one with"):
        with_round(open_dataset(recipe.data.root, "segmentation"), folder)


def test_a_round_with_nothing_accepted_is_refused(recipe: Recipe) -> None:
    assert recipe.pseudo is not None
    for kind in ("images", "masks"):
        for path in (recipe.pseudo.round / kind / "train").iterdir():
            path.unlink()
    with pytest.raises(ValueError, match=r"expected .*round to have images in split 'train'"):
        with_round(open_dataset(recipe.data.root, "segmentation"), recipe.pseudo.round)


def test_an_image_that_the_round_does_not_tell_of_is_named(recipe: Recipe, tmp_path: Path) -> None:
    """Put there by hand, or left by a labelling that was killed before it wrote the line."""
    assert recipe.pseudo is not None
    found = Round(recipe.pseudo.round)
    entries = found.entries()
    name = next(name for name, entry in entries.items() if entry.verdict == "accept")
    found.rewrite(entry for entry in entries.values() if entry.name != name)
    with pytest.raises(
        ValueError, match=rf"expected a line in manifest.jsonl for each image .*{name}.png has none: finish"
    ):
        train(recipe, run_dir=tmp_path / "run", device=CPU)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_copy_of_a_held_out_image_is_not_trained_on(recipe: Recipe, tmp_path: Path, split: str) -> None:
    assert recipe.pseudo is not None
    accepted = next((recipe.pseudo.round / "images/train").iterdir())
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind / split).mkdir(exist_ok=True)
    Image.open(accepted).save(tmp_path / f"set/images/{split}/9999.bmp")
    Image.new("L", (32, 32)).save(tmp_path / f"set/masks/{split}/9999.png")
    with pytest.raises(ValueError, match=rf"but 1 are, such as .*{accepted.name} \(of .*{split}/9999.bmp\)"):
        train(recipe, run_dir=tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_an_image_that_is_labelled_already_keeps_its_own_mask(recipe: Recipe, tmp_path: Path) -> None:
    """As where the images to be labelled are all that there are."""
    dataset = open_dataset(tmp_path / "set", "segmentation")
    found = Round(tmp_path / "round")
    accepted = [entry for entry in found.entries().values() if entry.verdict == "accept"]
    found.image(accepted[0]).unlink()
    found.image(accepted[0]).write_bytes(dataset.split("train")[1].image.read_bytes())
    joined = with_round(dataset, found.path)
    names = [sample.image.stem for sample in joined.split("train") if sample.is_pseudo]
    assert names == [entry.name for entry in accepted[1:]]
    (note,) = joined.notes
    assert f"1 accepted image(s) are left out as copies of labelled ones, such as {found.image(accepted[0])}" in note


def test_labels_have_no_rounds(recipe: Recipe) -> None:
    table = recipe.model_dump(mode="json") | {"task": "classification"}
    with pytest.raises(ValueError, match=r"expected \[pseudo\] only with task segmentation, but got classification"):
        Recipe.model_validate(table)
