"""`segserve predict --ray` on a real cluster of two workers on this machine; docs/bulk.md."""

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segserve.artifact import Artifact
from segserve.offline import load_predictor, predict_files
from tests.conftest import random_image
from tests.system.ray_workers import ROOT, started, workers

pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
pytestmark = pytest.mark.system

PAGE = (ROOT / "docs/bulk.md").read_text()
COUNT = 80


@pytest.fixture
def folder(tmp_path: Path, artifact: Artifact) -> Path:
    """Holds what the page's command speaks of; one image is broken."""
    shutil.copytree(artifact.path, tmp_path / "artifacts/demo-segmentation")
    images = tmp_path / "runs/demo/data/segmentation/images"
    for number in range(COUNT):
        path = images / ("train" if number % 2 else "val") / f"{number % 7}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(40, 40 + number % 5, seed=number)).save(path)
    (images / "val/0/0.png").write_bytes(b"broken")
    (images / "classes.json").write_text("{}")
    return tmp_path


def start(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    [block] = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    program, *arguments = shlex.split(block)
    assert program == ".venv/bin/segserve"
    return started(arguments, folder=folder)


def without_times(file: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(file.read_bytes())
    del answer["timings_ms"]
    return answer


def test_a_killed_worker_costs_no_answer_and_what_was_there_stays(folder: Path) -> None:
    images, out = folder / "runs/demo/data/segmentation/images", folder / "runs/bulk"
    there = sorted(path.relative_to(images).with_suffix(".json") for path in images.glob("train/1/*.png"))
    for name in there:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of a call before")
    with start(folder) as process:
        while len(list(out.rglob("*.json"))) < COUNT // 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        next(workers(process)).kill()
        before = len(list(out.rglob("*.json")))
        printed, complaints = process.communicate(timeout=120)
    assert before < COUNT - 1, "the worker was killed too late"

    assert process.returncode == 1
    assert f"{len(there)} of {COUNT} images have their answers already" in printed
    missing = COUNT - len(there)
    assert f"{missing - 1} of {missing} images predicted" in printed
    [complaint] = [line for line in complaints.splitlines() if ".png" in line]
    assert complaint.startswith("val/0/0.png: expected one of JPEG, PNG")
    assert all((out / name).read_text() == "of a call before" for name in there)
    assert_answers(folder, [path for path in images.rglob("*.png") if path.name != "0.png"], skipped=there)


def assert_answers(folder: Path, paths: Sequence[Path], *, skipped: Sequence[Path]) -> None:
    """Those of `segserve predict` without Ray, and no others; a worker killed while it wrote leaves a hidden file."""
    images, out = folder / "runs/demo/data/segmentation/images", folder / "runs/bulk"
    artifact, predictor = load_predictor(folder / "artifacts/demo-segmentation")
    expected = {name.as_posix() for name in skipped}
    todo = [path for path in paths if path.relative_to(images).with_suffix(".json") not in skipped]
    done = predict_files(todo, artifact=artifact, predictor=predictor, out=folder / "alone")
    for path, fault in done:
        assert fault is None
        stem, alone = path.relative_to(images).with_suffix(""), folder / "alone" / path.stem
        assert (out / stem).with_suffix(".png").read_bytes() == alone.with_suffix(".png").read_bytes()
        found, wanted = (without_times(place.with_suffix(".json")) for place in (out / stem, alone))
        assert found == wanted
        expected |= {stem.with_suffix(suffix).as_posix() for suffix in (".png", ".json")}
    written = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.relative_to(out).as_posix() for path in written} == expected
