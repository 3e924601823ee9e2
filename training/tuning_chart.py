"""Images a second against latency, a line a configuration."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from segserve.whole import write_whole
from training.charts import COLORS, Point

FAINT = "#b8bec6"


def write_tuning_svg(path: Path, curves: Mapping[str, Sequence[Point]], *, best: str, slo_p95_ms: float) -> None:
    """Write `tuning_svg`, whole or not at all; the folder is made if missing."""
    write_whole(path, tuning_svg(curves, best=best, slo_p95_ms=slo_p95_ms))


def tuning_svg(curves: Mapping[str, Sequence[Point]], *, best: str, slo_p95_ms: float) -> bytes:
    """An SVG file; the best configuration stands out, the target is a dashed line.

    Args:
        curves: by name, (p95 in ms, images a second) of each load.
        best: name of the one that won.
        slo_p95_ms: the target.
    """
    with matplotlib.rc_context({"svg.hashsalt": "segserve"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for name, points in curves.items():
            color, width = (COLORS[0], 2.5) if name == best else (FAINT, 1.0)
            label = f"best: {name}" if name == best else None
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color, linewidth=width, label=label)
        axes.axvline(slo_p95_ms, linestyle="--", color=COLORS[4], label=f"target, {slo_p95_ms:g} ms")
        axes.set(xlabel="95th percentile of the latency, ms", ylabel="images/s", ylim=(0, None), xscale="log")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()
