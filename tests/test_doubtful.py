"""Images kept because the model was not sure: which, how, for how long, and that nobody's answer suffers."""

import io
import json
import os
import random
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from cli import main
from handlers.settings import ServeSettings, read_doubtful
from segserve import metrics
from segserve.api import ModelInfo, Request
from segserve.artifact import Artifact
from segserve.doubtful import DoubtfulSettings, delete_old
from segserve.doubtful_store import DoubtfulStore
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import build_predictor
from segserve.service import Service
from tests.conftest import ToyEngine, ToyLabelsEngine, random_image, tiny_spec

MODEL = ModelInfo(name="cells", version="1.0", digest="d")
GPS = 0x8825


def photograph(seed: int = 0) -> tuple[bytes, NDArray[np.uint8]]:
    """A JPEG that says where it was taken, and by whom, and its pixels."""
    exif = Image.Exif()
    exif[0x013B] = "Alice"
    exif.get_ifd(GPS)[1] = "N"
    buffer = io.BytesIO()
    Image.fromarray(random_image(40, 60, seed=seed)).save(buffer, "JPEG", exif=exif, comment=b"secret")
    return buffer.getvalue(), np.asarray(Image.open(buffer))


def doubted(doubt: float) -> SegmentationPrediction:
    return SegmentationPrediction(
        mask_HW=np.ones((8, 8), dtype=np.uint8),
        confidence_HW=np.full((8, 8), 200, dtype=np.uint8),
        uncertainty_HW={},
        probs_KHW=None,
        mean_entropy=doubt,
        mutual_information=0.0,
        view_agreement=1.0,
        windows=1,
    )


def image(value: int) -> Query:
    return Query(image_HWC=np.full((8, 8, 3), value, dtype=np.uint8))


def store(folder: Path, **settings: float) -> DoubtfulStore:
    return DoubtfulStore(DoubtfulSettings(folder=folder, **settings), tiny_spec("segmentation"), MODEL)  # type: ignore[arg-type]


def offer(kept: DoubtfulStore, value: int, doubt: float) -> None:
    kept.offer(image(value), doubted(doubt))
    kept.flush()


def doubts(kept: DoubtfulStore) -> list[float]:
    return sorted(float(path.stem.split("-")[0]) for path in (kept.folder / "images").iterdir())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def service(artifact: Artifact, tmp_path: Path) -> Service:
    service = Service(artifact, build_predictor(artifact.spec, ToyEngine()), name="cells", version="1.0")
    settings = DoubtfulSettings(folder=tmp_path / "doubtful")
    service.doubtful = DoubtfulStore(settings, artifact.spec, service.model)
    return service


def kept_by(service: Service) -> Path:
    assert service.doubtful is not None
    service.doubtful.flush()
    return service.doubtful.folder


def ask(service: Service, body: bytes, **headers: str) -> bytes:
    request = Request(headers={"content-type": "image/jpeg", **headers}, fields={"body": body})
    (response,) = service.handle([request])
    assert response.status == 200, response.body
    return response.body


def test_what_is_kept_is_the_image_the_mask_and_the_scores_and_nothing_of_the_sender(service: Service) -> None:
    body, pixels_HWC = photograph()
    answer = ask(service, body, **{"x-request-id": "alice-1", "x-segserve-tta": "hflip"})
    folder = kept_by(service)
    [name] = [path.stem for path in (folder / "images").iterdir()]
    assert files(folder) == [f"images/{name}.png", f"masks/{name}.png", f"scores/{name}.json"]
    with Image.open(folder / "images" / f"{name}.png") as kept:
        assert (np.asarray(kept) == pixels_HWC).all()
        assert not kept.info
    assert (folder / "masks" / f"{name}.png").read_bytes() == answer
    scores = json.loads((folder / "scores" / f"{name}.json").read_text())
    assert scores["model"] == service.model.model_dump()
    assert scores["tta"] == "hflip"
    assert name.startswith(f"{scores['mean_entropy']:.4f}-")
    assert set(scores) == {"model", "tta", "mean_entropy", "mutual_information", "view_agreement"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_of_a_classifier_the_label_is_kept(labels_artifact: Artifact, tmp_path: Path) -> None:
    predictor = build_predictor(labels_artifact.spec, ToyLabelsEngine())
    service = Service(labels_artifact, predictor, name="kinds", version="1.0")
    service.doubtful = DoubtfulStore(DoubtfulSettings(folder=tmp_path), labels_artifact.spec, service.model)
    answer = json.loads(ask(service, photograph()[0]))
    folder = kept_by(service)
    [scores] = (folder / "scores").iterdir()
    assert json.loads(scores.read_text())["label"] == answer["labels"][0]["name"]
    assert not list((folder / "masks").iterdir())


def test_what_was_refused_is_not_kept(service: Service) -> None:
    (response,) = service.handle([Request(headers={}, fields={"body": b"no image"})])
    assert response.status == 415
    assert files(kept_by(service)) == []


def test_what_cannot_be_answered_is_not_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.service.MAX_ANSWER_BYTES", 10)
    before = pixels_answered()
    (response,) = service.handle([Request(headers={}, fields={"body": photograph()[0]})])
    assert response.status == 413
    assert files(kept_by(service)) == []
    assert pixels_answered() == before


def pixels_answered() -> float:
    [family] = metrics.CLASS_PIXELS.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


def test_an_image_is_kept_once_however_often_it_comes(service: Service) -> None:
    for headers in ({}, {}, {"x-segserve-tta": "hflip"}):
        ask(service, photograph()[0], **headers)
        kept_by(service)
    assert len(files(kept_by(service))) == 3


def test_the_most_doubtful_stay(tmp_path: Path) -> None:
    kept = store(tmp_path, most_images=2)
    for value, doubt in enumerate((0.3, 0.5, 0.4, 0.2, 0.6)):
        offer(kept, value, doubt)
    assert doubts(kept) == [0.5, 0.6]
    assert len(files(kept.folder)) == 6


def test_what_would_find_no_room_is_not_even_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until another worker or a deletion changes the folder."""
    kept = store(tmp_path, most_images=1)
    offer(kept, 0, 0.5)
    offer(kept, 1, 0.4)
    written: list[float] = []
    monkeypatch.setattr(kept, "_write", lambda query, prediction: written.append(prediction.mean_entropy))
    for doubt in (0.3, 0.4, 0.45):
        offer(kept, 2, doubt)
    assert written == [0.45]
    for path in (kept.folder / "images").iterdir():
        path.unlink()
    offer(kept, 2, 0.1)
    assert written == [0.45, 0.1]


def test_the_bytes_on_disk_are_bounded(tmp_path: Path) -> None:
    kept = store(tmp_path, most_megabytes=0.05)
    noise = [Query(image_HWC=random_image(60, 60, seed=seed)) for seed in range(8)]
    for query, doubt in zip(noise, (0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5), strict=True):
        kept.offer(query, doubted(doubt))
        kept.flush()
    assert sum(path.stat().st_size for path in kept.folder.rglob("*.*")) <= 50_000
    left = doubts(kept)
    assert 2 < len(left) < 8
    assert left == sorted((0.8, 0.7, 0.6, 0.5, 0.4, 0.3)[: len(left)])


def test_a_share_is_drawn_by_chance(tmp_path: Path) -> None:
    random.seed(0)
    kept = store(tmp_path, share=0.3)
    for value in range(200):
        offer(kept, value, 0.5)
    assert 45 <= len(doubts(kept)) <= 75  # 60 +- 2.3 standard deviations


def test_many_workers_keep_the_bounds(tmp_path: Path) -> None:
    workers = [store(tmp_path, most_images=5) for _ in range(4)]

    def work(index: int) -> None:
        for value in range(index, 200, 4):
            offer(workers[index], value, value / 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    offer(workers[0], 250, 0.9)
    assert doubts(workers[0]) == [0.196, 0.197, 0.198, 0.199, 0.9]
    assert len(files(workers[0].folder)) == 15


def test_what_is_old_is_deleted_with_what_a_killed_worker_left(tmp_path: Path) -> None:
    settings = DoubtfulSettings(folder=tmp_path, days=2)
    kept = store(tmp_path, days=2)
    offer(kept, 0, 0.5)
    (name,) = {Path(file).stem for file in files(tmp_path)}
    (kept.folder / f"images/.{name}.png.1.tmp").touch()
    others = [tmp_path / "pets/images/cat.jpg", kept.folder / "masks/drawn.png"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (0, time.time() - 3 * 86_400))
    offer(kept, 1, 0.4)
    delete_old(settings)
    assert doubts(kept) == [0.4]
    assert len(files(tmp_path)) == 3 + len(others) and all(path.is_file() for path in others), "which are not its own"


def test_a_disk_that_takes_nothing_costs_nobody_an_answer(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(kept_by(service))
    for _ in range(2):
        ask(service, photograph()[0])
        assert service.doubtful is not None
        service.doubtful.flush()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "a doubtful image could not be kept"
    ] * 2


def test_a_certain_answer_is_not_kept(tmp_path: Path) -> None:
    kept = store(tmp_path)
    offer(kept, 0, 0.0)
    assert files(tmp_path) == []


# --- settings ---


def test_the_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "doubtful.toml").write_text('folder = "kept"\ndays = 7\n')
    assert read_doubtful(tmp_path / "doubtful.toml") == DoubtfulSettings(folder=tmp_path / "kept", days=7)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("days = 7\n", "expected a value for 'folder', but none was given"),
        ("folder = 5\n", "expected 'folder' to be a path, but got 5"),
    ],
)
def test_the_folder_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], toml: str, sentence: str) -> None:
    (tmp_path / "doubtful.toml").write_text(toml)
    assert main(["serve", "--doubtful", str(tmp_path / "doubtful.toml")]) == 2
    assert capsys.readouterr().err == f"segserve: {sentence}\n"


def test_the_folder_must_not_lie_in_the_store(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="outside the model store"):
        ServeSettings(store=tmp_path, doubtful=DoubtfulSettings(folder=tmp_path / "kept"))
    with pytest.raises(ValidationError, match="and not around it, where no worker can write"):
        ServeSettings(store=tmp_path / "store", doubtful=DoubtfulSettings(folder=tmp_path))


def test_a_folder_that_cannot_be_made_is_said_before_anything_starts(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["package", str(artifact.path), "--store", str(tmp_path / "store")]) == 0
    (tmp_path / "file").touch()
    (tmp_path / "doubtful.toml").write_text('folder = "file"\n')
    asked = ["--store", str(tmp_path / "store"), "--doubtful", str(tmp_path / "doubtful.toml")]
    assert main(["serve", *asked]) == 1
    assert "expected a folder for doubtful images that this user can write to" in capsys.readouterr().err
