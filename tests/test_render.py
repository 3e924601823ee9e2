"""Which parts an answer has, and how they are put together."""

import email
import email.policy
import io
import json
from email.message import EmailMessage
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from python_multipart.multipart import MultipartParser

from segserve import api
from segserve.api import Options
from segserve.clock import StageClock
from segserve.forms import mixed
from segserve.forms.mixed import mix
from segserve.forms.part import Part
from segserve.png import overlay
from segserve.prediction import ClassificationPrediction
from segserve.problem import Problem
from segserve.render import Asked, render
from segserve.spec import ModelSpec
from tests.conftest import random_image
from tests.masks import CASES, MODEL, answer, blobs, prediction_of

MASK_HW = blobs(53, 37)
PREDICTION = prediction_of(MASK_HW)
LABELS = ClassificationPrediction(
    probs_K=np.array([0.125, 0.5, 0.25, 0.125], dtype=np.float32),
    mean_entropy=0.5,
    mutual_information=0.25,
    view_agreement=1.0,
)


def parts_of(content_type: str, body: bytes) -> list[EmailMessage]:
    """By Python's mail reader."""
    message = email.message_from_bytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    assert isinstance(message, EmailMessage)
    assert not message.defects
    assert message.get_content_type() == "multipart/mixed"
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


def streamed(content_type: str, body: bytes) -> list[bytes]:
    """By the parser that web frameworks use, byte after byte."""
    bodies: list[bytes] = []
    callbacks: dict[str, Any] = {
        "on_part_begin": lambda: bodies.append(b""),
        "on_part_data": lambda data, start, end: bodies.append(bodies.pop() + data[start:end]),
    }
    parser = MultipartParser(content_type.partition('boundary="')[2].rstrip('"'), callbacks)
    parser.write(body)
    parser.finalize()
    return bodies


def labels(spec: ModelSpec, **options: Any) -> tuple[str, bytes]:
    asked = Asked(image_HWC=random_image(5, 6), options=Options.model_validate(options))
    return render(LABELS, asked, spec=spec, model=MODEL, clock=StageClock())


def opened(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_mask_is_png_unless_asked_otherwise(spec: ModelSpec) -> None:
    content_type, body = answer(PREDICTION, spec)
    assert content_type == "image/png"
    assert (opened(body) == MASK_HW).all()


@pytest.mark.parametrize(
    ("form", "content_type"),
    [
        ("json", "application/json"),
        ("coco", "application/json"),
        ("hf", "application/json"),
        ("labelstudio", "application/json"),
        ("cvat", "application/xml"),
    ],
)
def test_one_form_is_sent_as_it_is(form: str, content_type: str, spec: ModelSpec) -> None:
    assert answer(PREDICTION, spec, format=form)[0] == content_type


@pytest.mark.parametrize("measure", ["entropy", "mutual-information", "disagreement"])
def test_the_uncertainty_shown_is_the_measure_asked_for(measure: Any, spec: ModelSpec) -> None:
    _, body = answer(PREDICTION, spec, render="uncertainty", measure=measure)
    assert (opened(body) == PREDICTION.uncertainty_HW[measure]).all()


def test_confidence_is_shown_as_it_is(spec: ModelSpec) -> None:
    assert (opened(answer(PREDICTION, spec, render="confidence")[1]) == PREDICTION.confidence_HW).all()


def test_the_overlay_shows_the_sieved_mask(spec: ModelSpec) -> None:
    image_HWC = random_image(53, 37)
    options = Options.model_validate({"render": "overlay", "min_area": 100})
    asked = Asked(image_HWC=image_HWC, options=options)
    _, body = render(PREDICTION, asked, spec=spec, model=MODEL, clock=StageClock())
    sieved_HW = opened(answer(PREDICTION, spec, min_area=100)[1])
    assert (sieved_HW != MASK_HW).any()
    assert (opened(body) == overlay(image_HWC, sieved_HW, spec.classes)).all()


def test_several_forms_and_renders_are_parts_in_the_order_asked(spec: ModelSpec) -> None:
    parts = parts_of(*answer(PREDICTION, spec, format="json,png,cvat,coco", render="overlay,index"))
    described = [
        (part.get_content_type(), part["Content-Disposition"].params["name"], part.get_filename()) for part in parts
    ]
    assert described == [
        ("application/json", "json", "answer.json"),
        ("image/png", "overlay", "overlay.png"),
        ("image/png", "index", "index.png"),
        ("application/xml", "cvat", "annotations.xml"),
        ("application/json", "coco", "coco.json"),
    ]


def test_several_renders_of_one_form_are_parts(spec: ModelSpec) -> None:
    _, confidence = streamed(*answer(PREDICTION, spec, render="index,confidence"))
    assert (opened(confidence) == PREDICTION.confidence_HW).all()


@pytest.mark.parametrize("name", ["odd", "1 x 1", "noise", "1 x 5000"])
def test_parts_are_byte_for_byte_what_the_forms_are_alone(name: str, spec: ModelSpec) -> None:
    prediction = prediction_of(CASES[name], probs_KHW=np.zeros((4, *CASES[name].shape), dtype=np.uint8))
    forms = ["png", "coco", "cvat", "labelstudio", "hf", "npz"]
    alone = [answer(prediction, spec, format=form)[1] for form in forms]
    together = answer(prediction, spec, format=",".join(forms))
    assert [part.get_payload(decode=True) for part in parts_of(*together)] == alone
    assert streamed(*together) == alone


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n--", b"--", b"\r", b"\n\n", bytes(range(256)), b"--b--\r\n\r\n"])
def test_any_bytes_survive_the_mixing(body: bytes) -> None:
    parts = [Part(name=name, filename=name, content_type="application/x-any", body=body) for name in "ab"]
    assert [part.get_payload(decode=True) for part in parts_of(*mix(parts))] == [body, body]
    assert streamed(*mix(parts)) == [body, body]


def test_the_boundary_is_in_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["aa", "bb", "cc"])
    monkeypatch.setattr(mixed.secrets, "token_hex", lambda _: next(tokens))
    parts = [Part(name="x", filename="x", content_type="text/plain", body=body) for body in (b"--aa", b"bb")]
    assert mix(parts)[0] == 'multipart/mixed; boundary="cc"'


def test_timings_hold_the_encoding(spec: ModelSpec) -> None:
    assert json.loads(answer(PREDICTION, spec, format="json")[1])["timings_ms"].keys() == {"encode"}
    assert json.loads(labels(spec, format="json")[1])["timings_ms"].keys() == {"encode"}


def test_json_is_what_the_api_promises(spec: ModelSpec) -> None:
    for masks in ("rle", "polygons", "png", "none"):
        _, body = answer(PREDICTION, spec, format="json", masks=masks, objects=True)
        told = api.SegmentationAnswer.model_validate_json(body)
        assert (told.windows, told.uncertainty.mutual_information) == (3, 0.125)


@pytest.mark.parametrize("asked", [{}, {"format": "png"}, {"format": "json"}, {"format": "png,json"}])
def test_labels_are_json(asked: dict[str, str], labels_spec: ModelSpec) -> None:
    content_type, body = labels(labels_spec, top_k=2, **asked)
    told = api.LabelsAnswer.model_validate_json(body)
    assert content_type == "application/json"
    assert [(label.name, label.probability) for label in told.labels] == [("road", 0.5), ("tree", 0.25)]


def test_labels_as_hugging_face_gives_them(labels_spec: ModelSpec) -> None:
    assert json.loads(labels(labels_spec, format="hf", top_k=2)[1]) == [
        {"label": "road", "score": 0.5},
        {"label": "tree", "score": 0.25},
    ]


def test_labels_in_both_forms(labels_spec: ModelSpec) -> None:
    parts = parts_of(*labels(labels_spec, format="hf,json"))
    assert [part["Content-Disposition"].params["name"] for part in parts] == ["hf", "json"]


@pytest.mark.parametrize("form", ["coco", "cvat", "labelstudio", "npz"])
def test_labels_have_no_form_that_holds_masks(form: str, labels_spec: ModelSpec) -> None:
    sentence = f"expected 'format' to be json or hf for a model that gives labels, but got {form}: the other forms hold"
    with pytest.raises(Problem, match=sentence) as raised:
        labels(labels_spec, format=form)
    assert raised.value.status == 400
