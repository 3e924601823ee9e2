"""`segserve pseudolabel --ray` on a real cluster of two workers on this machine; docs/bulk.md."""

import time
from pathlib import Path

import pytest
from PIL import Image

from segserve.artifact import Artifact
from tests.conftest import random_image
from tests.rounds import files_of, held_out_set
from tests.system.ray_workers import started, workers
from training.flywheel.pseudolabel import Labeller, pseudolabel
from training.flywheel.round import MANIFEST, Round
from training.flywheel.triage import Selection

pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
pytestmark = pytest.mark.system

COUNT = 60


def test_a_killed_worker_costs_no_mask(tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths are relative, and one image is broken."""
    monkeypatch.chdir(tmp_path)
    Path("artifact").symlink_to(artifact.path)
    Path("images").mkdir()
    for number in range(COUNT):
        Image.fromarray(random_image(40, 40 + number % 5, seed=number)).save(f"images/{number}.png")
    Path("images/7.png").write_bytes(b"broken")
    dataset = held_out_set(tmp_path / "labelled")
    command = ["pseudolabel", "artifact", "images", "--out", "round", "--held-out", "labelled", "--tta", "d4"]
    found = Round(Path("round"))
    with started([*command, "--precision", "0", "--ray", "2"], folder=tmp_path) as process:
        while len(found.entries()) < COUNT // 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        next(workers(process)).kill()
        before = len(found.entries())
        printed, complaints = process.communicate(timeout=120)
    assert before < COUNT - 1, "the worker was killed too late"

    assert process.returncode == 1
    assert f"{COUNT - 1} accept, 0 review, 0 relabel, 1 left out" in printed
    assert "images/7.png" in complaints
    labeller = Labeller(artifact=artifact, plan="d4", selection=Selection(precision=0.0))
    alone = pseudolabel(labeller, Path("images"), Path("alone"), held_out=dataset)
    assert found.entries() == alone.entries()
    assert len((found.path / MANIFEST).read_text().splitlines()) == COUNT
    ours, theirs = files_of(found.path), files_of(alone.path)
    for name in (MANIFEST, "review.html"):  # its lines in another order; the command's alone
        ours.pop(name)
    theirs.pop(MANIFEST)
    assert ours == theirs
