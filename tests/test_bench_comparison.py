from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.comparison import Bare, Comparison, Extra, Measurement
from handlers.load import Load


def _rounds(*rates: float) -> list[Measurement]:
    """Of 10 s each, in which every answer takes 100 ms, but for one that takes 300."""
    return [
        Measurement(
            load=Load(seconds=[0.3] + [0.1] * (round(10 * rate) - 1), duration=10.0),
            start_seconds=rate,
            megabytes=100 * rate,
        )
        for rate in rates
    ]


COMPARISON = Comparison(
    measured={
        "segserve, our engine": _rounds(18, 99, 20),
        "segserve, our torch engine": _rounds(5),
        "LitServe, our engine": _rounds(16),
        "Triton, our engine": _rounds(15),
        "LitServe, torch fp32": _rounds(3),
        "Triton, torch fp32": _rounds(4),
    },
    bare=[
        Bare(engine_images_per_second=rate, service_images_per_second=20, tail=rate / 10, share_of_limit=share)
        for rate, share in ((24, 0.5), (25, 0.7), (30, 0.6))
    ],
    extra=Extra(p50_ms=100, p99_ms=150, tta_cost=7.25),
)


def test_a_line_has_the_medians_of_the_rounds() -> None:
    header, rule, first, *others = COMPARISON.table().splitlines()
    assert header.count("|") == rule.count("|") == first.count("|")
    assert first == "| segserve, our engine | 20.0 | 0.80 | 100 | 100 | 20.0 | 2000 |"
    assert [line.split("|")[1].strip() for line in others] == list(COMPARISON.measured)[1:]


def test_the_ratios_are_to_the_engine_and_to_the_best_peer_of_a_kind() -> None:
    lines = COMPARISON.ratios()
    assert lines[0].startswith("- bare engine: 25.0 images/s, 0.60 of the limit")
    assert lines[1] == "- service in this process / bare engine: 0.80"
    assert lines[2] == "- over HTTP / bare engine: 0.80"
    assert lines[3] == "- segserve / best peer (Triton, torch fp32): 5.00"
    assert lines[4] == "- segserve / best peer (LitServe, our engine): 1.25"
    assert lines[5].endswith("1.50 (150 ms, 100 ms); 2.50 where a server costs nothing but its engine's time")
    assert lines[6] == "- `tta=d4` / none, cost: 7.25"


def test_without_peers_there_is_nothing_to_compare_with() -> None:
    alone = Comparison(measured={"segserve, our engine": _rounds(20)}, bare=COMPARISON.bare, extra=COMPARISON.extra)
    assert not any("best peer" in line for line in alone.ratios())


def test_who_failed_is_said() -> None:
    lines = replace(COMPARISON, failed=["Ray Serve, torch fp32"]).table().splitlines()
    assert lines[-1].startswith("| Ray Serve, torch fp32 | failed |")
    assert lines[-1].count("|") == lines[0].count("|")


def test_the_plot_has_a_bar_a_server(tmp_path: Path) -> None:
    COMPARISON.plot(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        blue = (np.asarray(plot.convert("RGB")) == (0x1F, 0x5F, 0x9E)).all(axis=2)
    rows = blue.any(axis=1)
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 2  # segserve's two
