from pathlib import Path

import numpy as np
import pytest

from tests.rounds import prediction_of
from training.flywheel.soft import MOST_KEPT, SoftMask


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prediction = prediction_of(rng.integers(0, 5, (20, 30)).astype(np.uint8), blur=1.5, rng=rng)
    soft = SoftMask.of(prediction, scale=2.5)
    soft.write(tmp_path / "a.npz")
    again = SoftMask.read(tmp_path / "a.npz")
    for name in ("classes_THW", "probs_THW", "information_HW", "disagreement_HW"):
        assert (getattr(again, name) == getattr(soft, name)).all(), name
    assert again.scale == 2.5
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("at_once", [10**6, 500])
def test_the_most_probable_classes_are_kept(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.flywheel.soft.SORTED_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    prediction = prediction_of(rng.integers(0, 5, (20, 30)).astype(np.uint8), blur=1.5, rng=rng)
    soft = SoftMask.of(prediction, scale=1.0)
    assert (soft.mask_HW == prediction.mask_HW).all()
    assert prediction.probs_KHW is not None
    assert (np.sort(prediction.probs_KHW, axis=0)[::-1][:MOST_KEPT] == soft.probs_THW).all()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"a.npz: expected a soft mask, but it cannot be read"):
        SoftMask.read(tmp_path / "a.npz")
