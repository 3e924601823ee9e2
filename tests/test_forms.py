"""Every form of the answer, decoded by somebody else's code, is the same index mask.

Label Studio's and CVAT's forms are decoded in tests/judges, by tools with environments of their own.
"""

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco
from pycocotools.coco import COCO
from rasterio.features import rasterize

from segserve.codec import decode_image
from segserve.forms import labelstudio
from segserve.png import NO_CLASS
from segserve.predictor import Query, SegmentationPredictor
from segserve.problem import Problem
from segserve.spec import ModelSpec
from tests.conftest import ToyEngine, expected_probs, random_image
from tests.masks import CASES, answer, blobs, noise, prediction_of

Mask = NDArray[np.uint8]
Size = tuple[int, int]
Regions = list[tuple[int, NDArray[np.bool_]]]
"""Class ids and where they are."""


def put_together(regions: Regions, size: Size) -> Mask:
    """The index mask; fails where two regions overlap."""
    mask_HW = np.full(size, NO_CLASS, dtype=np.uint8)
    for class_id, inside_HW in regions:
        assert inside_HW.shape == size
        assert (mask_HW[inside_HW] == NO_CLASS).all()
        mask_HW[inside_HW] = class_id
    return mask_HW


def decode_coco(rle: dict[str, Any]) -> NDArray[np.bool_]:
    return np.asarray(coco.decode(rle), dtype=np.bool_)


def decode_png(data: str) -> Mask:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


def draw(shape: dict[str, Any], size: Size) -> NDArray[np.bool_]:
    assert shapely.geometry.shape(shape).is_valid
    return np.asarray(rasterize([shape], size, dtype=np.uint8), dtype=np.bool_)


def from_index(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    image = Image.open(io.BytesIO(body))
    assert image.mode == "P"
    return np.asarray(image)


def from_json_rle(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    return put_together([(one["id"], decode_coco(one["mask"])) for one in json.loads(body)["classes"]], size)


def from_json_objects(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    objects = json.loads(body)["objects"]
    return put_together([(one["class_id"], decode_coco(one["mask"])) for one in objects], size)


def from_json_polygons(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    return put_together([(one["id"], draw(one["mask"], size)) for one in json.loads(body)["classes"]], size)


def from_object_polygons(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    return put_together([(one["class_id"], draw(one["mask"], size)) for one in json.loads(body)["objects"]], size)


def from_json_png(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    return decode_png(json.loads(body)["mask"]["data"])


def from_coco(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    """Through pycocotools' own loader of results, and its own rasteriser of polygons."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": "image", "height": size[0], "width": size[1]}],
        "categories": [{"id": entry.id, "name": entry.name} for entry in spec.classes],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(json.loads(body))
    return put_together([(one["category_id"], results.annToMask(one) == 1) for one in results.anns.values()], size)


def from_hf(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    ids = {entry.name: entry.id for entry in spec.classes}
    return put_together([(ids[one["label"]], decode_png(one["mask"]) == 255) for one in json.loads(body)], size)


def from_npz(body: bytes, size: Size, spec: ModelSpec) -> Mask:
    return np.asarray(np.load(io.BytesIO(body), allow_pickle=False)["mask"])


FORMS: dict[str, tuple[dict[str, Any], Callable[[bytes, Size, ModelSpec], Mask]]] = {
    "png": ({"format": "png"}, from_index),
    "json rle": ({"format": "json"}, from_json_rle),
    "json polygons": ({"format": "json", "masks": "polygons"}, from_json_polygons),
    "json png": ({"format": "json", "masks": "png"}, from_json_png),
    "json objects": ({"format": "json", "objects": True}, from_json_objects),
    "json object polygons": ({"format": "json", "objects": True, "masks": "polygons"}, from_object_polygons),
    "json split objects": ({"format": "json", "objects": True, "split": "watershed"}, from_json_objects),
    "coco": ({"format": "coco"}, from_coco),
    "coco polygons": ({"format": "coco", "masks": "polygons"}, from_coco),
    "coco objects": ({"format": "coco", "objects": True}, from_coco),
    "coco object polygons": ({"format": "coco", "objects": True, "masks": "polygons"}, from_coco),
    "hf": ({"format": "hf"}, from_hf),
    "npz": ({"format": "npz"}, from_npz),
}


def probabilities(mask_HW: Mask, dtype: str = "uint8") -> NDArray[Any]:
    values_KHW = np.random.default_rng(0).integers(0, 256, (4, *mask_HW.shape), dtype=np.uint8)
    return values_KHW if dtype == "uint8" else (values_KHW / 255).astype(np.float16)


def body(mask_HW: Mask, spec: ModelSpec, **options: Any) -> bytes:
    return answer(prediction_of(mask_HW, probs_KHW=probabilities(mask_HW)), spec, **options)[1]


def document(mask_HW: Mask, spec: ModelSpec, **options: Any) -> Any:
    return json.loads(body(mask_HW, spec, **options))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_the_decoded_mask_is_the_mask(form: str, name: str, spec: ModelSpec) -> None:
    options, decode = FORMS[form]
    mask_HW = CASES[name]
    decoded_HW = decode(body(mask_HW, spec, **options), mask_HW.shape, spec)
    assert (decoded_HW == mask_HW).all()


@pytest.mark.parametrize("form", FORMS)
def test_only_the_classes_asked_for_are_in_the_answer(form: str, spec: ModelSpec) -> None:
    options, decode = FORMS[form]
    mask_HW = CASES["odd"]
    decoded_HW = decode(body(mask_HW, spec, classes="car,road", **options), mask_HW.shape, spec)
    assert (decoded_HW == np.where(np.isin(mask_HW, [1, 3]), mask_HW, NO_CLASS)).all()


@pytest.mark.parametrize("form", FORMS)
def test_small_regions_are_gone_from_every_form(form: str, spec: ModelSpec) -> None:
    options, decode = FORMS[form]
    mask_HW = blobs(60, 80, smooth=3)
    sieved_HW = from_index(body(mask_HW, spec, min_area=20), mask_HW.shape, spec)
    assert (sieved_HW != mask_HW).any()
    decoded_HW = decode(body(mask_HW, spec, min_area=20, **options), mask_HW.shape, spec)
    if options.get("split"):  # what is cut off and below min_area is left out
        decoded_HW = np.where(decoded_HW == NO_CLASS, sieved_HW, decoded_HW)
    assert (decoded_HW == sieved_HW).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_held_in_any_way_gets_its_upright_mask_in_every_form(orientation: int, spec: ModelSpec) -> None:
    """From the file's bytes on; upright as Pillow understands it."""
    stored = Image.fromarray(np.kron(random_image(10, 16, seed=orientation), np.ones((4, 4, 1), dtype=np.uint8)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    stored.save(file, format="PNG", exif=exif)
    expected_HWC = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    expected_HW = expected_probs(expected_HWC, spec).argmax(axis=-1)
    query = Query(image_HWC=decode_image(file.getvalue()), probabilities="uint8")
    (prediction,) = SegmentationPredictor(spec, ToyEngine()).predict([query])
    for options, decode in FORMS.values():
        _, data = answer(prediction, spec, **options)
        assert (decode(data, expected_HW.shape, spec) == expected_HW).all(), options


LARGE = ["png", "json rle", "json polygons", "json png", "hf", "npz"]


@pytest.fixture(scope="module")
def large_HW() -> Mask:
    """45 megapixels."""
    return np.kron(blobs(100, 125), np.ones((60, 60), dtype=np.uint8))


@pytest.mark.parametrize("form", LARGE)
def test_45_megapixels_come_through(form: str, large_HW: Mask, spec: ModelSpec) -> None:
    options, decode = FORMS[form]
    probs_KHW = np.zeros((4, *large_HW.shape), dtype=np.uint8) if form == "npz" else None
    _, data = answer(prediction_of(large_HW, large_HW, probs_KHW), spec, **options)
    assert (decode(data, large_HW.shape, spec) == large_HW).all()


def test_no_class_asked_for_is_present(spec: ModelSpec) -> None:
    mask_HW = CASES["one class everywhere"]
    asked = {"classes": "car", "objects": True, "masks": "polygons", "split": "watershed"}
    answered = document(mask_HW, spec, format="json", **asked)
    assert (answered["classes"], answered["objects"]) == ([], [])
    assert document(mask_HW, spec, format="coco", **asked) == document(mask_HW, spec, format="hf", **asked) == []
    assert document(mask_HW, spec, format="labelstudio", **asked)[0]["predictions"][0]["result"] == []
    assert list(ElementTree.fromstring(body(mask_HW, spec, format="cvat", **asked)).iter("mask")) == []


def test_json_counts_the_objects_of_each_class(spec: ModelSpec) -> None:
    answered = document(CASES["single pixels"], spec, format="json", objects=True, masks="none")
    assert [(entry["name"], entry["count"]) for entry in answered["classes"]] == [
        ("sky", 1),
        ("road", 1),
        ("tree", 2),
        ("car", 3),
    ]
    assert [one["id"] for one in answered["objects"]] == list(range(1, 8))
    assert answered["objects"][1].pop("confidence") > 0
    assert answered["objects"][1] == {
        "id": 2,
        "class_id": 1,
        "class_name": "road",
        "box": [0, 0, 1, 1],
        "area": 1,
        "centroid": [0.5, 0.5],
    }


def test_objects_are_left_out_unless_asked_for(spec: ModelSpec) -> None:
    answered = document(CASES["odd"], spec, format="json")
    assert "objects" not in answered
    assert "count" not in answered["classes"][0]


def test_confidence_is_the_mean_over_the_region(spec: ModelSpec) -> None:
    mask_HW = np.array([[0, 0, 1]], dtype=np.uint8)
    prediction = prediction_of(mask_HW, np.array([[255, 0, 51]], dtype=np.uint8))
    classes = json.loads(answer(prediction, spec, format="json")[1])["classes"]
    assert [entry["confidence"] for entry in classes] == [0.5, 0.2]


def test_polygons_are_whole_numbers_and_json_is_compact(spec: ModelSpec) -> None:
    text = body(np.array([[2]], dtype=np.uint8), spec, format="json", masks="polygons").decode()
    assert '"mask":{"type":"MultiPolygon","coordinates":[[[[0,0],[0,1],[1,1],[1,0],[0,0]]]]}' in text


@pytest.mark.parametrize("form", ["json", "coco", "cvat"])
def test_simplified_polygons_are_shorter(form: str, spec: ModelSpec) -> None:
    mask_HW = blobs(120, 150, smooth=8)
    asked = {"format": form, "masks": "polygons", "objects": True}
    assert len(body(mask_HW, spec, simplify=1.5, **asked)) < 0.7 * len(body(mask_HW, spec, **asked))


def test_coco_annotations_say_what_coco_wants(spec: ModelSpec) -> None:
    mask_HW = np.zeros((4, 6), dtype=np.uint8)
    mask_HW[1:3, 2:5] = 3
    _, car = document(mask_HW, spec, format="coco", name="000000000139.jpg", masks="polygons")
    assert car.pop("score") > 0
    assert car == {
        "id": 2,
        "image_id": 139,
        "category_id": 3,
        "bbox": [2, 1, 3, 2],
        "area": 6,
        "iscrowd": 0,
        "segmentation": [[2, 1, 2, 3, 5, 3, 5, 1]],
    }


@pytest.mark.parametrize(
    ("name", "image_id"),
    [("a.jpg", "a.jpg"), ("12", 12), ("../x", "../x"), ("/", "/"), ("9" * 99, "9" * 99), ("²", "²")],
)
def test_a_file_name_that_is_a_number_is_cocos_image_id(name: str, image_id: object, spec: ModelSpec) -> None:
    assert document(CASES["1 x 1"], spec, format="coco", name=name)[0]["image_id"] == image_id


def test_coco_regions_with_holes_stay_rle(spec: ModelSpec) -> None:
    objects = document(CASES["holes in holes"], spec, format="coco", masks="polygons", objects=True)
    whole = [one["bbox"] for one in objects if isinstance(one["segmentation"], list)]
    assert (len(objects), whole) == (8, [[7, 7, 1, 1]])


def test_coco_without_masks_is_boxes(spec: ModelSpec) -> None:
    assert "segmentation" not in document(CASES["odd"], spec, format="coco", masks="none")[0]


def test_cvat_names_survive_whatever_they_hold(spec: ModelSpec) -> None:
    name = "<\"&'>\u65e5\u672c\x00\x0b\ufffe\U0001f600.png"
    root = ElementTree.fromstring(body(CASES["1 x 1"], spec, format="cvat", name=name))
    image = root.find("image")
    assert image is not None
    assert image.attrib["name"] == "<\"&'>\u65e5\u672c\ufffd\ufffd\ufffd\U0001f600.png"


def test_cvat_has_polygons_where_there_is_no_hole(spec: ModelSpec) -> None:
    mask_HW = np.zeros((5, 9), dtype=np.uint8)
    mask_HW[1:3, 1:4] = 1
    mask_HW[3, 4] = 1  # touches it at a corner
    root = ElementTree.fromstring(body(mask_HW, spec, format="cvat", masks="polygons"))
    assert [shape.attrib["label"] for shape in root.iter("mask")] == ["sky"]
    polygons = list(root.iter("polygon"))
    assert [shape.attrib["points"] for shape in polygons] == ["1,1;1,3;4,3;4,1", "4,3;4,4;5,4;5,3"]
    assert {shape.attrib["group_id"] for shape in polygons} == {"2"}


def test_label_studio_masks_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch, spec: ModelSpec) -> None:
    monkeypatch.setattr(labelstudio, "MAX_RLE_BYTES", 2000)
    sentence = r"at most 2000 bytes .* but region 2 of 4 exceeds them: ask for a larger min_area, or for format=coco"
    with pytest.raises(Problem, match=sentence):
        body(noise(40, 61), spec, format="labelstudio")


@pytest.mark.parametrize("precision", ["uint8", "float16"])
def test_npz_holds_the_probabilities(precision: str, spec: ModelSpec) -> None:
    mask_HW = CASES["odd"]
    probs_KHW = probabilities(mask_HW, precision)
    content_type, data = answer(prediction_of(mask_HW, probs_KHW=probs_KHW), spec, format="npz", precision=precision)
    assert content_type == "application/x-npz"
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    assert arrays["probabilities"].dtype == precision
    assert (arrays["probabilities"] == probs_KHW).all()
    assert arrays["classes"].tolist() == list(spec.class_names)


def test_npz_of_some_classes_says_which(spec: ModelSpec) -> None:
    mask_HW = CASES["odd"]
    arrays = np.load(io.BytesIO(body(mask_HW, spec, format="npz", classes="car,road")), allow_pickle=False)
    assert (arrays["probabilities"] == probabilities(mask_HW)[[1, 3]]).all()
    assert (arrays["classes"].tolist(), arrays["class_ids"].tolist()) == (["road", "car"], [1, 3])


@pytest.mark.parametrize("form", ["png", "json rle", "coco", "hf", "npz"])
def test_one_megapixel_takes_no_time_to_speak_of(form: str, spec: ModelSpec) -> None:
    """Of the processor: a second would be ten times too slow."""
    mask_HW = blobs(1024, 1024, smooth=15)
    prediction = prediction_of(mask_HW, probs_KHW=probabilities(mask_HW))
    start = time.thread_time()
    answer(prediction, spec, **FORMS[form][0])
    assert time.thread_time() - start < 1
