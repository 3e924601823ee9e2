import re
from xml.etree import ElementTree

import pytest

from training.charts import COLORS, HEIGHT, WIDTH, Axis, Series, line_chart


def _svg(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart[: chart.index("</svg>") + len("</svg>")])


def _places(element: ElementTree.Element) -> list[list[float]]:
    return [list(map(float, pair.split(","))) for pair in element.attrib["points"].split()]


def test_points_are_where_their_values_are() -> None:
    line = Series(name="a", points=[(0, 0), (5, 1), (10, 0.5)])
    chart = _svg(line_chart([line], label="x", x=Axis(ends=(0, 10)), y=Axis(ends=(0, 1))))
    (low_x, low_y), (middle_x, high_y), (high_x, middle_y) = _places(chart.find("polyline"))  # type: ignore[arg-type]
    assert middle_x == pytest.approx((low_x + high_x) / 2, abs=0.1)
    assert middle_y == pytest.approx((low_y + high_y) / 2, abs=0.1)
    assert high_y < low_y  # up is more


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0), (2, 0)], [(1, -3e-5), (60, 1e5)], [(0, 1e-9), (1, 3e-9)]])
def test_everything_is_inside_the_picture(points: list[tuple[float, float]]) -> None:
    chart = _svg(line_chart([Series(name="a", points=points)], label="x", x=Axis(title="x"), y=Axis(title="y")))
    for x, y in _places(chart.find("polyline")):  # type: ignore[arg-type]
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    ticks = [element for element in chart.iter("text") if element.attrib.get("class") == "tick"]
    assert len(ticks) >= 4
    assert all(0 <= float(element.attrib["y"]) <= HEIGHT for element in ticks)


def test_several_lines_have_a_legend_and_differ_in_more_than_colour() -> None:
    series = [Series(name=name, points=[(0, 0), (1, 1)]) for name in ("first & last", "second")]
    chart = line_chart(series, label="both <lines>", x=Axis(), y=Axis())
    assert 'aria-label="both &lt;lines&gt;"' in chart
    assert re.findall(r"<li>.*?</svg>(.*?)</li>", chart) == ["first &amp; last", "second"]
    lines = _svg(chart).findall("polyline")
    assert [line.attrib["stroke"] for line in lines] == list(COLORS[:2])
    assert ["stroke-dasharray" in line.attrib for line in lines] == [False, True]


def test_the_colours_can_be_read_on_white() -> None:
    """Contrast as WCAG 2 defines it: 4.5 at least."""
    for color in COLORS:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5, color


def test_counts_have_whole_ticks_and_small_numbers_fit() -> None:
    line = Series(name="rate", points=[(1, 1e-3), (4, 1e-6)])
    chart = _svg(line_chart([line], label="x", x=Axis(title="epoch", is_whole=True), y=Axis()))
    ticks = [element.text or "" for element in chart.iter("text") if element.attrib["class"] == "tick"]
    along_x = [tick.text or "" for tick in chart.iter("text") if tick.attrib.get("text-anchor") == "middle"]
    assert along_x == ["1", "2", "3", "4", "epoch"]
    assert max(map(len, ticks)) <= 7
    assert "5.0e-4" in ticks or "4.0e-4" in ticks
