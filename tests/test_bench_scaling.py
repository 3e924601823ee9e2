"""The curves, of a tiny artifact and few points; those over HTTP need a service and are left to the benchmark."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import scaling
from bench.scaling import Curve, _line, draw, main
from segserve.artifact import Artifact


@pytest.fixture
def small(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """With a fixed working size of 64 pixels."""
    for name, few in {"SIDES": (32, 64), "BATCHES": (1, 2), "TILED_SIDES": (64, 128), "NUM_CLASSES": (2, 3)}.items():
        monkeypatch.setattr(scaling, name, few)
    preprocess = artifact.spec.preprocess.model_copy(update={"resize": "always", "working_side": 64})
    return replace(artifact, spec=artifact.spec.model_copy(update={"preprocess": preprocess}))


@pytest.mark.parametrize(
    ("measure", "places"),
    [
        (scaling.image_size, [0.001024, 0.004096]),
        (scaling.batch, [1, 2]),
        (scaling.views, [1, 2, 4, 8]),
        (scaling.windows, [1, 9]),
        (scaling.classes, [2, 3]),
    ],
)
def test_a_curve_has_a_point_for_each_size_and_a_line_beside_it(
    small: Artifact, measure: object, places: list[float]
) -> None:
    assert callable(measure)
    curve = measure(small)
    assert [x for x, _ in curve.points] == places
    assert all(y > 0 for _, y in curve.points)
    assert len(curve.expected) == len(places)


def test_what_lies_on_a_line_is_expected_there() -> None:
    curve = _line("Batch", "images", "ms a batch", [(1, 5.0), (2, 7.0), (8, 19.0)])
    assert curve.expected == pytest.approx([5, 7, 19])
    assert curve.said == "a straight line, 3 + 2 x images"
    assert curve.section().splitlines()[-1] == "| 8 | 19 | 19 | 1.00 |"


def test_no_line_falls_below_nothing() -> None:
    curve = _line("Batch", "images", "ms a batch", [(1, 1.0), (2, 4.0), (4, 16.0)])
    assert min(curve.expected) > 0


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    curve = Curve(title="Batch", x="images", y="ms", points=[(1, 2), (2, 3)], expected=[2, 3], said="so")
    draw([curve] * 7, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_artifact_without_a_fixed_size_is_refused(
    labels_artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(labels_artifact.path)]) == 2
    assert "expected masks at a fixed working size" in capsys.readouterr().err
