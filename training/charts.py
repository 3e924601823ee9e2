"""Charts as inline SVG: lines with points, drawn for a page that must stand alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

Range = tuple[float, float]
Point = tuple[float, float]

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 12, 46
COLORS = ("#1f5f9e", "#b4530a", "#1d7a4c", "#8a2f86", "#a3232f", "#4d5563")
"""In the order of use; each has a contrast of 4.5 and more on white."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
"""Beside the colours, for who cannot tell these apart."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What one direction means."""

    title: str = ""
    """Empty where the chart's heading says it."""
    ends: Range | None = None
    """From the points if not given."""
    is_whole: bool = False
    """It counts something."""

    def around(self, values: Sequence[float]) -> Range:
        """Its ends; from the least to the largest value and a little more, and never nothing, if they are not given."""
        if self.ends:
            return self.ends
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        return low - margin, high + margin


def line_chart(series: Sequence[Series], *, label: str, x: Axis, y: Axis, diagonal: bool = False) -> str:
    """An SVG element with its legend below it; more than one line gets one.

    Args:
        series: each with one point at least.
        label: what the picture shows, for those who do not see it.
        x: to the right.
        y: up.
        diagonal: a dotted line from one corner to the other, where both axes have the same meaning.
    """
    points = [point for entry in series for point in entry.points]
    frame = _Frame(x, y, x.around([point[0] for point in points]), y.around([point[1] for point in points]))
    marks = frame.grid()
    if diagonal:
        (x0, y0), (x1, y1) = (frame.place((frame.x_range[i], frame.y_range[i])) for i in (0, 1))
        marks.append(f'<line class="diagonal" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    marks += [_line(entry, frame, index) for index, entry in enumerate(series)]
    svg = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(marks)}</svg>'
    return svg + (_legend(series) if len(series) > 1 else "")


@dataclass(frozen=True)
class _Frame:
    """Where the values are in the picture."""

    x_axis: Axis
    y_axis: Axis
    x_range: Range
    y_range: Range

    def place(self, point: Point) -> Point:
        x, y = (
            (value - low) / (high - low) for value, (low, high) in zip(point, (self.x_range, self.y_range), strict=True)
        )
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        marks = []
        for value in _ticks(self.x_range, whole=self.x_axis.is_whole):
            x, _ = self.place((value, self.y_range[0]))
            marks.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
        for value in _ticks(self.y_range, whole=self.y_axis.is_whole):
            _, y = self.place((self.x_range[0], value))
            marks.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            marks.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        middle = (TOP + bottom) / 2
        x_place = f'x="{(LEFT + right) / 2}" y="{HEIGHT - 6}"'
        y_place = f'transform="translate(12 {middle}) rotate(-90)"'
        marks.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        marks += [
            f'<text class="title" {place} text-anchor="middle">{escape(title)}</text>'
            for place, title in ((x_place, self.x_axis.title), (y_place, self.y_axis.title))
            if title
        ]
        return marks


def _line(series: Series, frame: _Frame, index: int) -> str:
    places = [frame.place(point) for point in series.points]
    color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<polyline class="line" points="{path}" stroke="{color}"{dashes}/>'
    dots = places if len(places) <= 30 else places[-1:]
    return line + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in dots)


def _legend(series: Sequence[Series]) -> str:
    entries = []
    for index, entry in enumerate(series):
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        sample = f'<line x1="0" y1="6" x2="30" y2="6" stroke="{color}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
        swatch = f'<svg aria-hidden="true" width="30" height="12" viewBox="0 0 30 12">{sample}</svg>'
        entries.append(f"<li>{swatch}{escape(entry.name)}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _ticks(ends: Range, *, whole: bool) -> list[float]:
    low, high = ends
    slack = 1e-9 * (high - low)
    values = np.asarray(MaxNLocator(nbins=5, integer=whole).tick_values(low, high)).tolist()
    return [float(f"{value:.9g}") for value in values if low - slack <= value <= high + slack]


def _number(value: float) -> str:
    """At most seven characters, which is what there is room for."""
    return f"{value:g}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}".replace("e-0", "e-")
