"""Findings on files: what a training cannot do with, and copies."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.layouts import SPLITS, Dataset
from training.lint.about_masks import command_of, mask_findings, understood
from training.lint.encoding import MIDDLE, Encoding
from training.lint.findings import Finding
from training.lint.shares import counts_of
from training.lint.survey import Look, MaskFacts, masks_of


def file_findings(dataset: Dataset, looks: Sequence[Look], encoding: Encoding) -> Iterator[Finding]:
    """All errors, and copies within a split."""
    yield from (_of_layout(complaint) for complaint in dataset.complaints)
    yield from _empty_splits(dataset)
    for look in looks:
        for name, sentence in look.faults:
            yield Finding(kind="unreadable", severity="error", split=look.split, files=(name,), sentence=sentence)
        if isinstance(look.truth, MaskFacts):
            yield from mask_findings(dataset, look, look.truth, encoding)
    yield from _void_splits(dataset, looks, encoding)
    yield from _duplicates(looks)
    yield from _one_class(dataset, understood(looks, encoding))


def _of_layout(complaint: str) -> Finding:
    name, _, sentence = complaint.partition(": ")
    return Finding(kind="layout", severity="error", files=(name,), sentence=sentence)


def _empty_splits(dataset: Dataset) -> Iterator[Finding]:
    for split in SPLITS:
        if not dataset.splits.get(split) and (split in dataset.splits or split != "test"):
            sentence = "expected at least one image with its truth, but there is none"
            yield Finding(kind="empty_split", severity="error", split=split, sentence=sentence)


def _void_splits(dataset: Dataset, looks: Sequence[Look], encoding: Encoding) -> Iterator[Finding]:
    for split in ("train", "val"):
        masks = masks_of(look for look in looks if look.split == split)
        is_void = [
            encoding.coding[mask.name] == "index" and mask.values_V.tolist() == [dataset.ignore_index] for mask in masks
        ]
        if masks and all(is_void):
            sentence = "expected pixels of a class, but all of its masks are void: draw them"
            yield Finding(kind="empty_split", severity="error", split=split, sentence=sentence)


def _duplicates(looks: Sequence[Look]) -> Iterator[Finding]:
    """The same pixels in two splits make every score too good; within one they only weigh more."""
    seen: dict[bytes, Look] = {}
    for look in looks:
        if look.image is None:
            continue
        first = seen.setdefault(look.image.digest, look)
        if first.split != look.split:
            yield Finding(
                kind="duplicate",
                severity="error",
                files=(look.name,),
                values=(first.name,),
                sentence=f"expected an image that is in no other split, but it is a copy of {first.name}: remove one",
            )
        elif first is not look:
            yield Finding(
                kind="duplicate",
                severity="warning",
                split=look.split,
                files=(look.name,),
                values=(first.name,),
                sentence=f"expected every image once, but it is a copy of {first.name}: remove one",
            )


def _one_class(dataset: Dataset, looks: Sequence[Look]) -> Iterator[Finding]:
    pixels_NK1 = counts_of(dataset, [look for look in looks if look.split == "train"])
    present = np.flatnonzero(pixels_NK1[:, :-1].sum(axis=0))
    if len(present) == 1 and len(dataset.classes) > 1:
        name, sentence = dataset.classes[present[0]].name, "expected at least two classes to learn, but all of it is"
        if present[0] == 0 and len(dataset.classes) == 2 and dataset.ignore_index == 255 and pixels_NK1[:, -1].any():
            other, command = dataset.classes[1].name, command_of(dataset, f"--threshold {MIDDLE}")
            sentence = f"{sentence} {name} or void: add images of {other}, or, if 255 is to mean {other}, convert it:"
        else:
            sentence, command = f"{sentence} {name}: add images of the others", None
        yield Finding(
            kind="one_class", severity="error", split="train", values=(name,), sentence=sentence, command=command
        )
