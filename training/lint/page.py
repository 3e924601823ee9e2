"""A report as one HTML page that needs nothing else: pictures are embedded, there are no scripts.

Dimensions: H, W, C channels.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segserve.whole import write_whole
from training.data import read_image
from training.lint.findings import NOT_BY_FILE, ClassSummary, Finding, Kind, Report
from training.lint.survey import StoredMask, read_stored, unpack
from training.pictures import VOID_COLOR

MOST_FILES = 6
"""Files a finding shows; the names of all are in a list that opens."""
HEIGHT, WIDTH = 112, 200
"""Of a picture, in pixels, at most."""
STRANGE_COLOR = (255, 0, 200)
AS_STORED: tuple[Kind, ...] = ("gray_mask", "jpeg_mask", "other_masks")
"""Kinds whose masks are not painted in the classes' colours."""

STYLE = """
:root { --ink: #1f2430; --soft: #5d6475; --line: #e3e6ec; --error: #cf2e3c; --warning: #d98613; --good: #2d8a57; }
* { box-sizing: border-box }
body { margin: 0; background: #f5f6f9; color: var(--ink); font: 15px/1.5 system-ui, "Helvetica Neue", Arial }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere } h2 { margin: 36px 0 12px; font-size: 18px }
.verdict { margin: 4px 0 20px; font-weight: 600 }
.error { --mark: var(--error) } .warning { --mark: var(--warning) } .good { --mark: var(--good) }
.verdict, .kind { color: var(--mark) }
.splits { display: flex; flex-wrap: wrap; gap: 12px }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px }
.splits .card { min-width: 190px } .splits b { font-size: 24px; display: block; line-height: 1.2 }
.soft { color: var(--soft); font-size: 13px }
table { width: 100%; border-collapse: collapse } td, th { padding: 5px 10px; text-align: left; font-size: 14px }
th { color: var(--soft); font-weight: 500 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
tr + tr td { border-top: 1px solid var(--line) }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; vertical-align: -1px;
  border: 1px solid rgba(0, 0, 0, .25) }
.bar { height: 11px; margin: 2px 0; border-radius: 2px; min-width: 1px; background: #2f6fb3 }
.bar.val { background: #e07b27 } .bar.test { background: #2d8a57 } td.bars { width: 38% }
.finding { border-left: 4px solid var(--mark); margin-bottom: 12px }
.finding p { margin: 2px 0 8px; overflow-wrap: anywhere } .kind { font-size: 13px; font-weight: 600 }
pre { margin: 0 0 8px; padding: 9px 12px; background: #f5f6f9; border-radius: 6px; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere }
.pictures { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; width: min-content } figure div { white-space: nowrap }
figure img { display: inline-block; height: auto; border-radius: 4px; margin-right: 3px }
figcaption { font-size: 12px; line-height: 1.35; color: var(--soft); overflow-wrap: anywhere }
summary { cursor: pointer; font-size: 13px; color: var(--soft) }
details ul { columns: 2; font-size: 12px; margin: 6px 0 }
"""


def write_page(report: Report, path: Path) -> None:
    """Replace the page at `path` by that of a report, whose data set must still be there."""
    write_whole(path, page(report))


def page(report: Report) -> str:
    """The whole page."""
    num_errors, num_warnings = len(report.of("error")), len(report.of("warning"))
    verdict = "a training is refused" if num_errors else "fit to train on"
    mark = "error" if num_errors else "warning" if num_warnings else "good"
    body = [
        f"<h1>{escape(report.dataset)}</h1>",
        f'<p class="verdict {mark}">{num_errors} error(s), {num_warnings} warning(s): {verdict}</p>',
        *_splits(report),
        *_classes(report),
        *_findings(report),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>lint: {escape(report.dataset)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _splits(report: Report) -> Iterator[str]:
    yield '<div class="splits">'
    for split in report.splits:
        void = "" if split.void is None else f"<br>{split.void:.1%} void"
        yield (
            f'<div class="card"><span class="soft">{split.name}</span><b>{split.images:,} images</b>'
            f'<span class="soft">about {split.scenes:,} independent scene(s){void}</span></div>'
        )
    yield "</div>"


# --- classes ---


def _classes(report: Report) -> Iterator[str]:
    names = [split.name for split in report.splits]
    most = max((count.share for entry in report.classes for count in entry.splits.values()), default=0) or 1
    of = "pixels without void" if report.task == "segmentation" else "images"
    yield f'<h2>Classes</h2><div class="card"><table><tr><th>class<th>share of {of}'
    yield "".join(f'<th class="number">{name}<th class="number">images' for name in names)
    yield '<th class="number" title="median frequency">weight</tr>'
    for entry in report.classes:
        yield _class_row(entry, names, most)
    yield "</table></div>"


def _class_row(entry: ClassSummary, names: Sequence[str], most: float) -> str:
    shares = [entry.splits[name] for name in names]
    bars = "".join(
        f'<div class="bar {name}" style="width: {count.share / most:.2%}"></div>'
        for name, count in zip(names, shares, strict=True)
    )
    numbers = "".join(f'<td class="number">{count.share:.2%}<td class="number">{count.images:,}' for count in shares)
    weight = "-" if entry.weight is None else f"{entry.weight:.3f}"
    swatch = f'<span class="swatch" style="background: rgb{entry.color}"></span>'
    return f'<tr><td>{swatch}{escape(entry.name)}<td class="bars">{bars}{numbers}<td class="number">{weight}</tr>'


# --- findings ---


def _findings(report: Report) -> Iterator[str]:
    for severity, title in (("error", "Errors"), ("warning", "Warnings")):
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            yield f"<h2>{title}</h2>"
        for finding in found:
            yield f'<div class="card finding {severity}"><span class="kind">{finding.kind.replace("_", " ")}</span>'
            yield f"<p>{_where(finding)}{escape(finding.sentence)}</p>"
            if finding.command:
                yield f"<pre>{escape(finding.command)}</pre>"
            yield from _gallery(finding, report)
            yield from _file_list(finding)
            yield "</div>"


def _where(finding: Finding) -> str:
    if finding.kind in NOT_BY_FILE or not finding.files:
        return f"<b>{finding.split}</b>: " if finding.split else ""
    return f"<b>{escape(finding.files[0] if len(finding.files) == 1 else f'{len(finding.files)} files')}</b>: "


def _file_list(finding: Finding) -> Iterator[str]:
    if len(finding.files) > 1:
        items = "".join(f"<li>{escape(name)}" for name in finding.files)
        yield f"<details><summary>{len(finding.files)} files</summary><ul>{items}</ul></details>"


def _gallery(finding: Finding, report: Report) -> Iterator[str]:
    """A figure for each of some files, evenly chosen: the image and its mask, or the two that are alike."""
    yield '<div class="pictures">'
    last = len(finding.files) - 1
    for index in sorted({round(last * i / (MOST_FILES - 1)) for i in range(MOST_FILES)}) if finding.files else ():
        names = _shown(finding, index, report)
        pictures = [_picture(name, report, as_stored=finding.kind in AS_STORED) for name in names]
        if any(pictures):
            yield f"<figure><div>{''.join(pictures)}</div><figcaption>{escape(' · '.join(names))}</figcaption></figure>"
    yield "</div>"


def _shown(finding: Finding, index: int, report: Report) -> list[str]:
    """The files that make one figure."""
    name = finding.files[index]
    if finding.kind in ("duplicate", "near_duplicate"):
        return [finding.values[index if finding.kind == "near_duplicate" else 0], name]
    place = Path(name)
    if not name.startswith("masks") or len(place.parts) < 3:
        return [name]
    beside = (Path(report.dataset) / "images" / place.parts[1]).glob("*")
    images = sorted(path for path in beside if path.stem == place.stem)
    return [*(image.relative_to(report.dataset).as_posix() for image in images[:1]), name]


def _picture(name: str, report: Report, *, as_stored: bool) -> str:
    """An `img` element; nothing for a file that is no picture."""
    path = Path(report.dataset) / name
    try:
        if name.startswith("masks"):
            stored = read_stored(path)
            picture_HWC = _stretched(stored) if as_stored or stored.has_colors else _painted(stored, report)
            return _embedded(picture_HWC, kind="PNG")
        return _embedded(read_image(path), kind="JPEG")
    except ValueError:  # the finding itself says so
        return ""


def _painted(stored: StoredMask, report: Report) -> NDArray[np.uint8]:
    """Class indices in the classes' colours, void in pale gray, anything else in magenta, (H, W, 3)."""
    palette = np.full((256, 3), STRANGE_COLOR, dtype=np.uint8)
    palette[: len(report.classes)] = [entry.color for entry in report.classes]
    if report.ignore_index is not None:
        palette[report.ignore_index] = VOID_COLOR
    return palette[np.clip(stored.pixels, 0, 255)]


def _stretched(stored: StoredMask) -> NDArray[np.uint8]:
    """As it looks, (H, W, 3); gray levels stretched to white."""
    if stored.has_colors:
        return unpack(stored.pixels).astype(np.uint8)
    gray_HW = (stored.pixels * (255 / max(int(stored.pixels.max(initial=0)), 1))).astype(np.uint8)
    return np.repeat(gray_HW[..., None], 3, axis=-1)


def _embedded(picture_HWC: NDArray[np.uint8], *, kind: str) -> str:
    """Made small enough; small ones are shown at twice their size and more, without blur."""
    image = Image.fromarray(picture_HWC)
    scale = min(HEIGHT / image.height, WIDTH / image.width)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image = image.resize(size, Image.Resampling.NEAREST if kind == "PNG" or scale > 1 else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 85} if kind == "JPEG" else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{size[0]}" height="{size[1]}" alt="" src="data:image/{kind.lower()};base64,{data}">'
