"""A labelled data set together with a round's accepted masks, as one training split."""

import dataclasses
from pathlib import Path

from training.flywheel.round import MANIFEST, Round
from training.layouts import Dataset, open_dataset


def with_round(dataset: Dataset, folder: Path) -> Dataset:
    """The data set with the round's accepted images after its own training images.

    Masks that a person made count as the data set's own; the others are pseudo-labelled.

    Raises:
        ValueError: the folder is no round, has other classes or faults, nothing is accepted in it, or its manifest does
            not tell of an image.
    """
    entries = Round(folder).entries()
    accepted = open_dataset(folder, dataset.task)
    names = [[entry.name for entry in each.classes] for each in (dataset, accepted)]
    if names[0] != names[1]:
        raise ValueError(f"expected the classes of {dataset.root}, {names[0]}, but {folder} has {names[1]}: label anew")
    if accepted.complaints:
        raise ValueError(
            f"expected a round without faults, but {folder} has {len(accepted.complaints)}: {accepted.complaints[0]}"
        )
    unknown = [sample.image for sample in accepted.split("train") if sample.image.stem not in entries]
    if unknown:
        raise ValueError(
            f"expected a line in {MANIFEST} for each image that is accepted, but {unknown[0]} has none: finish the "
            "round by the `segserve pseudolabel` that began it, or take the image out"
        )
    samples = [
        dataclasses.replace(sample, is_pseudo=entries[sample.image.stem].source == "model")
        for sample in accepted.split("train")
    ]
    labelled = [sample for sample in samples if not sample.is_pseudo]
    pseudo = [sample for sample in samples if sample.is_pseudo]
    splits = {**dataset.splits, "train": (*dataset.split("train"), *labelled, *pseudo)}
    return dataclasses.replace(dataset, splits=splits, round=folder)
