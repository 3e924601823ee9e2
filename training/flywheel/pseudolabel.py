"""Say what is in unlabelled images: heavy test-time augmentation, scores, a verdict on each mask; makes a round.

Killed at any moment, the same call goes on after the last whole line of the round's manifest.

Dimensions: H, W.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from segserve.artifact import Artifact
from segserve.codec import may_be_image
from segserve.engines.torch_engine import TorchEngine, best_device
from segserve.networks import build_network, served_weights
from segserve.png import encode_index_png
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import SegmentationPredictor
from segserve.preprocess import working_size
from segserve.spec import Measure, ModelSpec, Plan
from segserve.text import is_utf8
from segserve.whole import write_whole
from training.config import Layout, recipe_of
from training.data import check_truth, data_digest, read_image, read_truth
from training.flywheel.copies import HELD_OUT, copies, held_out_images
from training.flywheel.round import Entry, Round, RoundOrder, link
from training.flywheel.scores import agreement, image_scores
from training.flywheel.soft import SoftMask
from training.flywheel.triage import HeldOut, PixelRule, Selection, Verdict, check_held_out, fit_thresholds
from training.layouts import Dataset, open_dataset
from training.learner import TRAINED_ON
from training.metrics import confusion_matrix, image_miou
from training.run import Run

SELECTION, PIXELS = Selection(), PixelRule()


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A model, and how it is asked."""

    artifact: Artifact
    plan: Plan
    selection: Selection = SELECTION
    pixels: PixelRule = PIXELS
    run: Path | None = None
    """The training's folder, for the stability of its masks: it kept its weights after one and two thirds."""

    @cached_property
    def predictor(self) -> SegmentationPredictor:
        """A ValueError where the artifact is not for masks."""
        spec = self.artifact.spec
        if spec.task != "segmentation":
            raise ValueError(f"expected an artifact for segmentation, but {spec.name} is for {spec.task}: give another")
        return SegmentationPredictor(spec, TorchEngine(self.artifact.network, device=best_device()))

    @cached_property
    def earlier(self) -> tuple[SegmentationPredictor, ...]:
        """The model as it was on the way; a ValueError where the run has not kept it, or is another model's."""
        return () if self.run is None else _earlier(self.artifact.spec, Run(self.run))

    def look(self, image_HWC: NDArray[np.uint8]) -> "Found":
        """What the model says of an image, and how sure that is."""
        prediction = self.predictor.predict(
            [Query(image_HWC=image_HWC, tta=self.plan, maps=get_args(Measure), probabilities="uint8")]
        )[0]
        earlier = [each.predict([Query(image_HWC=image_HWC)])[0].mask_HW for each in self.earlier]
        size = prediction.mask_HW.shape[0], prediction.mask_HW.shape[1]
        scale = max(size) / max(working_size(size, self.artifact.spec.preprocess))
        return Found(
            prediction=prediction,
            soft=SoftMask.of(prediction, scale=scale),
            scores=image_scores(prediction, earlier=earlier),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the model says of one image."""

    prediction: SegmentationPrediction
    soft: SoftMask
    scores: dict[str, float]


def _earlier(spec: ModelSpec, run: Run) -> tuple[SegmentationPredictor, ...]:
    if spec.provenance.recipe and run.recipe() != recipe_of(spec):
        raise ValueError(
            f"expected the run that {spec.name} was exported from, but {run.path} has another recipe: correct --run"
        )
    thirds = run.thirds()
    if not thirds:
        raise ValueError(
            f"expected a run that kept its weights on the way, but {run.path} has none: train with eval.keep_thirds = "
            "true, or leave out --run"
        )
    networks = [build_network(spec.network, task=spec.task, num_classes=spec.num_classes) for _ in thirds]
    for network, weights in zip(networks, thirds, strict=True):
        network.load_state_dict(served_weights(weights))
    return tuple(SegmentationPredictor(spec, TorchEngine(network, device=best_device())) for network in networks)


Label = Callable[[Labeller, Round, Sequence[Path]], Iterator[Entry]]
"""Labels images: their lines, each after its files are written, in any order."""


def one_by_one(labeller: Labeller, found: Round, paths: Sequence[Path]) -> Iterator[Entry]:
    """Label images in this process, in their order."""
    order = found.order
    for path in paths:
        yield _labelled(labeller, found, path, order)


def pseudolabel(
    labeller: Labeller,
    images: Path,
    out: Path,
    *,
    held_out: Dataset,
    split: str = "val",
    previous: Path | None = None,
    label: Label = one_by_one,
) -> Round:
    """Make a round, or go on with an unfinished one.

    Args:
        labeller: who says what is in the images.
        images: a folder of images, those in its subfolders included.
        out: the round's folder.
        held_out: labelled images that the model was not trained on, for the thresholds.
        split: of these.
        previous: the round before. Masks that a person corrected there are taken over; the others are compared.
        label: does the labelling, in this process or elsewhere.

    Raises:
        ValueError: there is nothing to label, or the folder holds another round, lies among the images or is at another
            command's work, or as of `fit_thresholds`.
    """
    files = image_files(images)
    check_apart(images, out)
    spec = labeller.artifact.spec
    check_held_out(held_out, split, spec.classes)
    trained_on = _trained_on(spec)
    _check_not_trained_on(trained_on, spec, held_out, split)
    found = Round(out)
    found.claim()
    with found.held():
        _begin(labeller, images, found, held_out=held_out, split=split, previous=previous)
        found.append(_copies(found, files, _held_out_images(trained_on, held_out, split)))
        if previous is not None:
            found.append(_taken_over(found, Round(previous), files))
        _go_on(labeller, found, files, label)
    return found


def _go_on(labeller: Labeller, found: Round, files: Sequence[Path], label: Label) -> None:
    """Label what has no line yet."""
    done = found.entries()
    missing = [path for path in files if path.stem not in done]
    with tqdm(initial=len(done), total=len(done) + len(missing), unit="image", disable=None) as bar:
        for entry in label(labeller, found, missing):
            found.append([entry])
            bar.update()


def held_out_of(spec: ModelSpec, root: Path | None, *, layout: Layout = "folder") -> Dataset:
    """The labelled images to fit the thresholds on: a data set, or else the one the model was trained on.

    Raises:
        ValueError: none is given, and that one is not there any more.
    """
    if root is not None:
        return open_dataset(root, spec.task, layout=layout)
    dataset = _trained_on(spec)
    if dataset is None:
        raise ValueError(
            f"expected the data set that {spec.name} was trained on, to fit the thresholds on its val split, but "
            "it is not there: give labelled images by --held-out DATASET"
        )
    return dataset


def _check_not_trained_on(trained_on: Dataset | None, spec: ModelSpec, held_out: Dataset, split: str) -> None:
    if trained_on is not None and split in TRAINED_ON and trained_on.root.samefile(held_out.root):
        raise ValueError(
            f"expected held-out images that {spec.name} was not trained on, but it was on split {split} of "
            f"{held_out.root}: give another --split, or another set by --held-out"
        )


def _trained_on(spec: ModelSpec) -> Dataset | None:
    """The data set that a model was trained on, if it is still there."""
    try:
        data = recipe_of(spec).data
    except ValueError:
        return None
    return open_dataset(data.root, spec.task, layout=data.layout) if data.root.is_dir() else None


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and its subfolders, hidden ones left out, in order.

    Raises:
        ValueError: two have one name, one has a name that is not UTF-8, or there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of images, but {folder} is none: correct it")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and may_be_image(path.relative_to(folder)))
    if not files:
        raise ValueError(f"expected a folder of images, but {folder} has none: correct it")
    seen: dict[str, Path] = {}
    for path in files:
        if not is_utf8(str(path)):
            raise ValueError(f"expected images with names in UTF-8, but got {str(path)!r}: rename it")
        if path.stem in seen:
            raise ValueError(f"expected images with different names, but got {seen[path.stem]} and {path}: rename one")
        seen[path.stem] = path
    return files


def check_apart(images: Path, out: Path) -> None:
    """A ValueError where what is written would be among the images at the next look."""
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"expected a place outside of {images}, where a round's images would count as unlabelled ones, but got "
            f"{out}: give another --out"
        )


def _begin(
    labeller: Labeller, images: Path, found: Round, *, held_out: Dataset, split: str, previous: Path | None
) -> None:
    """Give a new round its order; a ValueError where an unfinished one was asked for something else."""
    artifact = labeller.artifact
    begun = found.order if found.is_begun else None
    asked = {
        "artifact": artifact.digest,
        "plan": labeller.plan,
        "pixels": labeller.pixels,
        "selection": labeller.selection,
        "images": str(images),
        "previous": None if previous is None else str(previous),
        "run": None if labeller.run is None else str(labeller.run),
        "held_out": data_digest(held_out, (split,)),
    }
    if begun is not None:
        told = {name: value for name, value in asked.items() if name in begun.model_fields_set}  # older ones tell less
        changed = [name for name, value in told.items() if getattr(begun, name) != value]
        if changed:
            raise ValueError(
                f"expected what {found.path} was begun with, but {', '.join(changed)} changed: give another --out, or "
                "delete the folder to begin again"
            )
        return
    thresholds = fit_thresholds(list(_look_at_held_out(labeller, found, held_out, split)), labeller.selection)
    order = RoundOrder(
        number=1 if previous is None else Round(previous).order.number + 1,
        model=artifact.spec.name,
        thresholds=thresholds,
        classes=artifact.spec.classes,
        **asked,  # type: ignore[arg-type]
    )
    found.begin(order)


def _look_at_held_out(labeller: Labeller, found: Round, dataset: Dataset, split: str) -> Iterator[HeldOut]:
    """Their scores and true IoU; they become the round's val split on the way."""
    spec, samples = labeller.artifact.spec, dataset.split(split)
    found.forget_held_out()
    names = _own_names([sample.image for sample in samples])
    for sample, name in tqdm(
        zip(samples, names, strict=True), total=len(names), desc="held out", unit="image", disable=None, leave=False
    ):
        truth_HW, image_HWC = read_truth(sample, ignore_index=dataset.ignore_index), read_image(sample.image)
        check_truth(sample, truth_HW, shape=image_HWC.shape[:2], num_classes=spec.num_classes)
        seen = labeller.look(image_HWC)
        link(sample.image, found.path / "images/val" / name)
        write_whole(found.path / "masks/val" / f"{Path(name).stem}.png", encode_index_png(truth_HW, spec.classes))
        confusion_KK = confusion_matrix(truth_HW, seen.soft.mask_HW, num_classes=spec.num_classes)
        if confusion_KK.any():  # else all of it is void
            yield HeldOut(scores=seen.scores, iou=image_miou(confusion_KK))


def _own_names(paths: Sequence[Path]) -> list[str]:
    """File names, of which no two have one stem: where images of several folders do, their numbers come before it."""
    count = Counter(path.stem for path in paths)
    return [path.name if count[path.stem] == 1 else f"{index:05d}-{path.name}" for index, path in enumerate(paths)]


def _held_out_images(trained_on: Dataset | None, held_out: Dataset, split: str) -> list[Path]:
    """Those of the thresholds, and those that the next training of this model will be scored on."""
    images = held_out_images(held_out, splits=(*HELD_OUT, split))
    return images if trained_on is None else list(dict.fromkeys([*images, *held_out_images(trained_on)]))


def _copies(found: Round, files: Sequence[Path], originals: Sequence[Path]) -> Iterator[Entry]:
    """Lines of the images that are held out in truth: they get no mask, so that nobody trains on them."""
    order, done = found.order, found.entries()
    missing = [path for path in files if path.stem not in done]
    for path, original in copies(missing, originals).items() if missing else ():
        fault = f"{path}: expected an image that is not held out, but it is a copy of {original}: it gets no mask"
        yield _without_mask(path, order, fault)


def _without_mask(path: Path, order: RoundOrder, fault: str) -> Entry:
    return Entry(**_shared(path, order), verdict="relabel", fault=fault)


def _shared(path: Path, order: RoundOrder) -> dict[str, Any]:
    """What each line tells of an image."""
    return {"name": path.stem, "file": path.name, "artifact": order.artifact, "round": order.number}


def _labelled(labeller: Labeller, found: Round, path: Path, order: RoundOrder) -> Entry:
    """An image's line; its files are written before."""
    try:
        image_HWC = read_image(path)
    except ValueError as error:
        return _without_mask(path, order, str(error))
    seen = labeller.look(image_HWC)
    seen.soft.write(found.soft(path.stem))
    trainable_HW = order.pixels.trainable(seen.soft)
    entry = Entry(
        **_shared(path, order),
        scores=seen.scores,
        churn=_churn(seen.soft.mask_HW, order, path),
        trained=round(float((trainable_HW < len(order.classes)).mean()), 4),
        verdict=order.thresholds.verdict(seen.scores[order.thresholds.score]),
    )
    try:
        found.place(entry, image=path)
    except FileNotFoundError:
        if path.exists():
            raise
        found.mask(entry.name).unlink(missing_ok=True)
        return _without_mask(path, order, f"{path}: expected an image, but it was deleted meanwhile: it gets no mask")
    return entry


def _churn(mask_HW: NDArray[np.uint8], order: RoundOrder, path: Path) -> float | None:
    """None where the round before does not have this image, or had it in another size: links follow what is changed."""
    previous = None if order.previous is None else Round(Path(order.previous))
    if previous is None or not previous.has_image(path):
        return None
    before_HW = SoftMask.read(previous.soft(path.stem)).mask_HW
    return None if before_HW.shape != mask_HW.shape else round(1 - agreement(mask_HW, before_HW), 6)


def _taken_over(found: Round, previous: Round, files: Sequence[Path]) -> Iterator[Entry]:
    """What a person corrected in the round before stays what it is, if it is of the same image."""
    number, done, before = found.order.number, found.entries(), previous.entries()
    corrected = {name: entry for name, entry in before.items() if entry.source == "person" and name not in done}
    for path in files:
        entry, name = corrected.get(path.stem), path.stem
        if entry is None or not previous.has_image(path):
            continue
        write_whole(found.mask(name), previous.mask(name).read_bytes())
        link(previous.soft(name), found.soft(name))
        now = entry.model_copy(update={"round": number, "churn": None})
        found.place(now, image=previous.image(entry))
        yield now


def counts(entries: Sequence[Entry]) -> dict[str, int]:
    """How many of each verdict, and how many get no mask."""
    return {
        **{name: sum(entry.verdict == name and not entry.fault for entry in entries) for name in get_args(Verdict)},
        "left out": sum(bool(entry.fault) for entry in entries),
    }
