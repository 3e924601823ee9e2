"""The built-in data sets of `make demo` and the fast tests: drawings written in the contract's layouts.

Array names: H rows, W columns, C channels (RGB).
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.drawing import CLASS_NAMES, LABEL_NAMES, PALETTE, check_side, draw_labelled, draw_sample


@dataclass(frozen=True)
class _Order:
    """What a data set was asked for; kept in `generator.json` to recognise it again."""

    task: str
    seed: int
    num_train: int
    num_val: int
    side: int
    revision: int = 1  # raise it when the drawings change: an old set is then refused, not mixed with new ones


_Write = Callable[[Path, str, int, np.random.Generator, int], None]


def write_segmentation_set(root: Path, *, seed: int, num_train: int, num_val: int, side: int = 128) -> None:
    """Write a segmentation data set: `images/<split>/`, `masks/<split>/` (palette PNG) and `classes.json`.

    The same parameters give the same pixels. A finished set with these parameters is left as it is; anything else at
    `root` is a ValueError. The folder appears complete or not at all.
    """
    _write_once(root, _Order("segmentation", seed, num_train, num_val, side), CLASS_NAMES, _write_pair)


def write_classification_set(root: Path, *, seed: int, num_train: int, num_val: int, side: int = 96) -> None:
    """Write a classification data set: `<split>/<class name>/` and `classes.json`; class sizes differ by one at most.

    The same promises as `write_segmentation_set`.
    """
    _write_once(root, _Order("classification", seed, num_train, num_val, side), LABEL_NAMES, _write_labelled)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"expected {name} to be 0 or more, but got {count}: pass a number that is not negative")


def _write_once(root: Path, order: _Order, class_names: Sequence[str], write: _Write) -> None:
    """Fill a folder beside `root` and rename it at the end, unless the same set is there already."""
    check_side(order.side)
    _check_counts(seed=order.seed, num_train=order.num_train, num_val=order.num_val)
    if _is_there(root, order):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        draft = Path(scratch) / root.name
        draft.mkdir()
        for split_index, (split, count) in enumerate({"train": order.num_train, "val": order.num_val}.items()):
            for i in range(count):
                write(draft, split, i, np.random.default_rng([order.seed, split_index, i]), order.side)
        _write_json(draft / "classes.json", _class_table(class_names))
        _write_json(draft / "generator.json", asdict(order))
        draft.rename(root)


def _is_there(root: Path, order: _Order) -> bool:
    """True when `root` holds exactly this set, False when nothing is there; anything else is refused."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / "generator.json"
    found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else "something else"
    if found != asdict(order):
        raise ValueError(f"expected {root} to hold {asdict(order)}, but got {found}: delete it or name another folder")
    return True


def _write_pair(root: Path, split: str, i: int, rng: np.random.Generator, side: int) -> None:
    image_HWC, mask_HW = draw_sample(rng, side=side)
    mask = Image.fromarray(mask_HW)
    mask.putpalette([channel for colour in PALETTE for channel in colour])
    _save_png(root / "images" / split / f"{i:04d}.png", Image.fromarray(image_HWC))
    _save_png(root / "masks" / split / f"{i:04d}.png", mask)


def _write_labelled(root: Path, split: str, i: int, rng: np.random.Generator, side: int) -> None:
    label = i % len(LABEL_NAMES)
    image_HWC = draw_labelled(rng, label=label, side=side)
    _save_png(root / split / LABEL_NAMES[label] / f"{i:04d}.png", Image.fromarray(image_HWC))


def _save_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=3)


def _class_table(names: Sequence[str]) -> dict[str, object]:
    """The contents of `classes.json`; a class has the same colour in both kinds of set."""
    colours = dict(zip(CLASS_NAMES, PALETTE, strict=True))
    rows = [{"id": i, "name": name, "color": colours[name]} for i, name in enumerate(names)]
    return {"classes": rows, "ignore_index": None}


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
