"""Findings on images that look alike: in different splits, in one, in one recording.

Array names: P pairs.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.lint import likeness
from training.lint.findings import Finding, Pair
from training.lint.survey import Look

FEW_SCENES = 0.5
"""Scenes an image, below which a split is said to hold few."""
ORDERED = 0.8
"""Numbers in names are taken for an order in time or space where neighbours are so often more alike than others."""


def prints_of(looks: Sequence[Look]) -> likeness.Prints:
    """What likeness is judged by, of the images that can be read."""
    return likeness.prints([look.image.thumbnail_SS for look in looks if look.image])


def near_pairs(by_split: dict[str, list[Look]], prints: dict[str, likeness.Prints]) -> Iterator[Pair]:
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


def near_duplicate_findings(pairs: Sequence[Pair]) -> Iterator[Finding]:
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


def scene_findings(
    by_split: Mapping[str, Sequence[Look]], scenes: Mapping[str, NDArray[np.int64]]
) -> Iterator[Finding]:
    """Splits whose images hold few independent scenes."""
    for split, scenes_N in scenes.items():
        if len(set(scenes_N.tolist())) < FEW_SCENES * len(scenes_N):
            yield _few_scenes(split, by_split[split], scenes_N)


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


def recording_findings(by_split: dict[str, list[Look]], prints: dict[str, likeness.Prints]) -> Iterator[Finding]:
    """A split that continues, or lies within, what train was taken from: neighbours by number look alike there."""
    train = by_split.get("train", [])
    if not train or likeness.order(stems(train), prints["train"]) < ORDERED:
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


def stems(looks: Sequence[Look]) -> list[str]:
    """Likewise their names."""
    return [look.stem for look in _readable(looks)]


def _readable(looks: Sequence[Look]) -> list[Look]:
    return [look for look in looks if look.image]
