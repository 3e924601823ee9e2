"""How a set's masks are coded, and the options of `segserve convert` that turn them into class indices.

A distance between two colours or gray levels is the largest difference of a channel.

Dimensions: V the different values of some masks, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segserve.spec import ClassSpec
from training.layouts import CLASSES, LABELS
from training.lint.survey import GRAY_MODES, MaskFacts, pack, unpack

Coding = Literal["index", "color", "jpeg", "gray", "value"]
"""`value`: one channel, but not understood."""

LOSSY = ("JPEG", "MPO")
EXACT_SHARE = 0.99
"""Of the pixels that are not 0: a coding is recognised where so many have its levels exactly,"""
NEAR, NEAR_SHARE = 32, 0.9
"""or, where edges are soft, so many are so near to them."""
STRAY_SHARE = 0.001
"""A single colour of more pixels than this is meant."""
MIDDLE = 128
COMMONEST = 12
"""Values named in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the masks of a folder are coded; one command converts them all."""

    coding: dict[str, Coding]
    """By file."""
    options: dict[Coding, str | None]
    """For `segserve convert`; "" where it needs none, None where a person has to decide."""
    seen: dict[Coding, tuple[str, ...]]
    """Their values or colours, the commonest first."""
    strange: dict[Coding, tuple[str, ...]]
    """Common colours that are no class's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """The values of several masks together."""

    values_V: NDArray[np.int64]
    """Gray levels, or packed colours."""
    counts_V: NDArray[np.int64]
    """Their pixels."""

    def share(self, chosen_V: NDArray[np.bool_]) -> float:
        """Of the pixels that are not 0, nearly always the background, how many are among these values."""
        counts_V = np.where(self.values_V == 0, 0, self.counts_V)
        return float(counts_V[chosen_V].sum() / max(counts_V.sum(), 1))


def distances(values_V: NDArray[np.int64], anchors_K: NDArray[np.int64], *, packed: bool) -> NDArray[np.int64]:
    """(V, K) of gray levels, or of packed colours."""
    if not packed:
        return np.asarray(np.abs(values_V[:, None] - anchors_K[None]))
    return np.asarray(np.abs(unpack(values_V)[:, None] - unpack(anchors_K)[None]).max(axis=-1))


def recognise(
    masks: Sequence[MaskFacts], *, classes: tuple[ClassSpec, ...], ignore_index: int | None, has_labels: bool
) -> Encoding:
    """Decide for all masks of a folder.

    Args:
        masks: all of them.
        classes: the set's.
        ignore_index: the set's.
        has_labels: `labels.csv` gives each picture the name of its class.
    """
    known = {*range(len(classes)), *([] if ignore_index is None else [ignore_index])}
    coding = {mask.name: _coding(mask, known, classes) for mask in masks}
    if "color" in coding.values():  # then one that is black all over is no gray one
        coding |= {mask.name: "color" for mask in masks if mask.has_colors and coding[mask.name] == "gray"}
    of: dict[Coding, list[MaskFacts]] = {kind: [] for kind in ("index", "color", "jpeg", "gray", "value")}
    for mask in masks:
        of[coding[mask.name]].append(mask)
    gray = _gray_options(_levels(of["gray"] + of["value"] + of["index"]), known, classes, has_labels=has_labels)
    if gray is not None:
        coding |= {mask.name: "gray" for mask in of["value"]}
        of["gray"], of["value"] = of["gray"] + of["value"], []
    if gray and any(_has_classes(mask, len(classes)) for mask in of["index"]):
        gray = None  # a command reads all masks by one rule, and would take the indices 1, 2, ... for nearly black
    is_colored = any(mask.has_colors and not is_gray(mask.values_V) for mask in of["jpeg"])
    jpeg = (
        _color_options(_colors(of["jpeg"]), classes, lossy=True)
        if is_colored
        else _gray_options(_levels(of["jpeg"]), known, classes, has_labels=has_labels, lossy=True)
    )
    return Encoding(
        coding=coding,
        options={"gray": gray, "jpeg": jpeg, "color": _color_options(_colors(of["color"]), classes), "value": None},
        seen={
            "gray": _described(_levels(of["gray"]), packed=False),
            "jpeg": _described((_colors if is_colored else _levels)(of["jpeg"]), packed=is_colored),
            "color": _described(_colors(of["color"]), packed=True),
        },
        strange={
            "color": _described(_strange(_colors(of["color"]), classes), packed=True),
            "jpeg": _described(_strange(_colors(of["jpeg"] if is_colored else []), classes, lossy=True), packed=True),
        },
    )


def _coding(mask: MaskFacts, known: set[int], classes: tuple[ClassSpec, ...]) -> Coding:
    if mask.format in LOSSY:
        return "jpeg"
    if mask.has_colors:
        return "gray" if is_gray(mask.values_V) else "color"
    if mask.mode in GRAY_MODES:
        return "gray"
    colors = _class_colors(classes).tolist()
    if set(mask.values_V.tolist()) <= known:
        index_of = {color: index for index, color in enumerate(colors) if colors.count(color) == 1}
        is_other = mask.colors_V is not None and palette_contradicts(mask.values_V, mask.colors_V, index_of)
        return "color" if is_other else "index"
    return "color" if mask.colors_V is not None and set(mask.colors_V.tolist()) <= set(colors) else "value"


def palette_contradicts(values_V: NDArray[np.int64], colors_V: NDArray[np.int64], index_of: Mapping[int, int]) -> bool:
    """Whether the colours of a mask say other classes than its indices do.

    Tools that make palettes of colour images number the colours as they like.

    Args:
        values_V: those that the mask has.
        colors_V: packed, of these.
        index_of: class indices by packed colour, each of one class only.
    """
    pairs = zip(values_V.tolist(), colors_V.tolist(), strict=True)
    said = [(value, index_of.get(color)) for value, color in pairs if value in index_of.values()]
    return all(index is not None for _, index in said) and any(value != index for value, index in said)


def _has_classes(mask: MaskFacts, count: int) -> bool:
    """Other indices than 0 and void."""
    return bool(((mask.values_V > 0) & (mask.values_V < count)).any())


def is_gray(packed: NDArray[np.int64]) -> bool:
    """Red, green and blue are equal in each of these colours (...)."""
    return bool((unpack(packed) == (packed & 255)[..., None]).all())


def name_of(value: int, *, packed: bool) -> str:
    """A gray level as a number, a packed colour as #rrggbb."""
    return f"#{value:06x}" if packed else str(value)


def _class_colors(classes: tuple[ClassSpec, ...]) -> NDArray[np.int64]:
    return pack(np.array([entry.color for entry in classes]))


def _levels(masks: Sequence[MaskFacts]) -> Levels:
    """Indices or gray levels, also of gray that is stored in colours."""
    return _join([mask.values_V & 255 if mask.has_colors else mask.values_V for mask in masks], masks)


def _colors(masks: Sequence[MaskFacts]) -> Levels:
    colors = [
        mask.colors_V if mask.colors_V is not None else pack(np.repeat(mask.values_V[:, None], 3, 1)) for mask in masks
    ]
    return _join(colors, masks)


def _join(values: Sequence[NDArray[np.int64]], masks: Sequence[MaskFacts]) -> Levels:
    empty = np.empty(0, dtype=np.int64)
    values_V, places = np.unique(np.concatenate([*values, empty]), return_inverse=True)
    counts = np.concatenate([*(mask.counts_V for mask in masks), empty])
    return Levels(
        values_V=values_V, counts_V=np.bincount(places, weights=counts, minlength=len(values_V)).astype(np.int64)
    )


def _described(levels: Levels, *, packed: bool) -> tuple[str, ...]:
    order = np.argsort(-levels.counts_V, kind="stable")
    return tuple(name_of(value, packed=packed) for value in levels.values_V[order].tolist())


# --- gray levels ---


def _gray_options(
    levels: Levels, known: set[int], classes: tuple[ClassSpec, ...], *, has_labels: bool, lossy: bool = False
) -> str | None:
    """The first reading that fits: indices, the classes' own grays, black and white, evenly spaced grays."""
    if not len(levels.values_V):
        return None
    if set(levels.values_V.tolist()) <= known and not lossy:
        return ""
    grays_K3 = np.array([entry.color for entry in classes])
    has_grays = (grays_K3 == grays_K3[:, :1]).all() and len(set(grays_K3[:, 0].tolist())) == len(classes)
    own = _map_options(levels, grays_K3[:, 0], lossy=lossy or len(classes) == 2) if has_grays else None
    if own is not None:
        return own
    if _is_black_and_white(levels) and (has_labels or len(classes) == 2):
        return f"--threshold {MIDDLE}" + (f" --class-from {LABELS}" if has_labels else "")
    if len(classes) < 3:
        return None
    return _map_options(levels, np.rint(np.linspace(0, 255, len(classes))).astype(np.int64), lossy=lossy, least=3)


def _map_options(levels: Levels, grays_K: NDArray[np.int64], *, lossy: bool, least: int = 2) -> str | None:
    """Where at least so many of these grays are there and nearly all pixels have one, or (`lossy`) nearly one."""
    distance_VK = distances(levels.values_V, grays_K, packed=False)
    nearest_V = distance_VK.min(axis=1)
    reach, share = (NEAR, NEAR_SHARE) if lossy else (0, EXACT_SHARE)
    if (distance_VK <= reach).any(axis=0).sum() < least or levels.share(nearest_V <= reach) < share:
        return None
    written = ",".join(f"{gray}={index}" for index, gray in enumerate(grays_K.tolist()))
    return f"--map {written}" + _tolerance(nearest_V)


def _tolerance(nearest_V: NDArray[np.int64]) -> str:
    return f" --tolerance {nearest_V.max()}" if nearest_V.max() else ""


def _is_black_and_white(levels: Levels) -> bool:
    ends_V = (levels.values_V <= NEAR // 2) | (levels.values_V >= 255 - NEAR // 2)
    return 255 - NEAR // 2 <= levels.values_V.max() <= 255 and levels.share(ends_V) >= NEAR_SHARE


# --- colours ---


def _color_options(colors: Levels, classes: tuple[ClassSpec, ...], *, lossy: bool = False) -> str | None:
    """Where all pixels but few have a class's colour, or (`lossy`) nearly one."""
    anchors_K = _class_colors(classes)
    if not len(colors.values_V) or len(set(anchors_K.tolist())) < len(classes):
        return None
    nearest_V = distances(colors.values_V, anchors_K, packed=True).min(axis=1)
    fits_V = nearest_V <= (NEAR if lossy else 0)
    if len(_strange(colors, classes, lossy=lossy).values_V) or colors.counts_V[fits_V].sum() < _least(colors, lossy):
        return None
    return f"--colors {CLASSES}" + _tolerance(nearest_V)


def _least(colors: Levels, lossy: bool) -> float:
    return float(colors.counts_V.sum() * (NEAR_SHARE if lossy else EXACT_SHARE))


def _strange(colors: Levels, classes: tuple[ClassSpec, ...], *, lossy: bool = False) -> Levels:
    """Colours that are no class's, and too common for soft edges, or too far from any to be a stray pixel."""
    distance_V = distances(colors.values_V, _class_colors(classes), packed=True).min(axis=1)
    is_common_V = colors.counts_V > STRAY_SHARE * colors.counts_V.sum()
    strange_V = (distance_V > NEAR) & is_common_V if lossy else (distance_V > NEAR) | ((distance_V > 0) & is_common_V)
    return Levels(values_V=colors.values_V[strange_V], counts_V=colors.counts_V[strange_V])
