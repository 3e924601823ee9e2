"""Pieces of HTML: tables, figures, pictures inside the page, and the style they share.

Dimensions: H, W, L levels of an 8-bit map.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from segserve.png import to_base64
from segserve.spec import Color

MOST_PIXELS_WIDE = 420
"""Pictures are made no larger than this, for the page to stay light."""

STYLE = """
:root { --ink: #1f2430; --faint: #d9dce3; --muted: #565e6c; --blue: #1f5f9e; --pale: #f5f6f9 }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }
header, main { max-width: 1200px; margin: 0 auto; padding: 0 24px }
header { padding-top: 28px }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 0 0 12px; font-size: 21px; border-bottom: 2px solid var(--faint); padding-bottom: 4px }
h3 { margin: 22px 0 8px; font-size: 16px }
h4 { margin: 14px 0 4px; font-size: 14px; font-weight: 600; overflow-wrap: anywhere }
section { margin: 36px 0 }
.subtitle, .note { color: var(--muted); margin: 4px 0 10px }
.note { font-size: 14px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 }
.tiles div { background: var(--pale); border-left: 4px solid var(--blue); border-radius: 4px; padding: 8px 14px }
.tiles dt { color: var(--muted); font-size: 14px }
.tiles dd { margin: 0; font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums }
.protocol { background: #fff8e6; border-left: 4px solid #b98900; border-radius: 4px; padding: 8px 14px; margin: 14px 0 }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px }
a { color: var(--blue) }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 20px }
.beside { display: flex; flex-wrap: wrap; gap: 20px 36px }
.beside > * { max-width: 100% }
figure { margin: 0 }
.chart { max-width: 480px }
.chart figcaption { font-weight: 600; margin-bottom: 4px }
.chart > svg { width: 100%; height: auto; display: block }
.chart .tick, .chart .title { font-size: 13px; fill: var(--muted) }
.grid .grid, svg .grid { stroke: var(--faint); stroke-width: 1 }
svg .axis { stroke: var(--muted); stroke-width: 1 }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
svg .diagonal { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 3 4 }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 6px 0; padding: 0; font-size: 14px }
.legend svg { vertical-align: middle; margin-right: 6px }
.swatch { display: inline-block; width: 13px; height: 13px; border: 1px solid #8b93a1; border-radius: 2px }
.swatch { margin-right: 6px; vertical-align: -2px }
.scroll { overflow-x: auto }
.scroll:focus-visible { outline: 2px solid var(--blue) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint) }
th:first-child { text-align: left }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom }
tbody th { font-weight: 500 }
.classes { width: 100% }
.classes thead th { white-space: normal }
.classes td:nth-child(2) { white-space: nowrap; width: 30%; min-width: 170px }
.bar { display: inline-block; width: calc(100% - 64px); height: 12px; background: var(--faint); border-radius: 2px }
.bar { vertical-align: -1px }
.bar span { display: block; height: 100%; background: var(--blue); border-radius: 2px }
.value { display: inline-block; width: 60px }
.heat td { border: 1px solid #fff; min-width: 46px; text-align: center; padding: 5px 4px; font-size: 13px }
.heat thead th { vertical-align: bottom; text-align: left; padding: 4px; border: 0 }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block }
.heat .corner { font-size: 12px; font-weight: 400 }
.heat thead th:not(.corner) { text-align: center }
.heat tbody th { border: 0 }
.plain td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere }
details { margin-top: 12px }
summary { cursor: pointer; color: var(--blue) }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(45%, 190px), 1fr)); gap: 8px }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px }
.row img, .cards img { width: 100%; height: auto; display: block; border: 1px solid var(--faint) }
.row figcaption, .cards figcaption { font-size: 13px; color: var(--muted) }
.right { color: #1d6b43; font-weight: 600 }
.wrong { color: #a3232f; font-weight: 600 }
code { font: 13px/1.4 ui-monospace, Menlo, Consolas, monospace }
@media print { nav { display: none } section { break-inside: avoid } }
"""


def document(title: str, *, head: str, sections: Mapping[str, str]) -> str:
    """A whole page, which needs nothing beside it: no network, no script.

    Args:
        title: its heading, as text.
        head: what stands between the heading and the links to the sections, as HTML.
        sections: by their headings; one without content is left out.
    """
    shown = {name: content for name, content in sections.items() if content}
    links = "".join(f'<a href="#{_slug(name)}">{name}</a>' for name in shown)
    body = "".join(f'<section id="{_slug(name)}"><h2>{name}</h2>{content}</section>' for name, content in shown.items())
    heading = escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{heading}</title><style>{STYLE}</style></head>\n'
        f"<body><header><h1>{heading}</h1>{head}"
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>{body}</main></body></html>\n'
    )


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def figure(title: str, chart: str, *, note: str = "") -> str:
    """A chart below its title, and above what is to be said of it."""
    below = f'<p class="note">{note}</p>' if note else ""
    return f'<figure class="chart"><figcaption>{title}</figcaption>{chart}{below}</figure>'


def grid(parts: Iterable[str]) -> str:
    """Side by side where the window is wide enough."""
    return f'<div class="grid">{"".join(parts)}</div>'


def scrolling(table: str, *, label: str) -> str:
    """A table that may be wider than the window: the keyboard must reach it to scroll."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def row(cells: Sequence[str], *, first: str, tag: str = "td", scope: str = "row") -> str:
    """A row of a table, of its body or (`tag` th, `scope` col) its head."""
    rest = "".join(f'<th scope="col">{cell}</th>' if tag == "th" else f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="{scope}">{first}</th>{rest}</tr>'


def heat_cell(share: float, count: str) -> str:
    """White to dark blue; the ink turns white where the blue is dark."""
    light, dark = np.array((255, 255, 255)), np.array((16, 66, 122))
    red, green, blue = (light + (dark - light) * share**0.6).round().astype(int).tolist()
    ink = "#fff" if share > 0.57 else "#000"
    text = "" if share == 0 else "·" if share < 0.0005 else f"{100 * share:.1f}"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}" title="{count}">{text}</td>'


def swatch(color: Color) -> str:
    """A small square of a class's colour."""
    return f'<span class="swatch" style="background:rgb{tuple(color)}"></span>'


def picture(source: str, caption: str, *, of: str) -> str:
    """A picture with a caption; both say, to those who do not see it, what it shows."""
    return f'<figure><img src="{source}" alt="{of}: {caption}"><figcaption>{caption}</figcaption></figure>'


def heat_map(levels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3): dark is certain, bright is not."""
    colors_L3 = (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(np.uint8)
    map_HWC: NDArray[np.uint8] = colors_L3[levels_HW]
    return map_HWC


def jpeg(picture_HWC: NDArray[np.uint8]) -> str:
    """The address of a picture that is part of the page: of photographs and smooth maps."""
    return _source(picture_HWC, "jpeg", Image.Resampling.BOX, quality=82)


def png(picture_HWC: NDArray[np.uint8]) -> str:
    """The same of pictures with few colours, which stay as they are."""
    return _source(picture_HWC, "png", Image.Resampling.NEAREST, optimize=True)


def _source(picture_HWC: NDArray[np.uint8], form: str, resampling: Image.Resampling, **options: Any) -> str:
    image = Image.fromarray(picture_HWC)
    factor = min(1.0, MOST_PIXELS_WIDE / max(image.size))
    width, height = (max(1, round(factor * side)) for side in image.size)
    if factor < 1:
        image = image.resize((width, height), resampling)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{to_base64(buffer.getvalue())}"
