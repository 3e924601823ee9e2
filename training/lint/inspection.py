"""The checks: from one look at every file to findings, and the data set that passes them.

Array names: P pairs.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from segserve.spec import Task
from training.config import Layout
from training.layouts import LABELS, SPLITS, Dataset, open_dataset
from training.layouts.folder import label_rows
from training.lint import likeness
from training.lint.encoding import COMMONEST, MIDDLE, Coding, Encoding, recognise
from training.lint.findings import Finding, Kind, Pair, Report, SplitSummary
from training.lint.shares import counts, summarise_classes, void_share
from training.lint.survey import Look, MaskFacts, mask_facts, over_files, survey

MOST_COMPLAINTS = 20
"""How many faults the refusal of a training shows."""
LARGE_VOID, LARGE_VOID_OF_SPLIT = 0.5, 0.2
FEW_SCENES = 0.5
"""Scenes an image, below which a split is said to hold few."""
ORDERED = 0.8
"""Numbers in names are taken for an order in time or space where neighbours are so often more alike than others."""

KIND_OF_CODING: dict[Coding, Kind] = {
    "color": "color_mask",
    "jpeg": "jpeg_mask",
    "gray": "gray_mask",
    "value": "value",
}


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
    findings = _file_findings(dataset, looks, _recognise(dataset, _masks(looks)))
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
    encoding = _recognise(dataset, _masks(looks))
    understood = {split: _understood(each, encoding) for split, each in by_split.items()}
    prints = {split: _prints(each) for split, each in by_split.items()}
    scenes = {split: likeness.scenes(_stems(each), prints[split]) for split, each in by_split.items()}
    splits = tuple(_summary(dataset, split, understood[split], scenes[split]) for split in by_split)
    pairs = tuple(_pairs(by_split, prints))
    findings = [
        *_file_findings(dataset, looks, encoding),
        *_class_findings(dataset, understood),
        *_void_findings(dataset, understood),
        *_label_findings(dataset, understood),
        *_near_duplicates(pairs),
        *(_few_scenes(split, by_split[split], each) for split, each in scenes.items() if _has_few_scenes(each)),
        *_recording_findings(by_split, prints),
        *_other_mask_findings(dataset),
    ]
    return Report(
        dataset=str(root),
        task=task,
        ignore_index=dataset.ignore_index,
        splits=splits,
        classes=summarise_classes(dataset, understood),
        findings=tuple(sorted(grouped(findings), key=lambda finding: get_args(Kind).index(finding.kind))),
        pairs=pairs,
    )


def _summary(dataset: Dataset, split: str, understood: Sequence[Look], scenes_N: NDArray[np.int64]) -> SplitSummary:
    void = None if dataset.ignore_index is None else void_share(_counts(dataset, understood))
    return SplitSummary(name=split, images=len(dataset.splits[split]), scenes=len(set(scenes_N.tolist())), void=void)


def _counts(dataset: Dataset, looks: Iterable[Look]) -> NDArray[np.int64]:
    return counts(looks, len(dataset.classes), ignore_index=dataset.ignore_index)


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that say the same of several files become one."""
    groups: dict[tuple[object, ...], list[Finding]] = defaultdict(list)
    for each in findings:
        groups[each.kind, each.severity, each.split, each.sentence, each.command].append(each)
    return [
        group[0].model_copy(update={"files": tuple(dict.fromkeys(file for each in group for file in each.files))})
        for group in groups.values()
    ]


# --- files ---


def _file_findings(dataset: Dataset, looks: Sequence[Look], encoding: Encoding) -> Iterator[Finding]:
    """All errors, and copies within a split."""
    yield from (_of_layout(complaint) for complaint in dataset.complaints)
    yield from _empty_splits(dataset)
    for look in looks:
        for name, sentence in look.faults:
            yield Finding(kind="unreadable", severity="error", split=look.split, files=(name,), sentence=sentence)
        if isinstance(look.truth, MaskFacts):
            yield from _mask_findings(dataset, look, look.truth, encoding)
    yield from _void_splits(dataset, looks, encoding)
    yield from _duplicates(looks)
    yield from _one_class(dataset, _understood(looks, encoding))


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
        masks = _masks(look for look in looks if look.split == split)
        is_void = [
            encoding.coding[mask.name] == "index" and mask.values_V.tolist() == [dataset.ignore_index] for mask in masks
        ]
        if masks and all(is_void):
            sentence = "expected pixels of a class, but all of its masks are void: draw them"
            yield Finding(kind="empty_split", severity="error", split=split, sentence=sentence)


def _recognise(dataset: Dataset, masks: Sequence[MaskFacts]) -> Encoding:
    labels = set(_labels(dataset).values())
    return recognise(
        masks,
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        has_labels=bool(labels & {entry.name for entry in dataset.classes}),
    )


def _understood(looks: Sequence[Look], encoding: Encoding) -> list[Look]:
    """Those whose truth is a class, or a mask of class indices, strange ones among them or not."""
    return [
        look
        for look in looks
        if isinstance(look.truth, int)
        or (isinstance(look.truth, MaskFacts) and encoding.coding[look.truth.name] in ("index", "value"))
    ]


def _mask_findings(dataset: Dataset, look: Look, mask: MaskFacts, encoding: Encoding) -> Iterator[Finding]:
    if look.image and mask.size != look.image.size:
        (height, width), (mask_height, mask_width) = look.image.size, mask.size
        sentence = f"expected the size of its image, {width} x {height}, but got {mask_width} x {mask_height}"
        yield Finding(kind="size", severity="error", split=look.split, files=(mask.name,), sentence=sentence)
    coding = encoding.coding[mask.name]
    if coding != "index":
        yield Finding(
            kind=KIND_OF_CODING[coding],
            severity="error",
            split=None if coding != "value" else look.split,
            files=(mask.name,),
            values=_values(dataset, mask, coding, encoding),
            sentence=_sentence(dataset, mask, coding, encoding),
            command=_command(dataset, encoding.options[coding]),
        )


def _values(dataset: Dataset, mask: MaskFacts, coding: Coding, encoding: Encoding) -> tuple[str, ...]:
    if coding != "value":
        return encoding.seen[coding]
    known = {*range(len(dataset.classes)), dataset.ignore_index}
    return tuple(str(value) for value in mask.values_V.tolist() if value not in known)


def _sentence(dataset: Dataset, mask: MaskFacts, coding: Coding, encoding: Encoding) -> str:
    values = _listed(_values(dataset, mask, coding, encoding))
    todo = "convert it:" if encoding.options.get(coding) is not None else _by_hand(coding, encoding)
    indices = "expected a mask whose pixels are class indices (mode L or P)"
    match coding:
        case "value":
            ignored = "" if dataset.ignore_index is None else f" and the ignore_index {dataset.ignore_index}"
            last = len(dataset.classes) - 1
            return f"expected the class indices 0 to {last}{ignored}, but got [{values}]: relabel those pixels"
        case "color":
            return f"{indices}, but its mode is {mask.mode} with the colours {values}; {todo}"
        case "jpeg":
            number = len(encoding.seen[coding])
            return f"expected a PNG mask, but got a JPEG of {number} values, near those that were meant; {todo}"
        case _:
            return f"{indices}, but got the gray levels {values}; {todo}"


def _by_hand(coding: Coding, encoding: Encoding) -> str:
    """What to do where the options of `segserve convert` cannot be guessed."""
    strange = encoding.strange.get(coding, ())
    if not strange:
        return "say by `segserve convert --map LEVEL=CLASS,...` what they mean"
    return (
        f"{_listed(strange)} is no class of classes.json: write lines `R G B name` for it into a file (name void for "
        "what counts nowhere) and give that by `segserve convert --colors FILE`"
    )


def _listed(values: Sequence[str]) -> str:
    more = len(values) - COMMONEST
    return ", ".join(values[:COMMONEST]) + (f" and {more} more" if more > 0 else "")


def _command(dataset: Dataset, options: str | None, masks: str = "masks") -> str | None:
    if options is None or not (dataset.root / masks).is_dir():
        return None
    source, out = shlex.quote(str(dataset.root)), shlex.quote(f"{dataset.root.resolve().name}-converted")
    chosen = "" if masks == "masks" else f" --masks {shlex.quote(masks)}"
    return f"segserve convert {source} {out}{chosen} {options}".rstrip()


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
    pixels_NK1 = _counts(dataset, [look for look in looks if look.split == "train"])
    present = np.flatnonzero(pixels_NK1[:, :-1].sum(axis=0))
    if len(present) == 1 and len(dataset.classes) > 1:
        name, sentence = dataset.classes[present[0]].name, "expected at least two classes to learn, but all of it is"
        if present[0] == 0 and len(dataset.classes) == 2 and dataset.ignore_index == 255 and pixels_NK1[:, -1].any():
            other, command = dataset.classes[1].name, _command(dataset, f"--threshold {MIDDLE}")
            sentence = f"{sentence} {name} or void: add images of {other}, or, if 255 is to mean {other}, convert it:"
        else:
            sentence, command = f"{sentence} {name}: add images of the others", None
        yield Finding(
            kind="one_class", severity="error", split="train", values=(name,), sentence=sentence, command=command
        )


# --- classes, void, labels ---


def _class_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    for split, looks in by_split.items():
        present_NK = _counts(dataset, looks)[:, :-1] > 0
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
    if dataset.task != "segmentation" or _labels(dataset):
        return
    for entry in dataset.classes:
        files = [mask.name for mask in _masks(looks) if mask.values_V.tolist() == [entry.id] and not mask.has_colors]
        if files and len(dataset.classes) > 1:
            yield Finding(
                kind="single_class_masks",
                severity="warning",
                split=split,
                files=tuple(files),
                values=(entry.name,),
                sentence=f"expected several classes, but all pixels are {entry.name}: is that so, or was it not drawn?",
            )


def _void_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    if dataset.ignore_index is None:
        return
    for split, looks in by_split.items():
        for mask in _masks(looks):
            share = mask.counts_V[mask.values_V == dataset.ignore_index].sum() / max(mask.counts_V.sum(), 1)
            if share >= LARGE_VOID:
                sentence = f"expected most pixels to be of a class, but {share:.0%} are void: little is learnt from it"
                yield Finding(kind="void", severity="warning", split=split, files=(mask.name,), sentence=sentence)
        share = void_share(_counts(dataset, looks))
        if share >= LARGE_VOID_OF_SPLIT:
            sentence = f"expected most pixels to be of a class, but {share:.0%} are void: see what was left undrawn"
            yield Finding(kind="void", severity="warning", split=split, sentence=sentence)


def _masks(looks: Iterable[Look]) -> list[MaskFacts]:
    return [look.truth for look in looks if isinstance(look.truth, MaskFacts)]


def _labels(dataset: Dataset) -> dict[tuple[str, str], str]:
    """The picture's class by (split, stem), of a set that has masks and a table of labels."""
    path = dataset.root / LABELS
    if dataset.task != "segmentation" or not path.is_file():
        return {}
    try:
        return {(row["split"], row["stem"]): row["label"] for row in label_rows(path)}
    except ValueError:  # another table of this name, which masks do without
        return {}


def _label_findings(dataset: Dataset, by_split: dict[str, list[Look]]) -> Iterator[Finding]:
    """Where labels are names of the masks' classes, both must say the same of a picture."""
    labels = _labels(dataset)
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


# --- likeness ---


def _prints(looks: Sequence[Look]) -> likeness.Prints:
    return likeness.prints([look.image.thumbnail_SS for look in looks if look.image])


def _readable(looks: Sequence[Look]) -> list[Look]:
    return [look for look in looks if look.image]


def _stems(looks: Sequence[Look]) -> list[str]:
    return [look.stem for look in _readable(looks)]


def _pairs(by_split: dict[str, list[Look]], prints: dict[str, likeness.Prints]) -> Iterator[Pair]:
    """Near-duplicates in different splits; copies are told elsewhere."""
    names = list(by_split)
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        first, second = _readable(by_split[a]), _readable(by_split[b])
        found = likeness.near_duplicates(prints[a], prints[b])
        for (i, j), bits, correlation in zip(found.indices_P2, found.bits_P, found.correlation_P, strict=True):
            one, other = first[i], second[j]
            if one.image and other.image and one.image.digest != other.image.digest:
                yield Pair(
                    first=one.name, second=other.name, distance=int(bits), correlation=round(float(correlation), 4)
                )


def _near_duplicates(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """One finding for all pairs; its files and values are the seconds and firsts, the most alike first."""
    ordered = sorted(pairs, key=lambda pair: (pair.distance, -pair.correlation))
    for closest in ordered[:1]:
        likely = f"{closest.distance} of {likeness.BITS} bits apart, correlation {closest.correlation:.3f}"
        yield Finding(
            kind="near_duplicate",
            severity="warning",
            files=tuple(pair.second for pair in ordered),
            values=tuple(pair.first for pair in ordered),
            sentence=(
                f"{len(ordered)} pair(s) of images in different splits look alike, the closest {closest.second} and "
                f"{closest.first} ({likely}): if they show the same thing, keep both in one split"
            ),
        )


def _has_few_scenes(scenes_N: NDArray[np.int64]) -> bool:
    return len(set(scenes_N.tolist())) < FEW_SCENES * len(scenes_N)


def _few_scenes(split: str, looks: Sequence[Look], scenes_N: NDArray[np.int64]) -> Finding:
    """Of the images that can be read; its files are the largest scene."""
    largest = np.flatnonzero(scenes_N == np.bincount(scenes_N).argmax())
    readable, number = _readable(looks), len(set(scenes_N.tolist()))
    return Finding(
        kind="scenes",
        severity="warning",
        split=split,
        files=tuple(readable[index].name for index in largest),
        values=(str(len(readable)), str(number)),
        sentence=(
            f"{len(readable)} images hold about {number} independent scene(s), the largest of {len(largest)} "
            "frames of a clip or nearly equal pictures: take the split for that many images"
        ),
    )


def _recording_findings(by_split: dict[str, list[Look]], prints: dict[str, likeness.Prints]) -> Iterator[Finding]:
    """A split that continues, or lies within, what train was taken from: neighbours by number look alike there."""
    train = by_split.get("train", [])
    if not train or likeness.order(_stems(train), prints["train"]) < ORDERED:
        return
    for split, looks in by_split.items():
        if split == "train" or not _readable(looks):
            continue
        ours, theirs = _series(looks), _series(train)
        for prefix in sorted(ours.keys() & theirs.keys()):
            yield _same_recording(split, prefix, ours[prefix], theirs[prefix])


def _series(looks: Sequence[Look]) -> dict[str, list[tuple[int, Look]]]:
    """The images whose names end in a number, by what comes before it, in the order of the numbers."""
    series: dict[str, list[tuple[int, Look]]] = defaultdict(list)
    for look in _readable(looks):
        place = likeness.numbered(look.stem)
        if place:
            series[place[0]].append((place[1], look))
    return {prefix: sorted(each, key=lambda pair: pair[0]) for prefix, each in series.items()}


def _same_recording(
    split: str, prefix: str, ours: Sequence[tuple[int, Look]], theirs: Sequence[tuple[int, Look]]
) -> Finding:
    (first, first_look), (last, last_look) = ours[0], ours[-1]
    before = [look for number, look in theirs if number < first][-1:]
    after = [look for number, look in theirs if number > last][:1]
    beside = " and ".join(look.stem for look in before + after) or "frames in between"
    series = f"{prefix}*" if prefix else "the numbered images"
    return Finding(
        kind="same_recording",
        severity="warning",
        split=split,
        files=tuple(look.name for look in (*before, first_look, last_look, *after)),
        values=(first_look.stem, last_look.stem),
        sentence=(
            f"{first_look.stem} to {last_look.stem} are of a series that train has, too ({series}, beside them "
            f"{beside}), and neighbours in it look alike: a score on them says little of other recordings"
        ),
    )


# --- masks that are not trained on ---


def _other_mask_findings(dataset: Dataset) -> Iterator[Finding]:
    """Folders beside `masks` whose masks are coded otherwise."""
    for folder in sorted(dataset.root.glob("masks?*")) if dataset.task == "segmentation" else ():
        found_in = [path for split in SPLITS for path in sorted((folder / split).glob("*.*"))]
        paths = [path for path in found_in if path.is_file() and not path.name.startswith(".")]
        found = over_files(lambda path: _facts_or_error(path, dataset), paths)
        for path, error in zip(paths, found, strict=True):
            if isinstance(error, ValueError):
                name = path.relative_to(dataset.root).as_posix()
                yield Finding(kind="unreadable", severity="warning", files=(name,), sentence=str(error))
        masks = [each for each in found if isinstance(each, MaskFacts)]
        encoding = _recognise(dataset, masks)
        for mask in masks:
            coding = encoding.coding[mask.name]
            if coding not in ("index", "value"):
                yield Finding(
                    kind="other_masks",
                    severity="warning",
                    files=(mask.name,),
                    values=_values(dataset, mask, coding, encoding),
                    sentence=_sentence(dataset, mask, coding, encoding),
                    command=_command(dataset, encoding.options[coding], folder.name),
                )


def _facts_or_error(path: Path, dataset: Dataset) -> MaskFacts | ValueError:
    try:
        return mask_facts(path, dataset.root)
    except ValueError as error:
        return error
