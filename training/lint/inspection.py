"""The checks: from one look at every file to findings, and the data set that passes them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from segserve.spec import Task
from training.config import Layout
from training.layouts import Dataset, open_dataset
from training.lint import likeness
from training.lint.about_classes import class_findings, label_findings, void_findings
from training.lint.about_files import file_findings
from training.lint.about_likeness import (
    near_duplicate_findings,
    near_pairs,
    prints_of,
    recording_findings,
    scene_findings,
    stems,
)
from training.lint.about_masks import other_mask_findings, recognised, understood
from training.lint.findings import Finding, Kind, Report, SplitSummary
from training.lint.shares import counts_of, summarise_classes, void_share
from training.lint.survey import Look, masks_of, survey

MOST_COMPLAINTS = 20
"""How many faults the refusal of a training shows."""


def checked_dataset(root: Path, task: Task, *, layout: Layout = "folder") -> Dataset:
    """A data set fit to train on; else a ValueError with the errors that `segserve lint` finds."""
    complaints = check_dataset(root, task, layout=layout)
    if complaints:
        more = len(complaints) - MOST_COMPLAINTS
        shown = complaints[:MOST_COMPLAINTS] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(
            f"expected {root} to pass `segserve lint`, but it has {len(complaints)} fault(s), correct them:\n  "
            + "\n  ".join(shown)
        )
    return open_dataset(root, task, layout=layout)


def check_dataset(root: Path, task: Task, *, layout: Layout = "folder") -> list[str]:
    """Say what would spoil a training on this data set, one sentence a fault; nothing where all is well."""
    try:
        dataset = open_dataset(root, task, layout=layout)
    except ValueError as error:
        return [str(error)]
    looks = survey(dataset)
    findings = file_findings(dataset, looks, recognised(dataset, masks_of(looks)))
    found = [finding for finding in findings if finding.severity == "error"]
    return [" ".join(line.strip() for line in finding.lines()) for finding in grouped(found)]


def inspect(root: Path, task: Task, *, layout: Layout = "folder") -> Report:
    """Everything there is to say of a data set.

    Raises:
        ValueError: there is no data set of this kind.
    """
    dataset = open_dataset(root, task, layout=layout)
    looks = survey(dataset)
    by_split = {split: [look for look in looks if look.split == split] for split in dataset.splits}
    encoding = recognised(dataset, masks_of(looks))
    in_splits = {split: understood(each, encoding) for split, each in by_split.items()}
    prints = {split: prints_of(each) for split, each in by_split.items()}
    scenes = {split: likeness.scenes(stems(each), prints[split]) for split, each in by_split.items()}
    splits = tuple(_summary(dataset, split, in_splits[split], scenes[split]) for split in by_split)
    pairs = tuple(near_pairs(by_split, prints))
    findings = [
        *file_findings(dataset, looks, encoding),
        *class_findings(dataset, in_splits),
        *void_findings(dataset, in_splits),
        *label_findings(dataset, in_splits),
        *near_duplicate_findings(pairs),
        *scene_findings(by_split, scenes),
        *recording_findings(by_split, prints),
        *other_mask_findings(dataset),
    ]
    return Report(
        dataset=str(root),
        task=task,
        ignore_index=dataset.ignore_index,
        splits=splits,
        classes=summarise_classes(dataset, in_splits),
        findings=tuple(sorted(grouped(findings), key=lambda finding: get_args(Kind).index(finding.kind))),
        pairs=pairs,
    )


def _summary(dataset: Dataset, split: str, understood: Sequence[Look], scenes_N: NDArray[np.int64]) -> SplitSummary:
    void = None if dataset.ignore_index is None else void_share(counts_of(dataset, understood))
    return SplitSummary(name=split, images=len(dataset.splits[split]), scenes=len(set(scenes_N.tolist())), void=void)


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that say the same of several files become one."""
    groups: dict[tuple[object, ...], list[Finding]] = defaultdict(list)
    for each in findings:
        groups[each.kind, each.severity, each.split, each.sentence, each.command].append(each)
    return [
        group[0].model_copy(update={"files": tuple(dict.fromkeys(file for each in group for file in each.files))})
        for group in groups.values()
    ]
