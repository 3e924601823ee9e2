"""How masks are coded: findings with the command that turns them into class indices."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.layouts import SPLITS, Dataset
from training.lint.about_classes import picture_labels
from training.lint.encoding import COMMONEST, Coding, Encoding, recognise
from training.lint.findings import Finding, Kind
from training.lint.survey import Look, MaskFacts, mask_facts, over_files

KIND_OF_CODING: dict[Coding, Kind] = {
    "color": "color_mask",
    "jpeg": "jpeg_mask",
    "gray": "gray_mask",
    "value": "value",
}


def recognised(dataset: Dataset, masks: Sequence[MaskFacts]) -> Encoding:
    """How these masks are coded, by what the data set says of its classes."""
    labels = set(picture_labels(dataset).values())
    return recognise(
        masks,
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        has_labels=bool(labels & {entry.name for entry in dataset.classes}),
    )


def understood(looks: Sequence[Look], encoding: Encoding) -> list[Look]:
    """Those whose truth is a class, or a mask of class indices, strange ones among them or not."""
    return [
        look
        for look in looks
        if isinstance(look.truth, int)
        or (isinstance(look.truth, MaskFacts) and encoding.coding[look.truth.name] in ("index", "value"))
    ]


def mask_findings(dataset: Dataset, look: Look, mask: MaskFacts, encoding: Encoding) -> Iterator[Finding]:
    """A mask of another size than its image's, or coded in another way."""
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
            command=command_of(dataset, encoding.options[coding]),
        )


def other_mask_findings(dataset: Dataset) -> Iterator[Finding]:
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
        encoding = recognised(dataset, masks)
        for mask in masks:
            coding = encoding.coding[mask.name]
            if coding not in ("index", "value"):
                yield Finding(
                    kind="other_masks",
                    severity="warning",
                    files=(mask.name,),
                    values=_values(dataset, mask, coding, encoding),
                    sentence=_sentence(dataset, mask, coding, encoding),
                    command=command_of(dataset, encoding.options[coding], folder.name),
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


def command_of(dataset: Dataset, options: str | None, masks: str = "masks") -> str | None:
    """What converts the masks of that folder; None where a person has to say how."""
    if options is None or not (dataset.root / masks).is_dir():
        return None
    source, out = shlex.quote(str(dataset.root)), shlex.quote(f"{dataset.root.resolve().name}-converted")
    chosen = "" if masks == "masks" else f" --masks {shlex.quote(masks)}"
    return f"segserve convert {source} {out}{chosen} {options}".rstrip()


def _facts_or_error(path: Path, dataset: Dataset) -> MaskFacts | ValueError:
    try:
        return mask_facts(path, dataset.root)
    except ValueError as error:
        return error
