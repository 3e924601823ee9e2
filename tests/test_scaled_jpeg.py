"""`preprocess.scaled_jpeg`: large JPEG files are decoded at less, and answers have the size of what was sent."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segserve import codec
from segserve.api import Request, Response
from segserve.artifact import Artifact
from segserve.codec import decode_image, decode_scaled
from segserve.engines.torch_engine import TorchEngine
from segserve.offline import answers
from segserve.prediction import Query
from segserve.predictor import build_predictor
from segserve.preprocess import resize_image, to_tensor
from segserve.service import Service
from segserve.spec import ModelSpec
from tests.pictures import lossless_jpeg
from training.data import load_sample
from training.evaluate import outcomes, predicted_classes
from training.layouts import Dataset, Sample
from training.openvino_model import CalibrationImages
from training.pictures import error_map
from training.reference import measure_reference

WIDTH, HEIGHT = 640, 400


def smooth_image() -> NDArray[np.uint8]:
    """Waves and a corner, so that which side is up can be seen."""
    rows_H1, columns_1W = np.mgrid[:HEIGHT, :1][0], np.mgrid[:1, :WIDTH][1]
    waves_HW = 90 + 60 * np.sin(rows_H1 / 60) + 60 * np.cos(columns_1W / 90)
    image_HWC = np.stack([waves_HW, waves_HW[::-1], waves_HW[:, ::-1]], axis=-1)
    image_HWC[:100, :200] = 250
    return image_HWC.clip(0, 255).astype(np.uint8)


def jpeg(*, orientation: int = 1, progressive: bool = False) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image = Image.fromarray(smooth_image())
    image.save(file, format="JPEG", quality=95, exif=exif, progressive=progressive)
    return file.getvalue()


def half(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_shows_the_same_the_same_way_up(orientation: int, progressive: bool) -> None:
    data = jpeg(orientation=orientation, progressive=progressive)
    whole_HWC = decode_image(data)
    found = decode_scaled(data, needed=half)
    assert found.sent_size == whole_HWC.shape[:2]
    assert found.image_HWC.shape[:2] == half(found.sent_size)
    height, width = found.image_HWC.shape[:2]
    small_HWC = np.asarray(Image.fromarray(whole_HWC).resize((width, height), Image.Resampling.BOX), dtype=np.int16)
    assert np.abs(found.image_HWC - small_HWC).mean() < 1


@pytest.mark.parametrize(
    ("needed", "size"),
    [
        ((400, 640), (400, 640)),
        ((201, 300), (400, 640)),
        ((200, 320), (200, 320)),
        ((51, 80), (100, 160)),
        ((1, 1), (50, 80)),
        ((900, 1400), (400, 640)),
    ],
)
def test_it_is_decoded_at_no_less_than_what_is_needed(needed: tuple[int, int], size: tuple[int, int]) -> None:
    found = decode_scaled(jpeg(), needed=lambda _: needed)
    assert found.image_HWC.shape[:2] == size
    assert found.sent_size == (HEIGHT, WIDTH)


def test_sides_that_cannot_be_divided_are_left_alone() -> None:
    """Of 642 columns a quarter would be 161, the last of which had half of its pixels from outside."""
    file = io.BytesIO()
    Image.fromarray(smooth_image()).resize((642, 400)).save(file, format="JPEG")
    assert decode_scaled(file.getvalue(), needed=lambda _: (50, 80)).image_HWC.shape == (200, 321, 3)


def test_other_files_and_lossless_jpegs_are_decoded_whole() -> None:
    gray_HW = smooth_image()[..., 0]
    file = io.BytesIO()
    Image.fromarray(gray_HW).save(file, format="PNG")
    for data in (file.getvalue(), lossless_jpeg(gray_HW)):
        found = decode_scaled(data, needed=half)
        assert found.sent_size == found.image_HWC.shape[:2] == gray_HW.shape
        assert np.array_equal(found.image_HWC[..., 0], gray_HW)


def scaling(artifact: Artifact, **preprocess: object) -> Artifact:
    sizing = {"working_side": 64, "scaled_jpeg": True, **preprocess}
    spec = artifact.spec.model_dump()
    spec["preprocess"].update(sizing)
    return replace(artifact, spec=ModelSpec.model_validate(spec))


def ask(artifact: Artifact, **options: str) -> Response:
    service = Service(
        artifact, build_predictor(artifact.spec, TorchEngine(artifact.network)), name="scaled", version="1.0"
    )
    fields = {name: value.encode() for name, value in options.items()}
    request = Request(headers={"content-type": "image/jpeg"}, fields={"body": jpeg(orientation=6), **fields})
    (response,) = service.handle([request])
    assert response.status == 200, response.body
    return response


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of what the service decodes from now on."""
    sizes: list[tuple[int, ...]] = []
    real = codec.decode_scaled

    def noting(data: bytes, **options: object) -> codec.Decoded:
        found = real(data, **options)  # type: ignore[arg-type]
        sizes.append(found.image_HWC.shape[:2])
        return found

    monkeypatch.setattr(codec, "decode_scaled", noting)
    return sizes


def test_a_mask_has_the_size_of_what_was_sent_and_is_that_of_the_whole_image(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = decoded_sizes(monkeypatch)
    scaled, whole = (ask(scaling(artifact, scaled_jpeg=is_scaled), format="png") for is_scaled in (True, False))
    assert sizes == [(80, 50), (640, 400)]
    masks = [np.asarray(Image.open(io.BytesIO(response.body))) for response in (scaled, whole)]
    assert masks[0].shape == masks[1].shape == (640, 400)
    assert (masks[0] == masks[1]).mean() > 0.85


def test_what_shows_the_image_shows_all_of_it(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = decoded_sizes(monkeypatch)
    answer = ask(scaling(artifact), format="png", render="overlay")
    assert sizes == [(640, 400)]
    assert Image.open(io.BytesIO(answer.body)).size == (400, 640)


def test_labels_are_those_of_the_whole_image(labels_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = decoded_sizes(monkeypatch)
    scaled, whole = (json.loads(ask(scaling(labels_artifact, scaled_jpeg=each)).body) for each in (True, False))
    assert sizes == [(80, 50), (640, 400)]
    assert scaled["image"] == whole["image"] == {"width": 400, "height": 640}
    found, expected = ({label["id"]: label["probability"] for label in each["labels"]} for each in (scaled, whole))
    assert found == pytest.approx(expected, abs=0.05)


def test_windows_are_cut_from_the_whole_image(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = decoded_sizes(monkeypatch)
    ask(scaling(artifact, resize="never"), format="png")
    assert sizes == [(640, 400)]


def test_the_offline_command_says_what_the_service_says(artifact: Artifact, tmp_path: Path) -> None:
    scaled = scaling(artifact)
    predictor = build_predictor(scaled.spec, TorchEngine(scaled.network))
    ((_, files),) = answers(["a"], lambda _: jpeg(orientation=6), artifact=scaled, predictor=predictor, tta="none")
    assert not isinstance(files, str)
    assert files[".png"] == ask(scaled, format="png").body


def test_training_and_evaluation_read_what_the_service_sees(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(orientation=6))
    Image.fromarray(np.zeros((WIDTH, HEIGHT), dtype=np.uint8)).save(tmp_path / "a.png")
    sample, spec = Sample(image=tmp_path / "a.jpg", truth=tmp_path / "a.png"), scaling(artifact).spec
    served = decode_scaled(jpeg(orientation=6), needed=lambda _: (40, 64)).image_HWC
    assert served.shape == (80, 50, 3)
    image_CHW, truth_HW = load_sample(sample, ignore_index=None, preprocess=spec.preprocess)
    assert torch.equal(image_CHW, resize_image(to_tensor(served), (64, 40)))
    assert truth_HW.shape == (64, 40)
    predictor = build_predictor(spec, TorchEngine(artifact.network))
    (outcome,) = outcomes(predictor, [sample], ignore_index=None)
    assert np.array_equal(outcome.image_HWC, served)
    assert outcome.predicted.shape == error_map(outcome).shape[:2] == (WIDTH, HEIGHT)
    (prediction,) = predictor.predict([Query(image_HWC=served, sent_size=(WIDTH, HEIGHT))])
    assert np.array_equal(outcome.predicted, predicted_classes(prediction))


def test_the_reference_is_of_what_the_service_sees(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(orientation=6))
    scaled = scaling(artifact)
    engine = TorchEngine(scaled.network)
    dataset = dataset_of(tmp_path / "a.jpg", split="val", spec=scaled.spec)
    served = decode_scaled(jpeg(orientation=6), needed=lambda _: (40, 64))
    (prediction,) = build_predictor(scaled.spec, engine).predict(
        [Query(image_HWC=served.image_HWC, sent_size=served.sent_size)]
    )
    pixels_K = np.bincount(predicted_classes(prediction).ravel(), minlength=4)
    assert measure_reference(scaled.spec, engine, dataset).class_shares == tuple(pixels_K / pixels_K.sum())


def test_int8_ranges_are_of_what_the_service_sees(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(orientation=6))
    served_HWC = decode_scaled(jpeg(orientation=6), needed=lambda _: (40, 64)).image_HWC
    Image.fromarray(served_HWC).save(tmp_path / "served.png")
    scaled, whole = (scaling(artifact, scaled_jpeg=is_scaled).spec for is_scaled in (True, False))
    cases = ((scaled, "a.jpg"), (scaled, "served.png"), (whole, "a.jpg"))
    seen, served, of_whole = (
        next(iter(CalibrationImages(dataset_of(tmp_path / name, split="train", spec=spec), spec)))
        for spec, name in cases
    )
    assert np.array_equal(seen, served) and not np.array_equal(seen, of_whole)


def dataset_of(image: Path, *, split: str, spec: ModelSpec) -> Dataset:
    return Dataset(
        root=image.parent,
        task="segmentation",
        classes=spec.classes,
        ignore_index=None,
        splits={split: (Sample(image=image, truth=image.with_name("a.png")),)},
        complaints_by_split={},
    )
