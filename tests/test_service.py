import base64
import faulthandler
import hashlib
import io
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY
from pycocotools import mask as coco
from torch import Tensor

from segserve import codec
from segserve.api import Request, Response
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.codec import Decoded, decode_scaled
from segserve.engines.torch_engine import TorchEngine
from segserve.png import NO_CLASS
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import ClassificationPredictor, SegmentationPredictor
from segserve.quarantine import Quarantine
from segserve.render import render
from segserve.service import Service
from tests.conftest import CLASSES, ToyEngine, ToyLabelsEngine, expected_probs, random_image

STAGES = {"decode", "preprocess", "forward", "tta", "postprocess", "encode"}
RED = np.full((9, 9, 3), (255, 0, 0), dtype=np.uint8)
IMAGES = [random_image(*size, seed=seed) for seed, size in enumerate([(40, 30), (7, 5), (64, 64), (100, 65), (1, 1)])]

names = (f"model-{number}" for number in itertools.count())


class FaultyPredictor(SegmentationPredictor):
    """Raises an error for every batch that holds an image with a red first pixel."""

    def __init__(self, spec: Any, error: Exception) -> None:
        super().__init__(spec, ToyEngine())
        self.error = error

    def _predict_together(
        self, queries: Sequence[Query], clock: StageClock
    ) -> list[SegmentationPrediction | Exception]:
        if any((query.image_HWC[0, 0] == (255, 0, 0)).all() for query in queries):
            raise self.error
        return super()._predict_together(queries, clock)


def png(image_HWC: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def request(image_HWC: NDArray[np.uint8], **options: object) -> Request:
    fields = {name: str(value).encode() for name, value in options.items()}
    return Request(headers={"content-type": "image/png"}, fields={"body": png(image_HWC), **fields})


def json_request(document: object, **headers: str) -> Request:
    return Request(
        headers={"content-type": "application/json", **headers}, fields={"body": json.dumps(document).encode()}
    )


def opened(response: Response) -> Image.Image:
    assert (response.status, response.content_type) == (200, "image/png"), response.body
    return Image.open(io.BytesIO(response.body))


def document(response: Response, status: int = 200) -> dict[str, Any]:
    assert response.status == status, response.body
    assert response.content_type == ("application/json" if status == 200 else "application/problem+json")
    return dict(json.loads(response.body))


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def service(artifact: Artifact) -> Service:
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network))
    return Service(artifact, predictor, name="seg", version="1.0", pool_size=2)


@pytest.fixture(scope="module")
def toy(artifact: Artifact) -> Service:
    """Deterministic to the bit, whatever else is in the batch."""
    return Service(artifact, SegmentationPredictor(artifact.spec, ToyEngine()), name="toy", version="2.0", pool_size=2)


@pytest.fixture(scope="module")
def labels(labels_artifact: Artifact) -> Service:
    predictor = ClassificationPredictor(labels_artifact.spec, TorchEngine(labels_artifact.network))
    return Service(labels_artifact, predictor, name="labels", version="1.0", pool_size=2)


def test_a_mask_is_a_palette_png_with_the_contracts_headers(service: Service) -> None:
    (response,) = service.handle([request(IMAGES[3])])
    image = opened(response)
    assert (image.mode, image.size) == ("P", (65, 100))
    assert response.headers["X-Segserve-Model"] == "seg"
    assert response.headers["X-Segserve-Version"] == "1.0"
    assert np.bincount(np.asarray(image).ravel(), minlength=4).max() < 0.99 * 6500  # random weights, but not blind


def test_server_timing_names_every_stage(service: Service) -> None:
    (response,) = service.handle([request(IMAGES[0])])
    entries = response.headers["Server-Timing"].split(", ")
    assert all(re.fullmatch(r"[a-z]+;dur=\d+(\.\d+)?", entry) for entry in entries)
    assert {entry.partition(";")[0] for entry in entries} == STAGES


def test_json_has_the_keys_of_the_contract(service: Service, artifact: Artifact) -> None:
    answer = document(*service.handle([request(IMAGES[3], format="json", tta="d4", aggregate="vote")]))
    assert list(answer) == ["model", "image", "classes", "windows", "uncertainty", "tta", "timings_ms"]
    assert answer["windows"] == 1
    assert answer["model"] == {"name": "seg", "version": "1.0", "digest": artifact.digest}
    assert answer["image"] == {"width": 65, "height": 100}
    assert answer["tta"] == {"plan": "d4", "views": 8, "aggregate": "vote"}
    assert set(answer["uncertainty"]) == {"mean_entropy", "mutual_information", "view_agreement"}
    assert all(0 <= value <= 1 for value in answer["uncertainty"].values())
    assert set(answer["timings_ms"]) == STAGES
    for entry in answer["classes"]:
        assert set(entry) == {"id", "name", "color", "pixels", "fraction", "confidence", "mask"}
        assert set(entry["mask"]) == {"size", "counts"}


def test_accept_chooses_json(service: Service) -> None:
    asked = Request(headers={"accept": "application/json"}, fields={"body": png(IMAGES[0])})
    assert document(*service.handle([asked]))["image"] == {"width": 30, "height": 40}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode
@pytest.mark.parametrize("image_HWC", IMAGES, ids=lambda image: str(image.shape))
def test_rle_and_png_are_the_same_mask(image_HWC: NDArray[np.uint8], toy: Service) -> None:
    as_png, as_json = toy.handle([request(image_HWC), request(image_HWC, format="json")])
    mask_HW = np.asarray(opened(as_png))
    entries = document(as_json)["classes"]
    assert [entry["id"] for entry in entries] == sorted(set(mask_HW.ravel().tolist()))
    for entry in entries:
        np.testing.assert_array_equal(coco.decode(entry["mask"]), mask_HW == entry["id"])


def test_the_numbers_of_a_class_are_those_of_its_pixels(toy: Service) -> None:
    image_HWC = IMAGES[2]  # its size is the working size
    entries = document(*toy.handle([request(image_HWC, format="json")]))["classes"]
    probs_HWK = expected_probs(image_HWC, toy.spec)
    mask_HW = probs_HWK.argmax(axis=-1)
    for entry in entries:
        region_HW = mask_HW == entry["id"]
        assert entry["pixels"] == region_HW.sum()
        assert entry["fraction"] == pytest.approx(region_HW.mean(), abs=1e-5)
        assert entry["confidence"] == pytest.approx(probs_HWK.max(axis=-1)[region_HW].mean(), abs=3e-3)
        assert (entry["name"], tuple(entry["color"])) == (CLASSES[entry["id"]].name, CLASSES[entry["id"]].color)
    assert sum(entry["pixels"] for entry in entries) == mask_HW.size


@pytest.mark.parametrize(
    ("masks", "of_classes", "of_answer"), [("rle", True, False), ("png", False, True), ("none", False, False)]
)
def test_masks_come_in_the_form_asked_for(masks: str, of_classes: bool, of_answer: bool, toy: Service) -> None:
    answer = document(*toy.handle([request(IMAGES[0], format="json", masks=masks)]))
    assert {"mask" in entry for entry in answer["classes"]} == {of_classes}
    assert ("mask" in answer) == of_answer


def test_the_png_in_json_is_the_png(toy: Service) -> None:
    as_png, as_json = toy.handle([request(IMAGES[0]), request(IMAGES[0], format="json", masks="png")])
    mask = document(as_json)["mask"]
    assert mask["encoding"] == "png"
    assert base64.b64decode(mask["data"], validate=True) == as_png.body


def test_overlay_is_the_image_under_the_colours(toy: Service) -> None:
    as_index, as_overlay = toy.handle([request(IMAGES[3]), request(IMAGES[3], render="overlay")])
    overlay = opened(as_overlay)
    colors = np.asarray(opened(as_index).convert("RGB")).astype(float)
    assert overlay.mode == "RGB"
    np.testing.assert_allclose(np.asarray(overlay), (colors + IMAGES[3]) / 2, atol=0.5)


def test_confidence_and_uncertainty_are_gray(toy: Service) -> None:
    renders = [request(IMAGES[2], render=render) for render in ("confidence", "uncertainty")]
    confidence, uncertainty = (opened(response) for response in toy.handle(renders))
    probs_HWK = expected_probs(IMAGES[2], toy.spec)
    entropy_HW = -(probs_HWK * np.log(probs_HWK)).sum(axis=-1) / np.log(4)
    assert (confidence.mode, uncertainty.mode) == ("L", "L")
    np.testing.assert_allclose(np.asarray(confidence), probs_HWK.max(axis=-1) * 255, atol=0.51)
    np.testing.assert_allclose(np.asarray(uncertainty), entropy_HW * 255, atol=0.51)


@pytest.mark.parametrize("render", ["index", "overlay", "confidence", "uncertainty"])
@pytest.mark.parametrize("image_HWC", IMAGES, ids=lambda image: str(image.shape))
def test_every_render_has_the_images_size(image_HWC: NDArray[np.uint8], render: str, toy: Service) -> None:
    image = opened(*toy.handle([request(image_HWC, render=render, tta="multiscale-hflip")]))
    assert image.size == image_HWC.shape[1::-1]


def test_only_the_classes_asked_for(toy: Service) -> None:
    asked = [request(IMAGES[3], classes="car,sky", **more) for more in ({}, {"format": "json"}, {"render": "overlay"})]
    some, as_json, overlay, everything = toy.handle([*asked, request(IMAGES[3])])
    full_HW = np.asarray(opened(everything))
    wanted_HW = np.isin(full_HW, [0, 3])
    np.testing.assert_array_equal(np.asarray(opened(some)), np.where(wanted_HW, full_HW, NO_CLASS))
    assert [entry["name"] for entry in document(as_json)["classes"]] == ["sky", "car"]
    np.testing.assert_array_equal(np.asarray(opened(overlay))[~wanted_HW], IMAGES[3][~wanted_HW])


def test_an_unknown_class_is_refused_with_the_known_ones(toy: Service) -> None:
    problem = document(*toy.handle([request(IMAGES[0], classes="sky,lake")]), 400)
    assert problem["detail"] == "expected 'classes' to be among sky, road, tree, car, but got lake"


def test_labels_are_sorted_and_sum_to_one(labels: Service, labels_artifact: Artifact) -> None:
    answer = document(*labels.handle([request(IMAGES[0], format="png", render="overlay", tta="hflip")]))
    assert list(answer) == ["model", "image", "labels", "uncertainty", "tta", "timings_ms"]
    assert answer["model"]["digest"] == labels_artifact.digest
    assert answer["tta"] == {"plan": "hflip", "views": 2, "aggregate": "mean"}
    probabilities = [label["probability"] for label in answer["labels"]]
    assert len(probabilities) == 4  # all there are, of the five asked for
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)


def test_labels_carry_their_class(labels_artifact: Artifact) -> None:
    predictor = ClassificationPredictor(labels_artifact.spec, ToyLabelsEngine())
    toy_labels = Service(labels_artifact, predictor, name="toy-labels", version="1", pool_size=1)
    image_HWC = np.full((64, 64, 3), (200, 30, 90), dtype=np.uint8)
    found = document(*toy_labels.handle([request(image_HWC)]))["labels"]
    expected_K = expected_probs(image_HWC, labels_artifact.spec)[0, 0]
    for label in found:
        assert label["name"] == CLASSES[label["id"]].name
        assert label["probability"] == pytest.approx(expected_K[label["id"]], abs=1e-5)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_top_k(top_k: int, count: int, labels: Service) -> None:
    everything, some = labels.handle([request(IMAGES[0]), request(IMAGES[0], top_k=top_k)])
    assert document(some)["labels"] == document(everything)["labels"][:count]


def test_upright_size_is_that_of_the_answer(toy: Service) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, format="JPEG", exif=exif)
    assert opened(*toy.handle([Request(headers={}, fields={"body": buffer.getvalue()})])).size == (20, 40)


@pytest.mark.parametrize(
    ("asked", "status", "kind"),
    [
        (request(RED, tta="d5"), 400, "bad-option"),
        (Request(headers={}, fields={}), 400, "bad-body"),
        (json_request({"image": "?"}), 400, "bad-body"),
        (Request(headers={}, fields={"body": b"text"}), 415, "unsupported-type"),
        (Request(headers={"content-type": "application/x-www-form-urlencoded"}, fields={}), 415, "unsupported-type"),
        (Request(headers={}, fields={"body": png(IMAGES[0])[:60]}), 422, "undecodable"),
    ],
)
def test_problems_are_rfc_9457_documents(asked: Request, status: int, kind: str, toy: Service) -> None:
    problem = document(*toy.handle([asked]), status)
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["type"].endswith(kind)
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"].startswith("expected ")


def test_too_large_is_413(toy: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_PIXELS", 10)
    assert "expected at most 10 pixels" in document(*toy.handle([request(RED)]), 413)["detail"]


def test_the_request_id_comes_back(toy: Service) -> None:
    good, bad = toy.handle(
        [Request(headers={"x-request-id": f"id-{n}"}, fields={"body": body}) for n, body in enumerate([png(RED), b"?"])]
    )
    assert good.headers["X-Segserve-Request-Id"] == "id-0"
    assert bad.headers["X-Segserve-Request-Id"] == "id-1"
    assert document(bad, 415)["request_id"] == "id-1"


@pytest.mark.parametrize("hostile", ["a\r\nX-Evil: 1", "ünïcode", "\ud800", "\0"])
def test_a_hostile_request_id_gets_into_no_header(hostile: str, toy: Service) -> None:
    (response,) = toy.handle([Request(headers={"x-request-id": hostile}, fields={"body": b"?"})])
    assert "X-Segserve-Request-Id" not in response.headers
    assert document(response, 415)["status"] == 415


@pytest.mark.parametrize(
    "asked",
    [
        json_request({"image": "", "classes": ["\ud800"]}),
        json_request({"image": "", "\ud800": 1}),
        json_request({"image": "", "tta": "\ud800"}),
        Request(headers={"content-type": "multipart/form-data"}, fields={"\ud800": b""}),
        Request(headers={"content-type": "\ud800/png"}, fields={"body": png(RED)}),
    ],
)
def test_text_that_is_no_unicode_is_a_clients_fault(asked: Request, toy: Service) -> None:
    bad, good = toy.handle([asked, request(RED)])
    assert bad.status in (400, 415)
    assert json.loads(bad.body)["status"] == bad.status
    assert good.status == 200


@pytest.mark.parametrize("option", ["tta", "classes", "unknown" * 1000])
def test_a_problem_does_not_grow_with_what_it_quotes(option: str, toy: Service) -> None:
    (response,) = toy.handle([json_request({"image": "", option: "\x7f" * 1_000_000})])
    assert response.status == 400
    assert len(response.body) < 20_000


GARBAGE = [
    Request(headers={}, fields={}),
    Request(headers={}, fields={"body": b"no image"}),
    Request(headers={}, fields={"body": png(IMAGES[0])[:100]}),
    Request(headers={"content-type": "application/x-www-form-urlencoded"}, fields={"body": b"x"}),
    request(IMAGES[0], tta="d5"),
    request(IMAGES[0], classes="lake"),
    json_request({"image": "", "classes": ["\ud800"]}, **{"x-request-id": "\ud800"}),
]
MIXED = [
    request(IMAGES[0]),
    request(IMAGES[1], tta="d4", render="overlay"),
    request(IMAGES[0], format="json", masks="png"),
    request(IMAGES[3], render="uncertainty", tta="multiscale"),
    request(IMAGES[2], classes="sky", aggregate="vote", tta="flips"),
    request(IMAGES[4], format="json"),
]


def without_timings(response: Response) -> object:
    if response.content_type == "image/png":
        return response.body
    return {name: value for name, value in json.loads(response.body).items() if name != "timings_ms"}


@settings(deadline=None, max_examples=25)
@given(faults=st.lists(st.none() | st.sampled_from(GARBAGE), min_size=len(MIXED), max_size=len(MIXED)))
def test_garbage_never_changes_its_neighbours_answers(toy: Service, faults: list[Request | None]) -> None:
    alone = [without_timings(toy.handle([asked])[0]) for asked in MIXED]
    responses = toy.handle([fault or asked for asked, fault in zip(MIXED, faults, strict=True)])
    for response, fault, expected in zip(responses, faults, alone, strict=True):
        if fault is None:
            assert (response.status, without_timings(response)) == (200, expected)
        else:
            assert 400 <= response.status < 500


def test_garbage_leaves_a_real_networks_answers_alone(service: Service) -> None:
    asked = [request(image) for image in IMAGES]
    full = service.handle(asked)
    with_garbage = service.handle([asked[0], GARBAGE[1], asked[2], asked[3], GARBAGE[0]])
    assert [response.status for response in with_garbage] == [200, 415, 200, 200, 400]
    for index in (0, 2, 3):
        agreement = np.asarray(opened(full[index])) == np.asarray(opened(with_garbage[index]))
        assert agreement.mean() >= 0.99


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RuntimeError("a bug"), 500, "internal"),
        (MemoryError(), 507, "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 507, "out-of-memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            507,
            "out-of-memory",
        ),
    ],
    ids=str,
)
def test_an_image_that_fails_alone_fails_only_itself(
    error: Exception, status: int, kind: str, artifact: Artifact, toy: Service
) -> None:
    faulty = Service(artifact, FaultyPredictor(artifact.spec, error), name="faulty", version="1", pool_size=2)
    asked = [request(IMAGES[0]), request(RED), request(IMAGES[3])]
    first, bad, last = faulty.handle(asked)
    problem = document(bad, status)
    assert problem["type"].endswith(kind)
    assert "a bug" not in bad.body.decode()  # what went wrong inside is for the log
    assert [first.body, last.body] == [response.body for response in toy.handle([asked[0], asked[2]])]


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), 507), (RuntimeError("a bug"), 500)])
@pytest.mark.parametrize(
    ("name", "is_hit"),
    [
        ("codec.decode_scaled", lambda data: data == png(IMAGES[0])),
        ("render", lambda prediction: prediction.mask_HW.shape == IMAGES[0].shape[:2]),
    ],
)
def test_a_fault_of_decoding_or_encoding_is_one_items_own(
    name: str, is_hit: Any, error: Exception, status: int, toy: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decode_scaled if name == "codec.decode_scaled" else render

    def fails_once(first: Any, *arguments: Any, **options: Any) -> Any:
        if is_hit(first):
            raise error
        return real(first, *arguments, **options)

    monkeypatch.setattr(f"segserve.service.{name}", fails_once)
    responses = toy.handle([request(IMAGES[0]), request(IMAGES[1])])
    assert [response.status for response in responses] == [status, 200]


def test_an_answer_too_large_for_the_server_is_one_items_own(toy: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [request(IMAGES[3], render="overlay"), request(IMAGES[1], render="overlay")]
    smaller = toy.handle(asked)[1]
    monkeypatch.setattr("segserve.service.MAX_ANSWER_BYTES", len(smaller.body))
    too_large, good = toy.handle(asked)
    assert f"expected an answer of at most {len(smaller.body)} bytes, but" in document(too_large, 413)["detail"]
    assert good.body == smaller.body


def test_a_service_that_is_not_ready_says_when_to_come_back(artifact: Artifact) -> None:
    predictor = FaultyPredictor(artifact.spec, AssertionError("nothing is to be predicted"))
    stopping = Service(artifact, predictor, name="stopping", version="1", pool_size=1)
    responses = stopping.handle([request(RED), request(RED)], ready=False)
    for response in responses:
        assert document(response, 503)["type"].endswith("not-ready")
        assert int(response.headers["Retry-After"]) > 0


def test_a_passed_deadline_is_504_for_its_item_only(toy: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes, **options: Any) -> Decoded:
        time.sleep(0.02)
        return decode_scaled(data, **options)

    monkeypatch.setattr("segserve.service.codec.decode_scaled", slow)
    hasty, patient, eternal = toy.handle([request(RED, deadline_ms=deadline) for deadline in (1, 60_000, 86_400_000)])
    assert "expected the network to begin its last pass before the deadline" in document(hasty, 504)["detail"]
    assert (patient.status, eternal.status) == (200, 200)


def test_an_item_past_its_deadline_gets_no_forward_pass(artifact: Artifact) -> None:
    class Slow(ToyEngine):
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            time.sleep(0.2)
            return super().__call__(images_BCHW)

    engine = Slow()
    service = Service(artifact, SegmentationPredictor(artifact.spec, engine), name="slow", version="1", pool_size=1)
    asked = [request(IMAGES[2]), request(random_image(20, 100), deadline_ms=150)]  # two padded sizes, two passes
    assert [response.status for response in service.handle(asked)] == [200, 504]
    assert len(engine.shapes) == 1


def test_probabilities_that_cannot_be_sent_are_refused_before_any_work(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ToyEngine()
    service = Service(artifact, SegmentationPredictor(artifact.spec, engine), name="npz", version="1", pool_size=1)
    monkeypatch.setattr("segserve.service.MAX_ANSWER_BYTES", 7000)
    fitting, too_large = service.handle(
        [request(IMAGES[0], format="npz", precision=precision) for precision in ("uint8", "float16")]
    )
    assert fitting.status == 200
    assert (
        "probabilities of at most 7000 bytes, but 4 classes of this image are 9600"
        in (document(too_large, 413)["detail"])
    )
    assert len(engine.shapes) == 1


def test_png_answers_say_in_how_many_windows_the_image_was_seen(artifact: Artifact) -> None:
    sizing = {"resize": "never", "working_side": 64, "overlap": 32}
    spec = artifact.spec.model_copy(update={"preprocess": artifact.spec.preprocess.model_copy(update=sizing)})
    service = Service(artifact, SegmentationPredictor(spec, ToyEngine()), name="tiled", version="1", pool_size=1)
    whole, tiled, as_json = service.handle(
        [request(IMAGES[0]), request(IMAGES[3]), request(IMAGES[3], format="json", tta="flips")]
    )
    assert (whole.headers["X-Segserve-Windows"], tiled.headers["X-Segserve-Windows"]) == ("1", "6")
    assert document(as_json)["windows"] == 6


def test_nothing_asked_nothing_answered(toy: Service) -> None:
    assert toy.handle([]) == []


def named_service(artifact: Artifact) -> Service:
    """A service whose metrics nobody else counts."""
    predictor = SegmentationPredictor(artifact.spec, ToyEngine())
    return Service(artifact, predictor, name=next(names), version="3.1", pool_size=2)


def test_requests_and_rejections_are_counted(artifact: Artifact) -> None:
    service = named_service(artifact)
    name = service.model.name
    service.handle([request(RED), Request(headers={}, fields={"body": b"?"}), request(RED, tta="x"), request(RED)])
    service.handle([request(RED)], ready=False)
    outcomes = {o: sample("segserve_requests_total", model=name, outcome=o) for o in ("ok", "rejected", "failed")}
    reasons = ("unsupported-type", "bad-option", "not-ready", "undecodable")
    assert outcomes == {"ok": 2, "rejected": 2, "failed": 1}
    assert [sample("segserve_rejected_total", model=name, reason=reason) for reason in reasons] == [1, 1, 1, 0]
    assert sample("segserve_request_seconds_count", model=name) == 5
    assert sample("segserve_batch_images_sum", model=name) == 5
    assert sample("segserve_batch_images_count", model=name) == 2


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_is_timed_in_seconds(stage: str, artifact: Artifact) -> None:
    service = named_service(artifact)
    service.handle([request(RED), request(RED)])
    labels = {"model": service.model.name, "stage": stage}
    assert sample("segserve_stage_seconds_count", **labels) == (2 if stage in ("decode", "encode") else 1)
    assert 0 < sample("segserve_stage_seconds_sum", **labels) < 5


def test_images_and_answers_are_measured(artifact: Artifact) -> None:
    service = named_service(artifact)
    name = service.model.name
    mask_HW = np.asarray(opened(service.handle([request(IMAGES[3]), request(RED, tta="x")])[0]))
    named = {"model": name, "version": service.model.version}
    pixels = [sample("segserve_class_pixels_total", **named, **{"class": entry.name}) for entry in CLASSES]
    assert pixels == np.bincount(mask_HW.ravel(), minlength=4).tolist()
    assert sample("segserve_image_megapixels_count", model=name) == 1
    assert sample("segserve_image_megapixels_sum", model=name) == pytest.approx(0.0065)
    assert sample("segserve_confidence_count", model=name) == 1
    assert 0.25 <= sample("segserve_confidence_sum", model=name) <= 1


def test_requests_in_flight_are_counted_while_they_are(artifact: Artifact) -> None:
    seen: list[float] = []

    class Watching(SegmentationPredictor):
        def attempt(self, queries: Sequence[Query], **options: Any) -> list[SegmentationPrediction | Exception]:
            seen.append(sample("segserve_in_flight", model="watched"))
            return super().attempt(queries, **options)

    watched = Service(artifact, Watching(artifact.spec, ToyEngine()), name="watched", version="1", pool_size=1)
    assert REGISTRY.get_sample_value("segserve_in_flight", {"model": "watched"}) == 0, "there before the first batch"
    watched.handle([request(RED), request(RED), request(RED)])
    assert seen == [3]
    assert sample("segserve_in_flight", model="watched") == 0


def test_an_image_that_ended_two_workers_is_refused_and_its_neighbours_are_not(
    artifact: Artifact, tmp_path: Path
) -> None:
    for crash in range(2):
        (tmp_path / f"crash-{crash}").write_bytes(hashlib.sha256(png(RED)).digest() + b"thread-1")
    predictor = SegmentationPredictor(artifact.spec, ToyEngine())
    with faulthandler_as_before():
        careful = Service(
            artifact, predictor, name="careful", version="1", pool_size=2, quarantine=Quarantine(tmp_path)
        )
    as_form = Request(headers={"content-type": "multipart/form-data"}, fields={"image": png(RED)})
    as_json = json_request({"image": base64.b64encode(png(RED)).decode()})
    poison, good, same, again = careful.handle([request(RED), request(IMAGES[0]), as_form, as_json])
    assert document(poison, 422)["type"] == "urn:segserve:problem:quarantined"
    assert (good.status, same.status, again.status) == (200, 422, 422)
    assert sample("segserve_rejected_total", model="careful", reason="quarantined") == 3


@contextmanager
def faulthandler_as_before() -> Iterator[None]:
    yield
    assert sys.__stderr__ is not None
    faulthandler.enable(sys.__stderr__)


def test_a_lost_gpu_is_503_for_all_from_then_on(artifact: Artifact) -> None:
    """No machine has a hundredth GPU, so that whatever is asked of it really fails."""
    engine = ToyEngine()
    losing = Service(artifact, SegmentationPredictor(artifact.spec, engine), name="losing", version="1", pool_size=1)
    assert losing.handle([request(RED)])[0].status == 200
    engine.device = torch.device("cuda", 99)
    answers = losing.handle([request(RED), request(IMAGES[0]), request(RED, tta="twice")])
    assert [answer.status for answer in answers] == [503, 503, 400]
    assert "this worker has lost its GPU" in document(answers[0], 503)["detail"]
    assert int(answers[1].headers["Retry-After"]) > 0
    engine.device = torch.device("cpu")
    assert losing.is_lost
    assert losing.handle([request(RED)])[0].status == 503


def stamped(seconds: float, **options: object) -> Request:
    """As from a gateway, so many seconds ago."""
    asked = request(IMAGES[0], **options)
    return Request(headers={**asked.headers, "x-request-start": f"t={time.time() - seconds:.3f}"}, fields=asked.fields)


def test_a_brownout_leaves_out_tta_and_says_so(artifact: Artifact) -> None:
    engine = ToyEngine()
    predictor = SegmentationPredictor(artifact.spec, engine)
    dim = Service(artifact, predictor, name="dim", version="1", pool_size=1, brownout_seconds=0.5)
    full, plain = dim.handle([stamped(0.1, tta="d4", format="json"), stamped(0.1)])
    assert document(full)["tta"] == {"plan": "d4", "views": 8, "aggregate": "mean"}
    engine.shapes.clear()
    late, neighbour, plain = dim.handle([stamped(0.6, tta="d4", format="json"), stamped(0, tta="hflip"), stamped(0)])
    assert document(late)["tta"] == {"plan": "none", "views": 1, "aggregate": "mean"}
    assert sum(shape[0] for shape in engine.shapes) == 3, "one view each"
    assert [answer.headers.get("X-Segserve-Degraded") for answer in (full, late, neighbour, plain)] == [
        *(None, "tta", "tta", None)
    ]
    assert sample("segserve_degraded_total", model="dim", what="tta") == 2


@pytest.mark.parametrize("stamp", ["", "t=", "t=1", "t=-1.000", "t=nan", "yesterday", f"t={'9' * 20}.000"])
def test_a_stamp_that_is_none_degrades_nothing(stamp: str, artifact: Artifact) -> None:
    predictor = SegmentationPredictor(artifact.spec, ToyEngine())
    dim = Service(artifact, predictor, name="dim", version="1", pool_size=1, brownout_seconds=0.5)
    asked = request(IMAGES[4], tta="d4")
    headers = {**asked.headers, "x-request-start": stamp}
    (answer,) = dim.handle([Request(headers=headers, fields=asked.fields)])
    assert (answer.status, answer.headers.get("X-Segserve-Degraded")) == (200, None)


def test_without_a_brownout_no_wait_is_too_long(toy: Service) -> None:
    (answer,) = toy.handle([stamped(3600, tta="d4", format="json")])
    assert document(answer)["tta"]["views"] == 8


def test_the_model_is_announced(artifact: Artifact) -> None:
    labels = {"version": "3.1", "digest": artifact.digest, "engine": "toy", "device": "cpu"}
    assert sample("segserve_model_info", model=named_service(artifact).model.name, **labels) == 1
