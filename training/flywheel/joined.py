"""A labelled data set together with a round's accepted masks, as one training split."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.flywheel.copies import copies, held_out_images
from training.flywheel.round import MANIFEST, Entry, Round
from training.layouts import Dataset, open_dataset

MOST_COPIES = 5
"""How many a refusal names."""


def with_round(dataset: Dataset, folder: Path) -> Dataset:
    """The data set with the round's accepted images after its own training images.

    Masks that a person made count as the data set's own; the others are pseudo-labelled, and are left out where they
    are of a copy of an image that is labelled already.

    Raises:
        ValueError: the folder is no round, has other classes or faults, or nothing is accepted in it; its manifest does
            not tell of an image, or one is a copy of an image that the data set holds out.
    """
    found = Round(folder)
    found.check_begun()
    entries = found.entries()
    accepted = open_dataset(folder, dataset.task)
    names = [[entry.name for entry in each.classes] for each in (dataset, accepted)]
    if names[0] != names[1]:
        raise ValueError(f"expected the classes of {dataset.root}, {names[0]}, but {folder} has {names[1]}: label anew")
    if accepted.complaints:
        raise ValueError(
            f"expected a round without faults, but {folder} has {len(accepted.complaints)}: {accepted.complaints[0]}"
        )
    images = [sample.image for sample in accepted.split("train")]
    _check_told(images, entries)
    known = copies(images, [*(sample.image for sample in dataset.split("train")), *held_out_images(dataset)])
    _check_held_out(known, dataset)
    samples = [
        dataclasses.replace(sample, is_pseudo=entries[sample.image.stem].source == "model")
        for sample in accepted.split("train")
    ]
    labelled = [sample for sample in samples if not sample.is_pseudo]
    pseudo = [sample for sample in samples if sample.is_pseudo and sample.image not in known]
    double = {sample.image: known[sample.image] for sample in samples if sample.is_pseudo and sample.image in known}
    splits = {**dataset.splits, "train": (*dataset.split("train"), *labelled, *pseudo)}
    return dataclasses.replace(dataset, splits=splits, round=folder, notes=(*dataset.notes, *_left_out(folder, double)))


def _left_out(folder: Path, double: Mapping[Path, Path]) -> Iterator[str]:
    """How many images are left out."""
    for image, original in list(double.items())[:1]:
        yield (
            f"{folder}: {len(double)} accepted image(s) are left out as copies of labelled ones, such as {image} (of "
            f"{original})"
        )


def _check_told(images: Sequence[Path], entries: Mapping[str, Entry]) -> None:
    unknown = [image for image in images if image.stem not in entries]
    if unknown:
        raise ValueError(
            f"expected a line in {MANIFEST} for each image that is accepted, but {unknown[0]} has none: finish the "
            "round by the `segserve pseudolabel` that began it, or take the image out"
        )


def _check_held_out(known: Mapping[Path, Path], dataset: Dataset) -> None:
    """Of the copies, none is of a held-out image."""
    held_out = set(held_out_images(dataset))
    found = {image: original for image, original in known.items() if original in held_out}
    if found:
        listed = ", ".join(f"{image} (of {original})" for image, original in list(found.items())[:MOST_COPIES])
        raise ValueError(
            f"expected no copies of images in val or test among those accepted, but {len(found)} are, such as "
            f"{listed}: reject them in a review, or label the others anew without them"
        )
