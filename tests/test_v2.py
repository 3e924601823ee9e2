"""The v2 protocol against NVIDIA's client, which writes the requests and reads the answers here without a server."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from segserve import codec, png, v2
from segserve.api import ModelInfo, Request
from segserve.prediction import ClassificationPrediction, SegmentationPrediction
from segserve.problem import Problem, ProblemKind
from segserve.spec import ModelSpec
from segserve.v2_answer import write_inference
from tests.conftest import random_image, tiny_spec

MODEL = ModelInfo(name="cells", version="1.0", digest="abc")
SEGMENTATION, CLASSIFICATION = tiny_spec("segmentation"), tiny_spec("classification")
BATCH = np.stack([random_image(4, 5, seed) for seed in range(3)])
HEADER = "inference-header-content-length"

images = arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3, st.just(3)))


def request_for(
    images_BHWC: NDArray[np.uint8] = BATCH,
    *,
    binary: bool = True,
    outputs: dict[str, bool] | None = None,
    parameters: dict[str, Any] | None = None,
    request_id: str = "",
) -> Request:
    """What tritonclient sends; `outputs`: names, and whether as binary data."""
    tensor = triton.InferInput("image", list(images_BHWC.shape), "UINT8")
    tensor.set_data_from_numpy(images_BHWC, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=is_binary) for name, is_binary in (outputs or {}).items()]
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor], outputs=wanted or None, parameters=parameters, request_id=request_id
    )
    return Request(headers={} if length is None else {HEADER: str(length)}, fields={"body": body})


def document(**changes: Any) -> dict[str, Any]:
    """A v2 request for one image of 1x2 pixels; None takes a key away."""
    tensor = {"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [0, 1, 2, 253, 254, 255]}
    inputs = {key: changes.pop(key) for key in [*tensor, "parameters_of_input"] if key in changes}
    tensor |= {key.removesuffix("_of_input"): value for key, value in inputs.items()}
    whole = {"inputs": [{key: value for key, value in tensor.items() if value is not None}], **changes}
    return {key: value for key, value in whole.items() if value is not None}


def as_json(**changes: Any) -> Request:
    return Request(headers={}, fields={"body": json.dumps(document(**changes)).encode()})


def read(request: Request, spec: ModelSpec = SEGMENTATION, *, max_answer_bytes: int = 10_000) -> v2.Inference:
    assert v2.asks_v2(request)
    return v2.read_inference(request, spec=spec, max_answer_bytes=max_answer_bytes)


def answer(
    inference: v2.Inference, predictions: list[Any], spec: ModelSpec
) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """The JSON as tritonclient understands it, and its way to a tensor."""
    content_type, headers, body = write_inference(inference, predictions, spec=spec, model=MODEL)
    length = headers.get("Inference-Header-Content-Length")
    assert content_type == ("application/json" if length is None else "application/octet-stream")
    result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    return result.get_response(), result.as_numpy


def segmentation(images_BHWC: NDArray[np.uint8], *, precision: str = "uint8") -> list[SegmentationPrediction]:
    """Predictions that differ from pixel to pixel and from image to image."""
    rng = np.random.default_rng(0)
    size = images_BHWC.shape[1:3]
    dtype = np.dtype(precision)
    return [
        SegmentationPrediction(
            mask_HW=rng.integers(0, 4, size, dtype=np.uint8),
            confidence_HW=rng.integers(0, 256, size, dtype=np.uint8),
            uncertainty_HW={"disagreement": rng.integers(0, 256, size, dtype=np.uint8)},
            probs_KHW=(rng.random((4, *size)) * (255 if dtype == np.uint8 else 1)).astype(dtype),
            mean_entropy=rng.random(),
            mutual_information=rng.random(),
            view_agreement=rng.random(),
            windows=1,
        )
        for _ in images_BHWC
    ]


def labels(count: int) -> list[ClassificationPrediction]:
    probs_BK = np.random.default_rng(0).dirichlet(np.ones(4), count).astype(np.float32)
    return [
        ClassificationPrediction(probs_K=probs_K, mean_entropy=0.5, mutual_information=0.25, view_agreement=1.0)
        for probs_K in probs_BK
    ]


@given(images_BHWC=images, binary=st.booleans(), request_id=st.text(max_size=5))
def test_images_come_out_as_they_went_in(images_BHWC: NDArray[np.uint8], binary: bool, request_id: str) -> None:
    inference = read(request_for(images_BHWC, binary=binary, request_id=request_id))
    np.testing.assert_array_equal(inference.images_BHWC, images_BHWC)
    assert inference.id == (request_id or None)


@given(images_BHWC=images)
def test_nested_lists_are_the_same_as_flat_ones(images_BHWC: NDArray[np.uint8]) -> None:
    inference = read(as_json(shape=images_BHWC.shape, data=images_BHWC.tolist()))
    np.testing.assert_array_equal(inference.images_BHWC, images_BHWC)


def test_one_image_needs_no_batch_dimension() -> None:
    np.testing.assert_array_equal(read(request_for(BATCH[0])).images_BHWC, BATCH[:1])


MAPS = {"mask": "mask_HW", "confidence": "confidence_HW", "probabilities": "probs_KHW"}
SCORES = ["mean_entropy", "mutual_information", "view_agreement"]


@given(
    images_BHWC=images,
    outputs=st.dictionaries(st.sampled_from([*MAPS, "uncertainty", *SCORES]), st.booleans(), min_size=1),
)
def test_segmentation_outputs_are_the_predictions(images_BHWC: NDArray[np.uint8], outputs: dict[str, bool]) -> None:
    inference = read(request_for(images_BHWC, outputs=outputs, parameters={"measure": "disagreement"}))
    predictions = segmentation(images_BHWC)
    _, tensor = answer(inference, predictions, SEGMENTATION)
    for name in outputs:
        if name == "uncertainty":
            expected = [prediction.uncertainty_HW["disagreement"] for prediction in predictions]
        else:
            expected = [getattr(prediction, MAPS.get(name, name)) for prediction in predictions]
        np.testing.assert_array_equal(tensor(name), np.array(expected, dtype=tensor(name).dtype))
        assert tensor(name).dtype == (np.float32 if name in SCORES else np.uint8)


def test_half_precision_probabilities() -> None:
    inference = read(request_for(outputs={"probabilities": True}, parameters={"precision": "float16"}))
    predictions = segmentation(BATCH, precision="float16")
    _, tensor = answer(inference, predictions, SEGMENTATION)
    np.testing.assert_array_equal(tensor("probabilities"), [prediction.probs_KHW for prediction in predictions])
    assert tensor("probabilities").dtype == np.float16


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_labels_and_probabilities(binary: bool, count: int) -> None:
    outputs = {"probabilities": binary, "label": binary}
    inference = read(request_for(np.zeros((count, 2, 2, 3), np.uint8), outputs=outputs), CLASSIFICATION)
    predictions = labels(count)
    document, tensor = answer(inference, predictions, CLASSIFICATION)
    np.testing.assert_array_equal(tensor("probabilities"), [prediction.probs_K for prediction in predictions])
    likeliest = [CLASSIFICATION.class_names[prediction.probs_K.argmax()] for prediction in predictions]
    assert [text.decode() if binary else text for text in tensor("label")] == likeliest
    assert {output["name"]: output["datatype"] for output in document["outputs"]} == {
        "probabilities": "FP32",
        "label": "BYTES",
    }


def test_names_and_versions_are_told() -> None:
    inference = read(as_json(id="42"))
    document, _ = answer(inference, segmentation(inference.images_BHWC), SEGMENTATION)
    assert {**document, "outputs": ...} == {
        "model_name": "cells",
        "model_version": "1.0",
        "id": "42",
        "parameters": {"digest": "abc", "classes": "sky,road,tree,car"},
        "outputs": ...,
    }


def test_bytes_of_the_binary_extension_written_by_hand() -> None:
    head = (
        b'{"inputs":[{"name":"image","shape":[1,2,1,3],"datatype":"UINT8","parameters":{"binary_data_size":6}}],'
        b'"outputs":[{"name":"mask","parameters":{"binary_data":true}},{"name":"confidence"}]}'
    )
    asked = Request(headers={HEADER: str(len(head))}, fields={"body": head + bytes([1, 2, 3, 4, 5, 6])})
    inference = read(asked)
    assert inference.images_BHWC.tolist() == [[[[1, 2, 3]], [[4, 5, 6]]]]
    (prediction,) = segmentation(inference.images_BHWC)
    content_type, headers, body = write_inference(inference, [prediction], spec=SEGMENTATION, model=MODEL)
    length = int(headers["Inference-Header-Content-Length"])
    assert content_type == "application/octet-stream"
    assert json.loads(body[:length])["outputs"] == [
        {"name": "mask", "datatype": "UINT8", "shape": [1, 2, 1], "parameters": {"binary_data_size": 2}},
        {
            "name": "confidence",
            "datatype": "UINT8",
            "shape": [1, 2, 1],
            "data": prediction.confidence_HW.ravel().tolist(),
        },
    ]
    assert body[length:] == prediction.mask_HW.tobytes()


def test_outputs_say_for_themselves_whether_they_are_binary() -> None:
    inference = read(
        as_json(
            parameters={"binary_data_output": True},
            outputs=[{"name": "mask"}, {"name": "confidence", "parameters": {"binary_data": False}}],
        )
    )
    assert [(output.name, output.binary) for output in inference.outputs] == [("mask", True), ("confidence", False)]


@pytest.mark.parametrize(("spec", "names"), [(SEGMENTATION, ["mask"]), (CLASSIFICATION, ["probabilities", "label"])])
def test_what_comes_where_nothing_is_asked_for(spec: ModelSpec, names: list[str]) -> None:
    """As binary data for tritonclient, which asks for it then; else in the JSON."""
    assert [(output.name, output.binary) for output in read(request_for(), spec).outputs] == [(n, True) for n in names]
    assert [(output.name, output.binary) for output in read(as_json(), spec).outputs] == [(n, False) for n in names]


def test_only_the_classes_asked_for() -> None:
    inference = read(request_for(parameters={"classes": "car, road"}))
    predictions = segmentation(BATCH)
    _, tensor = answer(inference, predictions, SEGMENTATION)
    mask_BHW = np.stack([prediction.mask_HW for prediction in predictions])
    np.testing.assert_array_equal(tensor("mask"), np.where(np.isin(mask_BHW, [1, 3]), mask_BHW, png.NO_CLASS))


def test_small_regions_go_as_in_other_forms() -> None:
    inference = read(request_for(BATCH[:1], parameters={"min_area": 2}))
    (prediction,) = segmentation(BATCH[:1])
    mask_HW = np.zeros_like(prediction.mask_HW)
    mask_HW[1, 1] = 2
    _, tensor = answer(inference, [replace(prediction, mask_HW=mask_HW)], SEGMENTATION)
    assert not tensor("mask").any()


def test_options_of_the_request_reach_every_query() -> None:
    asked = {"tta": "d4", "aggregate": "vote", "measure": "disagreement", "precision": "float16"}
    inference = read(request_for(outputs={"uncertainty": True, "probabilities": True}, parameters=asked))
    for query, image_HWC in zip(inference.queries(deadline=1.5), BATCH, strict=True):
        np.testing.assert_array_equal(query.image_HWC, image_HWC)
        assert (query.tta, query.aggregate, query.deadline) == ("d4", "vote", 1.5)
        assert (query.maps, query.probabilities) == (("disagreement",), "float16")


def test_nothing_is_computed_that_is_not_asked_for() -> None:
    assert {(query.maps, query.probabilities) for query in read(request_for()).queries()} == {((), None)}


def test_options_in_header_and_query_give_way_to_parameters() -> None:
    plain = request_for(parameters={"tta": "d4"})
    headers = {**plain.headers, "x-segserve-tta": "hflip", "x-segserve-deadline-ms": "7", "x-segserve-request-id": "1"}
    fields = {**plain.fields, "tta": b"flips", "aggregate": b"vote"}
    options = read(Request(headers=headers, fields=fields)).options
    assert (options.tta, options.deadline_ms, options.aggregate) == ("d4", 7, "vote")


@pytest.mark.parametrize(
    ("is_v2", "headers", "body"),
    [
        (True, {}, b'{"inputs": []}'),
        (True, {"content-type": "application/x-www-form-urlencoded"}, b' \n{"inputs": []}'),
        (True, {"content-type": "application/json; charset=utf-8"}, b'{"id": "1", "inputs" :[]}'),
        (True, {"content-type": "application/octet-stream", HEADER: "9"}, b""),
        (True, {}, b"{"),
        (False, {"content-type": "application/json"}, b'{"image": "aW1hZ2U=", "tta": "d4"}'),
        (False, {"content-type": "application/json"}, b'{"image": "aW1hZ2U=", "name": "\\"inputs\\": 1"}'),
        (False, {"content-type": "application/json"}, b'{"image": "aW1hZ2U=", "name": "inputs"}'),
        (False, {}, b"\x89PNG"),
        (False, {}, b""),
    ],
)
def test_v2_requests_are_told_from_plain_ones(is_v2: bool, headers: dict[str, str], body: bytes) -> None:
    assert v2.asks_v2(Request(headers=headers, fields={"body": body})) == is_v2


def with_header(length: str, **changes: Any) -> Request:
    return Request(headers={HEADER: length}, fields=as_json(**changes).fields)


REFUSED: list[tuple[Request, ProblemKind, str]] = [
    (Request(headers={}, fields={"body": b'{"inputs": ['}), "bad-body", "cannot be parsed: Expecting value"),
    (Request(headers={}, fields={"body": b"{" * 100_000}), "bad-body", "cannot be parsed"),
    (Request(headers={}, fields={"body": b'{"a": ' * 9_000}), "bad-body", "cannot be parsed"),
    (as_json(input=1), "bad-body", "'input' is not a known key"),
    (Request(headers={}, fields={"body": b"{}"}), "bad-body", "expected a value for 'inputs'"),
    (as_json(inputs=[]), "bad-body", "expected one input named 'image', but got none"),
    (as_json(inputs=[document()["inputs"][0]] * 2), "bad-body", "but got 'image', 'image': send the images as one"),
    (as_json(name="x"), "bad-body", "expected one input named 'image', but got 'x'"),
    (as_json(datatype="FP32"), "bad-body", "expected datatype 'UINT8', but got 'FP32': send values from 0 to 255"),
    (as_json(shape=[1, 3, 1, 2]), "bad-body", "but got [1, 3, 1, 2]: put red, green and blue last"),
    (as_json(shape=[1, 1, 1, 2, 3]), "bad-body", "expected the shape [images, height, width, 3]"),
    (as_json(shape=[1, 0, 2, 3]), "bad-body", "but got [1, 0, 2, 3]"),
    (as_json(shape=[1, -1, -2, 3]), "bad-body", "but got [1, -1, -2, 3]"),
    (as_json(shape=[]), "bad-body", "but got []"),
    (as_json(shape=[1, 1, 2.5, 3]), "bad-body", "expected 'inputs.0.shape.2' to be a valid integer"),
    (as_json(shape=[1, 1, 3, 3]), "bad-body", "expected 9 values for the shape [1, 1, 3, 3], but got 6"),
    (as_json(data=[0, 1, 2, 3, 4, 256]), "bad-body", "expected 'data' to be whole numbers from 0 to 255"),
    (as_json(data=[0, 1, 2, 3, 4, -1]), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data=[0, 1, 2, 3, 4, 0.5]), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data=["0"] * 6), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data="012345"), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data=6), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data=None), "bad-body", "expected 'data' to be whole numbers"),
    (as_json(data=[[0, 1, 2], [3, 4, 5]]), "bad-body", "nested as the shape [1, 1, 2, 3] says"),
    (as_json(data=[[[[0, 1, 2], [3, 4]]]]), "bad-body", "nested as the shape [1, 1, 2, 3] says"),
    (as_json(data=[[[[0, 1, 2], [3, 4, [5]]]]]), "bad-body", "nested as the shape [1, 1, 2, 3] says"),
    (with_header("many"), "bad-body", "expected Inference-Header-Content-Length to be the JSON's bytes, 1 to "),
    (with_header("0"), "bad-body", "here, but got '0': correct it"),
    (with_header("9999"), "bad-body", "here, but got '9999': correct it"),
    (with_header("12"), "bad-body", "cannot be parsed"),
    (as_json(data=None, parameters_of_input={"binary_data_size": 6}), "bad-body", "after the JSON, 0, but got 6"),
    (as_json(parameters_of_input={"binary_data_size": 0}), "bad-body", "expected either 'data' or 'binary_data_size'"),
    (
        as_json(parameters_of_input={"shared_memory_region": "x"}),
        "bad-body",
        "shared_memory_region' is not a known key",
    ),
    (as_json(parameters={"binary_data_output": 1}), "bad-option", "expected 'binary_data_output' to be true or false"),
    (as_json(parameters={"render": "overlay"}), "bad-option", "to be among tta, aggregate, measure, classes, min_area"),
    (as_json(parameters={"priority": 1}), "bad-option", "but got priority: remove what is not"),
    (as_json(parameters={"tta": "twice"}), "bad-option", "expected 'tta' to be 'none'"),
    (as_json(parameters={"classes": "sky,lake"}), "bad-option", "to be among sky, road, tree, car, but got lake"),
    (as_json(outputs=[{"name": "label"}]), "bad-body", "expected outputs to be among mask, confidence, uncertainty"),
    (as_json(outputs=[{"name": "mask"}] * 2), "bad-body", "each once, but got mask, mask"),
    (as_json(outputs=[{"name": "mask", "parameters": {"classification": 2}}]), "bad-body", "classification' is not a"),
    (
        as_json(outputs=[{"name": "probabilities"}], parameters={"precision": "float16"}),
        "bad-option",
        "expected 'binary_data' to be true for probabilities of precision=float16, as JSON has no such numbers",
    ),
    (
        Request(headers={"content-encoding": "gzip", HEADER: "9"}, fields={"body": b"\x1f\x8b"}),
        "unsupported-type",
        "expected a body as it is, but got Content-Encoding 'gzip'",
    ),
    (as_json(shape=[65, 1, 1, 3]), "too-large", "expected at most 64 images, but got 65: send several requests"),
    (as_json(shape=[1, 10**9, 10**9, 3]), "too-large", "expected at most 100000000 pixels in all"),
]


@pytest.mark.parametrize(("request_", "kind", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_is_wrong_is_said(request_: Request, kind: ProblemKind, words: str) -> None:
    with pytest.raises(Problem) as caught:
        read(request_)
    assert caught.value.kind == kind
    assert words in caught.value.detail


def test_a_classifier_refuses_what_only_masks_have() -> None:
    with pytest.raises(
        Problem, match="expected parameters of v2 requests to be among tta, aggregate, deadline_ms, but"
    ):
        read(as_json(parameters={"classes": "sky"}), CLASSIFICATION)
    with pytest.raises(Problem, match="expected outputs to be among probabilities, label, mean_entropy"):
        read(as_json(outputs=[{"name": "mask"}]), CLASSIFICATION)


@pytest.mark.parametrize(
    ("outputs", "binary", "precision", "bytes_a_pixel"),
    [
        (["mask"], True, "uint8", 1),
        (["mask", "confidence", "mean_entropy"], True, "uint8", 2),
        (["mask"], False, "uint8", 2),
        (["probabilities"], True, "uint8", 4),
        (["probabilities", "mask"], True, "float16", 9),
    ],
)
def test_an_answer_that_cannot_fit_is_refused_beforehand(
    outputs: list[str], binary: bool, precision: str, bytes_a_pixel: int
) -> None:
    asked = request_for(outputs=dict.fromkeys(outputs, binary), parameters={"precision": precision})
    least = BATCH[..., 0].size * bytes_a_pixel
    read(asked, max_answer_bytes=least)
    with pytest.raises(Problem, match=f"of 3 images have at least {least}: ask for fewer outputs"):
        read(asked, max_answer_bytes=least - 1)


def test_pixels_are_counted_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_PIXELS", 60)
    assert len(read(request_for()).images_BHWC) == 3
    monkeypatch.setattr(codec, "MAX_PIXELS", 59)
    with pytest.raises(Problem, match="expected at most 59 pixels in all, but got the shape"):
        read(request_for())


def test_json_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    as_binary, in_json = request_for(), request_for(binary=False)
    length = len(in_json.fields["body"])
    monkeypatch.setattr(v2, "MAX_JSON_BYTES", length - 1)
    with pytest.raises(Problem, match=f"at most {length - 1} bytes of JSON, but got {length}: send the images as bin"):
        read(in_json)
    np.testing.assert_array_equal(read(as_binary).images_BHWC, BATCH)


def test_keys_are_bounded_and_of_a_list_the_first_fault_is_told() -> None:
    """pydantic's faults would take a kilobyte each."""
    with pytest.raises(Problem, match="expected at most 10000 keys in JSON, but got 30006"):
        read(as_json(parameters=dict.fromkeys(map(str, range(30_000)), 0)))
    for changes in ({"inputs": [1] * 5000}, {"outputs": [1] * 5000}, {"shape": ["x"] * 5000}):
        with pytest.raises(Problem) as caught:
            read(as_json(**changes))
        assert caught.value.detail.count("expected") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
keys = ["name", "shape", "datatype", "data", "parameters_of_input", "parameters", "outputs", "id", "inputs"]


@given(changes=st.dictionaries(st.sampled_from(keys), json_values, max_size=3), header=st.none() | st.integers(-2, 300))
def test_any_json_is_read_or_refused(changes: dict[str, Any], header: int | None) -> None:
    asked = as_json(**changes) if header is None else with_header(str(header), **changes)
    try:
        inference = v2.read_inference(asked, spec=SEGMENTATION, max_answer_bytes=10_000)
    except Problem as problem:
        assert problem.status in (400, 413)
    else:
        assert inference.images_BHWC.shape[1:] in ((1, 2, 3), (2, 1, 3))
