"""Rounds made by a real network with random weights: what they hold, and that an interruption changes nothing."""

import itertools
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cli import main
from segserve.artifact import Artifact
from segserve.preprocess import working_size
from tests.conftest import CLASSES, random_image
from tests.rounds import files_of, held_out_set
from training.config import Recipe
from training.data import IGNORE
from training.flywheel.decisions import apply_review
from training.flywheel.exchange import import_labels
from training.flywheel.joined import with_round
from training.flywheel.pseudolabel import Found, Labeller, image_files, pseudolabel
from training.flywheel.round import MANIFEST, Round
from training.flywheel.soft import SoftMask
from training.flywheel.triage import PixelRule, Selection
from training.layouts import Dataset, open_dataset
from training.lint.inspection import check_dataset
from training.run import Run

COUNT = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "more").mkdir()
    for index in range(COUNT):
        place = folder if index else folder / "more"
        Image.fromarray(random_image(40, 48 + index, seed=index)).save(place / f"new-{index}.png")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return held_out_set(tmp_path_factory.mktemp("labelled"))


def labeller(artifact: Artifact, *, precision: float = 0.0) -> Labeller:
    return Labeller(
        artifact=artifact, plan="hflip", selection=Selection(precision=precision), pixels=PixelRule(border=1)
    )


@pytest.fixture(scope="module")
def whole(artifact: Artifact, images: Path, labelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Round:
    """A round that nobody interrupted, in which everything is accepted."""
    return pseudolabel(labeller(artifact), images, tmp_path_factory.mktemp("rounds") / "whole", held_out=labelled)


def test_each_mask_is_the_predictors_and_says_where_it_comes_from(
    whole: Round, artifact: Artifact, images: Path
) -> None:
    entries, order = whole.entries(), whole.order
    assert (order.artifact, order.number, order.model) == (artifact.digest, 1, artifact.spec.name)
    assert sorted(entries) == [f"new-{index}" for index in range(COUNT)]
    for entry in entries.values():
        assert (entry.artifact, entry.round, entry.source, entry.verdict) == (artifact.digest, 1, "model", "accept")
        (path,) = images.rglob(entry.file)
        found = labeller(artifact).look(np.asarray(Image.open(path)))
        soft = SoftMask.read(whole.soft(entry.name))
        assert (soft.mask_HW == found.prediction.mask_HW).all()
        assert soft.scale == max(soft.mask_HW.shape) / max(working_size(soft.mask_HW.shape, artifact.spec.preprocess))
        assert entry.scores == found.scores
        stored_HW = np.asarray(Image.open(whole.mask(entry.name)))
        assert ((stored_HW == soft.mask_HW) | (stored_HW == IGNORE)).all()
        assert entry.trained == pytest.approx((stored_HW != IGNORE).mean(), abs=1e-4)


def test_a_round_is_a_data_set(whole: Round, labelled: Dataset) -> None:
    assert check_dataset(whole.path, "segmentation") == []
    dataset = open_dataset(whole.path, "segmentation")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": COUNT, "val": 8}
    truth_HW = np.asarray(Image.open(labelled.root / "masks/val/3.png"))
    assert (np.asarray(Image.open(whole.path / "masks/val/3.png")) == np.where(truth_HW == 9, IGNORE, truth_HW)).all()


class Killed(BaseException):
    """What nobody catches, as little as SIGKILL."""


def test_killed_it_goes_on_and_ends_with_the_same(
    artifact: Artifact, images: Path, labelled: Dataset, whole: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of its renamings, and in the middle of a line: what is left is what is on the disk."""
    found, replace, calls = Round(tmp_path / "round"), os.replace, itertools.count()

    def replace_or_die(source: Path, target: Path) -> None:
        if next(calls) in (3, 21, 24, 28, 31):
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)
    deaths = 0
    for _ in range(10):
        try:
            pseudolabel(labeller(artifact), images, found.path, held_out=labelled)
            break
        except Killed:
            deaths += 1
            if found.entries():
                with (found.path / MANIFEST).open("ab") as file:
                    file.write(b'{"name": "half a li')
    assert deaths == 5
    assert files_of(found.path) == files_of(whole.path)


def test_an_unfinished_round_goes_on_with_the_same_only(
    artifact: Artifact, images: Path, labelled: Dataset, whole: Round
) -> None:
    with pytest.raises(ValueError, match=r"expected what .* was begun with, but selection changed: give another --out"):
        pseudolabel(labeller(artifact, precision=0.5), images, whole.path, held_out=labelled)


def test_a_round_is_one_commands_alone(
    artifact: Artifact, images: Path, labelled: Dataset, whole: Round, tmp_path: Path
) -> None:
    """Two at once would each write over the other's lines."""
    before = files_of(whole.path)
    decisions = tmp_path / "decisions.json"
    decisions.write_text(json.dumps({"round": 1, "artifact": artifact.digest, "decisions": {"new-0": "reject"}}))
    drawn = tmp_path / "tasks.xml"
    drawn.write_text(
        f'<annotations><image name="new-0.png" width="48" height="40"><polygon label="{CLASSES[0].name}" '
        'points="0,0;48,0;48,40;0,40" z_order="0"/></image></annotations>'
    )
    with whole.held():
        for work in (
            lambda: pseudolabel(labeller(artifact), images, whole.path, held_out=labelled),
            lambda: apply_review(whole, decisions),
            lambda: import_labels(drawn, whole.path),
        ):
            with pytest.raises(ValueError, match="to be free, but another command is at work in it: wait for it"):
                work()
    assert files_of(whole.path) == before
    pseudolabel(labeller(artifact), images, whole.path, held_out=labelled)


def test_nor_with_another_run_or_other_held_out_images(
    artifact: Artifact, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        held_out_set(tmp_path / name)
    (tmp_path / "run").mkdir()
    Image.new("L", (48, 40)).save(tmp_path / "b/masks/val/0.png")
    for third in ("third-1.safetensors", "third-2.safetensors"):
        Run(tmp_path / "run").save_third(third, artifact.network.state_dict())
    found = Round(tmp_path / "round")
    asked = ["pseudolabel", str(artifact.path), str(images), "--out", str(found.path), "--tta", "none"]
    asked += ["--precision", "0", "--score", "stability"]
    run = ["--run", str(tmp_path / "run")]
    a, b = (["--held-out", str(tmp_path / name)] for name in ("a", "b"))
    assert main([*asked, *run, *a]) == 0
    path, before = found.path / "round.json", files_of(found.path)
    lines = (found.path / MANIFEST).read_bytes().splitlines(keepends=True)
    (found.path / MANIFEST).write_bytes(lines[0])
    for changed, options in [("run", a), ("held_out", [*run, *b])]:
        capsys.readouterr()
        assert main([*asked, *options]) == 2
        assert f"was begun with, but {changed} changed: give another --out" in capsys.readouterr().err
    order = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: order[name] for name in order if name not in ("run", "held_out")}))
    assert main([*asked, *run, *b]) == 0, "rounds of earlier versions do not tell, and go on"
    path.write_bytes(before["round.json"])
    assert files_of(found.path) == before


def test_killed_before_its_order_it_may_have_other_held_out_images(
    artifact: Artifact, images: Path, labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = held_out_set(tmp_path / "more")
    for kind in ("images", "masks"):
        (more.root / kind / "val/0.png").rename(more.root / kind / "val/00.png")

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("training.flywheel.pseudolabel.fit_thresholds", dies)
        pseudolabel(labeller(artifact), images, tmp_path / "round", held_out=open_dataset(more.root, "segmentation"))
    found = pseudolabel(labeller(artifact), images, tmp_path / "round", held_out=labelled)
    for kind in ("images", "masks"):
        assert sorted(path.name for path in (found.path / kind / "val").iterdir()) == [f"{n}.png" for n in range(8)]


def test_a_folder_of_something_else_is_left_alone(
    artifact: Artifact, images: Path, labelled: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="to be a round or not to exist"):
        pseudolabel(labeller(artifact), images, tmp_path, held_out=labelled)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_data_set_is_not_taken_for_a_round(
    artifact: Artifact, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has images/val, as a round has that was killed early."""
    root = held_out_set(tmp_path / "set").root
    before = files_of(root)
    command = ["pseudolabel", str(artifact.path), str(images), "--out", str(root), "--held-out", str(root)]
    assert main([*command, "--tta", "none", "--precision", "0"]) == 2
    assert "set to be a round or not to exist, but it is something else: give another --out" in capsys.readouterr().err
    assert files_of(root) == before


def test_corrected_masks_are_taken_over_and_others_compared(
    artifact: Artifact, images: Path, labelled: Dataset, whole: Round, tmp_path: Path
) -> None:
    first = pseudolabel(labeller(artifact), images, tmp_path / "1", held_out=labelled)
    entries = first.entries()
    first.write_mask("new-2", np.full((40, 50), 3, dtype=np.uint8), CLASSES)
    corrected = entries["new-2"].model_copy(update={"source": "person", "decided_by": "Ada", "edited": 0.7})
    first.rewrite([corrected if name == "new-2" else entry for name, entry in entries.items()])
    second = pseudolabel(labeller(artifact), images, tmp_path / "2", held_out=labelled, previous=first.path)
    found = second.entries()
    assert second.order.number == 2
    assert found["new-2"] == corrected.model_copy(update={"round": 2})
    assert (np.asarray(Image.open(second.mask("new-2"))) == 3).all()
    assert [found[f"new-{index}"].churn for index in (0, 1, 3, 4)] == [0, 0, 0, 0]
    joined = with_round(labelled, second.path).split("train")
    assert [sample.is_pseudo for sample in joined] == [False, False, False, True, True, True, True]
    assert joined[2].image.stem == "new-2", "a person's mask counts as labelled"


def test_an_image_that_has_another_size_than_in_the_round_before_has_no_churn(
    artifact: Artifact, labelled: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    previous = None
    for side in (40, 44):
        Image.fromarray(random_image(side, 48)).save(tmp_path / "images/new.png")
        found = pseudolabel(
            labeller(artifact), tmp_path / "images", tmp_path / str(side), held_out=labelled, previous=previous
        )
        previous = found.path
    assert found.entries()["new"].churn is None


def test_another_image_of_the_same_name_is_looked_at_anew(
    artifact: Artifact, labelled: Dataset, tmp_path: Path
) -> None:
    """As where every patient's slices have the same names: neither correction nor churn is the other one's."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        Image.fromarray(random_image(40, 48, seed=seed)).save(folder / "slice.png")
    first = pseudolabel(labeller(artifact), folders[0], tmp_path / "1", held_out=labelled)
    (entry,) = first.entries().values()
    first.rewrite([entry.model_copy(update={"source": "person", "decided_by": "Ada", "edited": 0.7})])
    second = pseudolabel(labeller(artifact), folders[1], tmp_path / "2", held_out=labelled, previous=first.path)
    (entry,) = second.entries().values()
    assert (entry.source, entry.decided_by, entry.churn) == ("model", "thresholds", None)
    assert second.image(entry).read_bytes() == (folders[1] / "slice.png").read_bytes()


def test_thresholds_are_not_fitted_on_what_the_model_was_trained_on(
    artifact: Artifact, images: Path, recipe: Recipe, tmp_path: Path
) -> None:
    labelled = held_out_set(tmp_path / "set")
    trained = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": labelled.root})})
    provenance = artifact.spec.provenance.model_copy(update={"recipe": trained.model_dump(mode="json")})
    known = replace(artifact, spec=artifact.spec.model_copy(update={"provenance": provenance}))
    with pytest.raises(ValueError, match=r"was not trained on, but it was on split train of .*: give another --split"):
        pseudolabel(labeller(known), images, tmp_path / "round", held_out=with_train(labelled), split="train")
    assert not (tmp_path / "round").exists()


def with_train(dataset: Dataset) -> Dataset:
    """With enough of them to fit thresholds on."""
    return replace(dataset, splits={**dataset.splits, "train": dataset.split("train") * 4})


@pytest.mark.parametrize(("shape", "value"), [((48, 40), 0), ((40, 48), 7)], ids=["turned", "of no class"])
def test_a_held_out_mask_that_does_not_fit_is_named(
    artifact: Artifact, images: Path, tmp_path: Path, shape: tuple[int, int], value: int
) -> None:
    labelled = held_out_set(tmp_path / "set")
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(tmp_path / "set/masks/val/3.png")
    with pytest.raises(
        ValueError, match=r"expected .*masks/val/3.png to have its image's size and class indices below"
    ):
        pseudolabel(labeller(artifact), images, tmp_path / "round", held_out=labelled)


def test_held_out_images_of_one_name_in_several_folders_are_all_in_val(
    artifact: Artifact, images: Path, tmp_path: Path
) -> None:
    """As in a COCO set with a folder a patient."""
    labelled = held_out_set(tmp_path / "set")
    samples = labelled.split("val")
    for sample in samples[1:]:
        folder = tmp_path / "set/images" / sample.image.stem
        folder.mkdir()
        sample.image.rename(folder / "slice.png")
    moved = [replace(each, image=tmp_path / "set/images" / each.image.stem / "slice.png") for each in samples[1:]]
    found = pseudolabel(
        labeller(artifact), images, tmp_path / "round", held_out=replace(labelled, splits={"val": (samples[0], *moved)})
    )
    val = open_dataset(found.path, "segmentation").split("val")
    assert [sample.image.name for sample in val] == ["0.png", *(f"{index:05d}-slice.png" for index in range(1, 8))]
    for sample, before in zip(val, samples, strict=True):
        assert isinstance(sample.truth, Path) and isinstance(before.truth, Path)
        truth_HW = np.asarray(Image.open(before.truth))
        assert (np.asarray(Image.open(sample.truth)) == np.where(truth_HW == 9, IGNORE, truth_HW)).all()


def test_images_that_cannot_be_read_are_told_and_stop_nobody(
    artifact: Artifact, images: Path, labelled: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    Image.fromarray(random_image(40, 48)).save(folder / "b.png")
    command = ["pseudolabel", str(artifact.path), str(folder), "--out", str(tmp_path / "round"), "--tta", "none"]
    assert main(command) == 2
    assert "give labelled images by --held-out DATASET" in capsys.readouterr().err
    assert main([*command, "--held-out", str(labelled.root), "--precision", "0"]) == 1
    told = capsys.readouterr()
    assert re.search(r"a\.png: ", told.err)
    assert "1 accept, 0 review, 0 relabel, 1 left out" in told.out
    assert (tmp_path / "round/review.html").is_file()


def test_an_image_that_is_deleted_while_it_is_looked_at_stops_nobody(
    artifact: Artifact, labelled: Dataset, tmp_path: Path
) -> None:
    """A service that keeps doubtful images makes room among them at any time."""

    class Slow(Labeller):
        def look(self, image_HWC: NDArray[np.uint8]) -> Found:
            if len(image_HWC) == 33:
                (tmp_path / "images/a.png").unlink()
            return super().look(image_HWC)

    (tmp_path / "images").mkdir()
    for name, side in (("a", 33), ("b", 40)):
        Image.fromarray(random_image(side, 48)).save(tmp_path / f"images/{name}.png")
    slow = Slow(artifact=artifact, plan="none", selection=Selection(precision=0))
    found = pseudolabel(slow, tmp_path / "images", tmp_path / "round", held_out=labelled)
    assert re.search(r"a\.png: expected an image, but it was deleted meanwhile", found.entries()["a"].fault)
    accepted = open_dataset(found.path, "segmentation")
    assert [sample.image.name for sample in accepted.split("train")] == ["b.png"], "and no mask is without its image"


@pytest.mark.parametrize(("split", "held"), [("val", "val"), ("val", "test"), ("train", "train")])
def test_copies_of_held_out_images_get_no_mask(
    split: str, held: str, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of val and test, and of whatever split the thresholds are fitted on."""
    root, folder = held_out_set(tmp_path / "set").root, tmp_path / "images"
    for kind in ("images", "masks"):
        (root / kind / "train").rename(root / kind / "test")
        (root / kind / "val").rename(root / kind / split)
    folder.mkdir()
    Image.fromarray(random_image(40, 48)).save(folder / "new.png")
    Image.open(root / f"images/{held}/1.png").save(folder / "copy.bmp")
    command = ["pseudolabel", str(artifact.path), str(folder), "--out", str(tmp_path / "round"), "--tta", "none"]
    assert main([*command, "--held-out", str(root), "--split", split, "--precision", "0"]) == 1
    told = capsys.readouterr()
    assert f"copy.bmp: expected an image that is not held out, but it is a copy of {root}/images/{held}/1" in told.err
    assert "1 accept, 0 review, 0 relabel, 1 left out" in told.out
    assert [path.name for path in (tmp_path / "round/images/train").iterdir()] == ["new.png"]


def test_nor_do_copies_of_what_the_next_training_is_scored_on(
    artifact: Artifact, recipe: Recipe, labelled: Dataset, tmp_path: Path
) -> None:
    """The thresholds are fitted on other images; the next training would have refused the round."""
    own, folder = held_out_set(tmp_path / "own"), tmp_path / "images"
    folder.mkdir()
    Image.fromarray(random_image(40, 48, seed=1)).save(folder / "new.png")
    for place in (folder / "copy.png", own.root / "images/val/0.png"):
        Image.fromarray(random_image(40, 48, seed=2)).save(place)
    data = recipe.data.model_copy(update={"root": own.root, "layout": "folder"})
    asked = labeller(made_by(recipe.model_copy(update={"data": data}), artifact))
    found = pseudolabel(asked, folder, tmp_path / "round", held_out=labelled)
    assert [name for name, entry in found.entries().items() if entry.fault] == ["copy"]


def test_a_folder_of_nothing_but_held_out_images_makes_a_round_without_masks(
    artifact: Artifact, labelled: Dataset, tmp_path: Path
) -> None:
    asked = ["pseudolabel", str(artifact.path), str(labelled.root / "images/val"), "--out", str(tmp_path / "round")]
    assert main([*asked, "--held-out", str(labelled.root), "--tta", "none", "--precision", "0"]) == 1
    assert all(entry.fault for entry in Round(tmp_path / "round").entries().values())


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"expected images with different names, but got .*a\.png and .*a\.jpg"):
        image_files(tmp_path)
    (tmp_path / "more/a.jpg").unlink()
    with pytest.raises(ValueError, match=r"expected a folder of images, but .* has none"):
        image_files(tmp_path / "more")


def test_hidden_folders_have_no_images(tmp_path: Path) -> None:
    for name in ("a.png", ".Trash-1000/files/a.png", "more/.thumbnails/b.png", "more/c.png"):
        (tmp_path / ".shown" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".shown" / name).touch()
    assert [path.name for path in image_files(tmp_path / ".shown")] == ["a.png", "c.png"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """The manifest could not tell it; unpacked archives have such names."""
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(ValueError, match=r"expected images with names in UTF-8, but got '.*caf\\udce9.png'"):
        image_files(tmp_path)


def test_stability_is_the_agreement_with_the_thirds(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run that kept its weights on the way, .* eval.keep_thirds"):
        Labeller(artifact=artifact, plan="none", run=tmp_path).look(random_image(40, 48))
    for name in ("third-1.safetensors", "third-2.safetensors"):
        Run(tmp_path).save_third(name, artifact.network.state_dict())
    seen = Labeller(artifact=artifact, run=tmp_path, plan="none").look(random_image(40, 48))
    assert seen.scores["stability"] == 1, "the thirds are the whole here"


def test_a_round_among_its_own_images_is_refused(artifact: Artifact, labelled: Dataset, tmp_path: Path) -> None:
    Image.fromarray(random_image(40, 48)).save(tmp_path / "new.png")
    with pytest.raises(ValueError, match=r"expected a place outside of .*, but got .*round-1: give another --out"):
        pseudolabel(labeller(artifact), tmp_path, tmp_path / "round-1", held_out=labelled)
    assert [path.name for path in tmp_path.iterdir()] == ["new.png"]


def made_by(recipe: Recipe, artifact: Artifact) -> Artifact:
    provenance = artifact.spec.provenance.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    return replace(artifact, spec=artifact.spec.model_copy(update={"provenance": provenance}))


def test_stability_is_not_asked_of_another_training(artifact: Artifact, recipe: Recipe, tmp_path: Path) -> None:
    own = made_by(recipe, artifact)
    Run(tmp_path).save_third("third-1.safetensors", artifact.network.state_dict())
    Run(tmp_path).begin(recipe.model_copy(update={"seed": 7}))
    with pytest.raises(ValueError, match=r"expected the run that tiny-segmentation was exported from, .* another rec"):
        Labeller(artifact=own, plan="none", run=tmp_path).look(random_image(40, 48))
    Run(tmp_path).begin(recipe)
    assert Labeller(artifact=own, plan="none", run=tmp_path).look(random_image(40, 48)).scores["stability"] == 1


def test_only_artifacts_for_masks(labels_artifact: Artifact) -> None:
    with pytest.raises(
        ValueError, match=r"expected an artifact for segmentation, but tiny-classification is for class"
    ):
        Labeller(artifact=labels_artifact, plan="none").look(random_image(40, 48))


def test_a_round_with_other_classes_or_without_masks_is_not_joined(
    whole: Round, labelled: Dataset, tmp_path: Path
) -> None:
    other = Dataset(**{**vars(labelled), "classes": labelled.classes[:2]})
    with pytest.raises(ValueError, match=r"expected the classes of .*sky.* has .*car"):
        with_round(other, whole.path)
