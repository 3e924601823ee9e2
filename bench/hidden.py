"""A labelled set, most of whose labels are hidden: its parts as folders, and rounds compared with the truth."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segserve.png import encode_index_png
from training.data import IGNORE, read_truth
from training.flywheel.progress import Step
from training.flywheel.round import Entry, Round, link, write_classes, write_whole
from training.flywheel.scores import auroc
from training.flywheel.soft import SoftMask
from training.layouts import Dataset, Sample, open_dataset
from training.metrics import class_iou, confusion_matrix, image_miou, mean_of_known, merge

Masks = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One way to divide the training images, as folders."""

    folder: Path
    labelled: Dataset
    held_out: Dataset
    everything: Dataset
    """The labelled and the hidden ones, with their labels."""
    hidden: Path
    truths: Masks
    """Of the hidden ones."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A round, compared with the hidden truth."""

    num_images: int
    num_accepted: int
    precision: float
    """Share of the accepted masks that are good; NaN without any."""
    base_rate: float
    """Of all masks."""
    accepted_miou: float
    """Of the accepted masks together, over all their pixels."""
    miou: float
    """Of all masks together."""
    trained_accuracy: float
    """Share of the pixels that are trained on that are right."""
    auroc: dict[str, float]


def draw_labels(
    source: Dataset, folder: Path, *, budget: Fraction, num_held_out: int, clip: int = 1, seed: int
) -> Draw:
    """Divide the training images, in runs of `clip` in the order of their names, and write the parts as data sets.

    Raises:
        ValueError: the parts are empty, or the folder has another draw, or images in several folders have one name.
    """
    _check_names(source)
    pool = sorted(source.split("train"), key=lambda sample: sample.image.name)
    num_labelled = round(budget * len(pool))
    if num_labelled < 1 or num_labelled + num_held_out >= len(pool):
        raise ValueError(
            f"expected a budget that leaves some of {len(pool)} images hidden, but {num_labelled} labelled and "
            f"{num_held_out} held-out ones are too few or too many: change --budget or --held-out"
        )
    clips = [pool[first : first + clip] for first in range(0, len(pool), clip)]
    order = np.random.default_rng([seed, 1]).permutation(len(clips))
    drawn = [sample for index in order for sample in clips[index]]
    held_out, labelled = drawn[:num_held_out], drawn[num_held_out : num_held_out + num_labelled]
    hidden = drawn[num_held_out + num_labelled :]
    val = source.split("val")
    _check_place(folder / "labelled/images/train", labelled)
    _check_place(folder / "held-out/images/val", held_out)
    _check_place(folder / "hidden", hidden)
    for sample in hidden:
        link(sample.image, folder / "hidden" / sample.image.name)
    return Draw(
        folder=folder,
        labelled=_written(source, folder / "labelled", {"train": labelled, "val": val}),
        held_out=_written(source, folder / "held-out", {"val": held_out}),
        everything=_written(source, folder / "everything", {"train": [*labelled, *hidden], "val": val}),
        hidden=folder / "hidden",
        truths={sample.image.stem: read_truth(sample, ignore_index=source.ignore_index) for sample in hidden},
    )


def _check_names(source: Dataset) -> None:
    """Refuse images of one name in several folders, which would be one in each part's."""
    for split in ("train", "val"):
        stems = Counter(sample.image.stem for sample in source.split(split))
        if double := [stem for stem, count in stems.items() if count > 1]:
            raise ValueError(
                f"expected images with different names, but several in {split} of {source.root} are called "
                f"{double[0]}: rename them"
            )


def _check_place(place: Path, samples: Iterable[Sample]) -> None:
    """Refuse images of another draw, with which those of this one would be mixed."""
    there = {path.name for path in place.glob("[!.]*")}
    if more := sorted(there - {sample.image.name for sample in samples}):
        raise ValueError(
            f"expected {place} to have images of this draw, but it has others, {more[0]} among them: give --runs "
            "another folder, or delete this one's"
        )


def _written(source: Dataset, root: Path, splits: Mapping[str, Iterable[Sample]]) -> Dataset:
    write_classes(root, source.classes)
    for split, samples in splits.items():
        for sample in samples:
            truth_HW = read_truth(sample, ignore_index=source.ignore_index)
            link(sample.image, root / "images" / split / sample.image.name)
            mask = encode_index_png(truth_HW, source.classes)
            write_whole(root / "masks" / split / f"{sample.image.stem}.png", mask)
    return open_dataset(root, source.task)


def judged(step: Step, truths: Masks) -> Judged:
    """The round that a step's model made, mask by mask."""
    found = Round(Path(step.labels))
    entries = [entry for entry in found.entries().values() if not entry.fault]
    order, num_classes = found.order, len(found.order.classes)
    matrices, ious, right, trained = {}, {}, 0, 0
    for entry in entries:
        soft, truth_HW = SoftMask.read(found.soft(entry.name)), truths[entry.name]
        matrices[entry.name] = confusion_matrix(truth_HW, soft.mask_HW, num_classes=num_classes)
        ious[entry.name] = image_miou(matrices[entry.name])
        if entry.verdict == "accept":
            used_HW = (order.pixels.trainable(soft) != IGNORE) & (truth_HW != IGNORE)
            right += int((soft.mask_HW == truth_HW)[used_HW].sum())
            trained += int(used_HW.sum())
    good = {name: iou >= order.thresholds.good_iou for name, iou in ious.items()}
    accepted = [entry.name for entry in entries if entry.verdict == "accept"]
    areas = {
        name: auroc([entry.scores[name] for entry in entries], [good[entry.name] for entry in entries])
        for name in entries[0].scores
    }
    pooled = [merge((matrices[name] for name in names), num_classes=num_classes) for names in (accepted, list(ious))]
    return Judged(
        num_images=len(entries),
        num_accepted=len(accepted),
        precision=float(np.mean([good[name] for name in accepted])) if accepted else float("nan"),
        base_rate=float(np.mean(list(good.values()))),
        accepted_miou=mean_of_known(class_iou(pooled[0])),
        miou=mean_of_known(class_iou(pooled[1])),
        trained_accuracy=right / trained if trained else float("nan"),
        auroc=areas,
    )


def seen_by_reviewer(found: Round, entry: Entry, truths: Masks) -> Entry:
    """A good mask passes; of the others, the truth is bought."""
    if not entry.needs_person:
        return entry
    order, guess_HW, truth_HW = found.order, SoftMask.read(found.soft(entry.name)).mask_HW, truths[entry.name]
    iou = image_miou(confusion_matrix(truth_HW, guess_HW, num_classes=len(order.classes)))
    decided = entry.model_copy(update={"verdict": "accept", "decided_by": "simulated"})
    if iou >= order.thresholds.good_iou:
        return decided
    found.write_mask(entry.name, truth_HW, order.classes)
    return decided.model_copy(update={"source": "person", "edited": float((truth_HW != guess_HW).mean())})
