from pathlib import Path
from xml.etree import ElementTree

from training.tuning_chart import tuning_svg, write_tuning_svg

CURVES = {"auto, 1 worker(s)": [(50.0, 10.0), (100.0, 18.0)], "torch, 1 worker(s)": [(80.0, 5.0)]}


def test_the_plot_names_the_best_and_the_target() -> None:
    svg = tuning_svg(CURVES, best="auto, 1 worker(s)", slo_p95_ms=120)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    comments = svg.decode()
    assert "best: auto, 1 worker(s)" in comments
    assert "target, 120 ms" in comments
    assert "torch, 1 worker(s)" not in comments


def test_the_same_curves_give_the_same_bytes() -> None:
    assert len({tuning_svg(CURVES, best="torch, 1 worker(s)", slo_p95_ms=60) for _ in range(2)}) == 1


def test_the_file_alone_is_left(tmp_path: Path) -> None:
    write_tuning_svg(tmp_path / "runs/a.svg", CURVES, best="none", slo_p95_ms=60)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a.svg"]
