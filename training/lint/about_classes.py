"""Findings on what the truth says: classes that are not there, void, labels that say otherwise than masks."""

from collections.abc import Iterator, Sequence

from training.layouts import LABELS, Dataset
from training.layouts.folder import label_rows
from training.lint.findings import Finding
from training.lint.shares import counts_of, void_share
from training.lint.survey import Look, MaskFacts, masks_of

LARGE_VOID, LARGE_VOID_OF_SPLIT = 0.5, 0.2


def class_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    """Classes that a split does not have, and masks that are all of one."""
    for split, looks in by_split.items():
        present_NK = counts_of(dataset, looks)[:, :-1] > 0
        absent = [entry.name for entry in dataset.classes if not present_NK[:, entry.id].any()]
        if absent and len(present_NK):
            then = "it cannot be learnt" if split == "train" else "no score says anything of it"
            yield Finding(
                kind="absent_class",
                severity="warning",
                split=split,
                values=tuple(absent),
                sentence=f"expected every class, but {', '.join(absent)} is not there: {then}",
            )
        yield from _single_class_masks(dataset, split, looks)


def _single_class_masks(dataset: Dataset, split: str, looks: Sequence[Look]) -> Iterator[Finding]:
    if dataset.task != "segmentation" or picture_labels(dataset):
        return
    for entry in dataset.classes:
        files = [mask.name for mask in masks_of(looks) if mask.values_V.tolist() == [entry.id] and not mask.has_colors]
        if files and len(dataset.classes) > 1:
            yield Finding(
                kind="single_class_masks",
                severity="warning",
                split=split,
                files=tuple(files),
                values=(entry.name,),
                sentence=f"expected several classes, but all pixels are {entry.name}: is that so, or was it not drawn?",
            )


def void_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    """Masks and splits of which much counts nowhere."""
    if dataset.ignore_index is None:
        return
    for split, looks in by_split.items():
        for mask in masks_of(looks):
            share = mask.counts_V[mask.values_V == dataset.ignore_index].sum() / max(mask.counts_V.sum(), 1)
            if share >= LARGE_VOID:
                sentence = f"expected most pixels to be of a class, but {share:.0%} are void: little is learnt from it"
                yield Finding(kind="void", severity="warning", split=split, files=(mask.name,), sentence=sentence)
        share = void_share(counts_of(dataset, looks))
        if share >= LARGE_VOID_OF_SPLIT:
            sentence = f"expected most pixels to be of a class, but {share:.0%} are void: see what was left undrawn"
            yield Finding(kind="void", severity="warning", split=split, sentence=sentence)


def label_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    """Where labels are names of the masks' classes, both must say the same of a picture."""
    labels = picture_labels(dataset)
    indices = {entry.name: entry.id for entry in dataset.classes}
    shared = {indices[label] for label in labels.values() if label in indices}
    for split, looks in by_split.items():
        for look in looks if shared else ():
            if isinstance(look.truth, MaskFacts) and (split, look.stem) in labels:
                fault = _label_fault(look.truth, labels[split, look.stem], indices, shared, dataset)
                if fault:
                    names = (look.truth.name,)
                    yield Finding(kind="label_mismatch", severity="warning", split=split, files=names, sentence=fault)


def _label_fault(
    mask: MaskFacts, label: str, indices: dict[str, int], shared: set[int], dataset: Dataset
) -> str | None:
    held = set(mask.values_V.tolist())
    if label in indices and indices[label] not in held:
        return f"expected pixels of {label}, as {LABELS} says, but the mask has none: draw them or correct the label"
    others = sorted(held & shared)
    if label not in indices and others:
        names = ", ".join(dataset.classes[index].name for index in others)
        return f"expected none of {names}, since {LABELS} says {label}, but the mask has pixels of it: correct one"
    return None


def picture_labels(dataset: Dataset) -> dict[tuple[str, str], str]:
    """The picture's class by (split, stem), of a set that has masks and a table of labels."""
    path = dataset.root / LABELS
    if dataset.task != "segmentation" or not path.is_file():
        return {}
    try:
        return {(row["split"], row["stem"]): row["label"] for row in label_rows(path)}
    except ValueError:  # another table of this name, which masks do without
        return {}
