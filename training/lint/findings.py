"""What a data set's inspection found, as values: findings, class shares, scenes, pairs that look alike."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from segserve.settings import Settings
from segserve.spec import Color, Task
from segserve.whole import write_whole

Kind = Literal[
    "layout",
    "empty_split",
    "unreadable",
    "size",
    "color_mask",
    "jpeg_mask",
    "gray_mask",
    "value",
    "duplicate",
    "one_class",
    "absent_class",
    "void",
    "single_class_masks",
    "label_mismatch",
    "near_duplicate",
    "scenes",
    "same_recording",
    "other_masks",
]
Severity = Literal["error", "warning"]
"""An error refuses the training."""

NOT_BY_FILE: tuple[Kind, ...] = ("near_duplicate", "scenes", "same_recording")
"""Kinds whose files are examples of what the sentence says."""

FILES_IN_A_LINE = 4
LINES_OF_A_KIND = 20
"""The text shows so many findings of a kind; the JSON has all."""


class Finding(Settings):
    """One fault, of one file or of all that share it."""

    kind: Kind
    severity: Severity
    split: str | None = None
    """None where it concerns several, or the whole set."""
    files: tuple[str, ...] = ()
    """Relative to the data set."""
    values: tuple[str, ...] = ()
    """The pixel values, colours, classes or numbers it is about."""
    sentence: str
    """What was expected, what came, what to do."""
    command: str | None = None
    """What mends it."""

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        shown = self.files[:FILES_IN_A_LINE] if len(self.files) <= FILES_IN_A_LINE else self.files[:1]
        more = len(self.files) - len(shown)
        where = ", ".join(shown) + (f" and {more} more" if more else "")
        if not where or self.kind in NOT_BY_FILE:
            where = f"split {self.split}" if self.split else ""
        yield f"{where}: {self.sentence}" if where else self.sentence
        if self.command:
            yield f"    {self.command}"


class ClassCount(Settings):
    """How much of a split is of a class."""

    images: int
    pixels: int | None
    """None where the truth is a label."""
    share: float
    """Of the split's pixels without void, or of its images, 0 to 1."""


class ClassSummary(Settings):
    id: int
    name: str
    color: Color
    splits: dict[str, ClassCount]
    weight: float | None
    """Median-frequency weight on train; None for a class that train does not have."""


class SplitSummary(Settings):
    name: str
    images: int
    scenes: int
    """Groups of images that do not look alike: about as many independent ones there are."""
    void: float | None
    """Share of the pixels that count nowhere; None in a set without `ignore_index`."""


class Pair(Settings):
    """Two images of different splits that look alike."""

    first: str
    second: str
    distance: int
    """Bits, of 63, in which their perceptual hashes differ."""
    correlation: float
    """Of their thumbnails, up to 1."""


class Report(Settings):
    """All of it."""

    dataset: str
    task: Task
    ignore_index: int | None
    splits: tuple[SplitSummary, ...]
    classes: tuple[ClassSummary, ...]
    findings: tuple[Finding, ...]
    pairs: tuple[Pair, ...]

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def write(self, path: Path) -> None:
        """As JSON; what was there before is replaced."""
        write_whole(path, self.model_dump_json(indent=1) + "\n")

    def text(self) -> str:
        """A table of splits, one of classes, then errors, then warnings."""
        parts = [self._split_lines(), self._class_lines()]
        for severity in ("error", "warning"):
            found = self.of(severity)
            if found:
                parts.append([f"{len(found)} {severity}(s)", *_lines(found)])
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _split_lines(self) -> list[str]:
        lines = []
        for split in self.splits:
            void = "" if split.void is None else f", void {split.void:.1%}"
            lines.append(f"{split.name:<6}{split.images:>6} images, about {split.scenes} independent scene(s){void}")
        return lines

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return []
        width = max(len("class"), *(len(entry.name) for entry in self.classes))
        names = [split.name for split in self.splits]
        lines = [f"{'class':<{width}}" + "".join(f"{name:>10}" for name in names) + "    weight (median frequency)"]
        for entry in self.classes:
            shares = "".join(f"{entry.splits[name].share:>10.2%}" for name in names)
            lines.append(
                f"{entry.name:<{width}}{shares}" + (f"{entry.weight:>10.3f}" if entry.weight else f"{'-':>10}")
            )
        return lines


def _lines(findings: list[Finding]) -> Iterator[str]:
    shown: Counter[Kind] = Counter()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= LINES_OF_A_KIND:
            yield from (f"  {line}" for line in finding.lines())
    for kind, number in shown.items():
        if number > LINES_OF_A_KIND:
            yield f"  and {number - LINES_OF_A_KIND} more of kind {kind}: see --json or --html"
