"""What the service writes, the client reads back, of masks that are hard to write down."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segserve import answers
from segserve.answers import Region, index_mask
from segserve.png import NO_CLASS
from segserve.spec import ModelSpec
from tests.masks import CASES, answer, prediction_of

Mask = NDArray[np.uint8]
CASE = pytest.mark.parametrize("mask_HW", CASES.values(), ids=CASES)
FEW_OBJECTS = {name: mask_HW for name, mask_HW in CASES.items() if mask_HW.size < 3000}
OBJECTS = pytest.mark.parametrize("mask_HW", FEW_OBJECTS.values(), ids=FEW_OBJECTS)
MASKS = pytest.mark.parametrize("masks", ["rle", "polygons"])


def body(mask_HW: Mask, spec: ModelSpec, **options: Any) -> bytes:
    return answer(prediction_of(mask_HW), spec, **options)[1]


def ids(spec: ModelSpec) -> dict[str, int]:
    return {entry.name: entry.id for entry in spec.classes}


@CASE
def test_index_png(mask_HW: Mask, spec: ModelSpec) -> None:
    mask = answers.read_mask(body(mask_HW, spec))
    assert np.array_equal(mask.mask_HW, mask_HW)
    assert [tuple(color) for color in mask.palette_K3.tolist()] == [entry.color for entry in spec.classes]


@CASE
@pytest.mark.parametrize("masks", ["rle", "polygons", "png"])
def test_json(mask_HW: Mask, masks: str, spec: ModelSpec) -> None:
    read = answers.read_segmentation(body(mask_HW, spec, format="json", masks=masks))
    assert np.array_equal(read.mask_HW, mask_HW)


@CASE
@MASKS
def test_coco(mask_HW: Mask, masks: str, spec: ModelSpec) -> None:
    written = body(mask_HW, spec, format="coco", masks=masks)
    read = answers.read_coco(written, size=(mask_HW.shape[0], mask_HW.shape[1]))
    assert np.array_equal(index_mask(read), mask_HW)


@CASE
@MASKS
def test_cvat(mask_HW: Mask, masks: str, spec: ModelSpec) -> None:
    written = body(mask_HW, spec, format="cvat", masks=masks)
    assert np.array_equal(index_mask(answers.read_cvat(written), ids(spec)), mask_HW)


@OBJECTS
@MASKS
def test_objects_make_up_the_mask(mask_HW: Mask, masks: str, spec: ModelSpec) -> None:
    in_coco = answers.read_coco(
        body(mask_HW, spec, format="coco", masks=masks, objects=True), size=(mask_HW.shape[0], mask_HW.shape[1])
    )
    in_cvat = answers.read_cvat(body(mask_HW, spec, format="cvat", masks=masks, objects=True))
    assert len(in_coco) == len(in_cvat)
    assert np.array_equal(index_mask(in_coco), mask_HW)
    assert np.array_equal(index_mask(in_cvat, ids(spec)), mask_HW)


@CASE
def test_label_studio(mask_HW: Mask, spec: ModelSpec) -> None:
    read = answers.read_label_studio(body(mask_HW, spec, format="labelstudio"))
    assert np.array_equal(index_mask(read, ids(spec)), mask_HW)


@CASE
def test_hf(mask_HW: Mask, spec: ModelSpec) -> None:
    assert np.array_equal(index_mask(answers.read_hf(body(mask_HW, spec, format="hf")), ids(spec)), mask_HW)


READERS: dict[str, Callable[[bytes], tuple[Region, ...]]] = {
    "coco": answers.read_coco,
    "cvat": answers.read_cvat,
    "labelstudio": answers.read_label_studio,
    "hf": answers.read_hf,
}


@pytest.mark.parametrize("form", READERS)
def test_regions_are_those_asked_for_with_their_scores(form: str, spec: ModelSpec) -> None:
    mask_HW = CASES["empty classes"]
    (read,) = READERS[form](body(mask_HW, spec, format=form, classes="car,road"))
    assert read.label in ("car", 3)
    assert read.mask_HW is not None
    assert np.array_equal(read.mask_HW, mask_HW == 3)
    assert read.score is None if form == "cvat" else 0.3 < (read.score or 0) < 0.7


def test_the_objects_of_json_have_masks(spec: ModelSpec) -> None:
    mask_HW = CASES["single pixels"]
    read = answers.read_segmentation(body(mask_HW, spec, format="json", objects=True, classes="road"))
    assert read.objects is not None
    regions_HW = [read.region_HW(entry.mask) for entry in read.objects]
    assert [int(region_HW.sum()) for region_HW in regions_HW] == [entry.area for entry in read.objects]
    assert np.array_equal(np.logical_or.reduce(regions_HW), mask_HW == 1)


def test_classes_not_asked_for_are_no_class(spec: ModelSpec) -> None:
    mask_HW = CASES["odd"]
    read = answers.read_segmentation(body(mask_HW, spec, format="json", classes="tree"))
    assert np.array_equal(read.mask_HW, np.where(mask_HW == 2, 2, NO_CLASS))


@pytest.mark.parametrize(("precision", "scale"), [("uint8", 255), ("float16", 1)])
def test_npz(precision: str, scale: int, spec: ModelSpec) -> None:
    probs_KHW = np.random.default_rng(0).integers(0, scale + 1, (4, 53, 37)).astype(precision)
    prediction = prediction_of(CASES["odd"], probs_KHW=probs_KHW)
    read = answers.read_npz(answer(prediction, spec, format="npz", precision=precision, classes="road,car")[1])
    assert read.probs_KHW.dtype == np.float32
    assert np.array_equal(read.probs_KHW, probs_KHW[[1, 3]].astype(np.float32) / scale)
    assert (read.names, read.ids) == (("road", "car"), (1, 3))
    assert set(np.unique(read.mask_HW)) <= {1, 3, NO_CLASS}


def test_mixed(spec: ModelSpec) -> None:
    mask_HW = CASES["noise"]
    asked = {"format": "png,json,cvat", "render": "index,confidence"}
    parts = answers.read_mixed(*answer(prediction_of(mask_HW), spec, **asked))
    assert list(parts) == ["index", "confidence", "json", "cvat"]
    assert (parts["cvat"].filename, parts["cvat"].content_type) == ("annotations.xml", "application/xml")
    assert np.array_equal(answers.read_mask(parts["index"].body).mask_HW, mask_HW)
    assert np.array_equal(answers.read_picture(parts["confidence"].body), prediction_of(mask_HW).confidence_HW)
    assert answers.read_segmentation(parts["json"].body).image.width == mask_HW.shape[1]
    assert parts["cvat"].body == body(mask_HW, spec, format="cvat")


def test_label_studio_s_own_packets_of_single_values_are_read() -> None:
    """A 1x2 image: a packet of four single values (0), then a run of four values (255)."""
    fields = [(8, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4), (0, 1), (0, 2), (3, 3), *[(0, 8)] * 4]
    bits = "".join(f"{value:0{width}b}" for value, width in [*fields, (1, 1), (0, 2), (3, 3), (255, 8)])
    packed = [int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8)]
    value = {"format": "rle", "rle": packed, "brushlabels": ["car"]}
    result = {"original_width": 2, "original_height": 1, "value": value}
    (read,) = answers.read_label_studio(json.dumps([{"predictions": [{"result": [result]}]}]).encode())
    assert read.mask_HW is not None
    assert read.mask_HW.tolist() == [[False, True]]


def test_an_overlay_is_no_mask(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="expected a PNG with a palette, but its mode is RGB: ask for render=index"):
        answers.read_mask(body(CASES["odd"], spec, render="overlay"))


def test_answers_without_masks_say_so(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="expected an answer with masks, but it has none: ask for masks=rle"):
        _ = answers.read_segmentation(body(CASES["odd"], spec, format="json", masks="none")).mask_HW
    with pytest.raises(ValueError, match="expected regions with masks, but 0 has none"):
        index_mask(answers.read_coco(body(CASES["odd"], spec, format="coco", masks="none")))
    with pytest.raises(ValueError, match="expected at least one region"):
        index_mask([])


def test_coco_polygons_need_the_size(spec: ModelSpec) -> None:
    written = body(CASES["one class everywhere"], spec, format="coco", masks="polygons")
    with pytest.raises(ValueError, match="expected the image's size with COCO polygons, which do not tell it"):
        answers.read_coco(written)


TRIANGLE = np.tri(8, dtype=np.bool_)


def test_a_triangle_is_a_region() -> None:
    """Its ring has three points where it is not closed."""
    in_coco = json.dumps([{"category_id": 1, "segmentation": [[0, 0, 8, 8, 0, 8]]}]).encode()
    in_cvat = cvat('<polygon label="car" points="0,0;8,8;0,8"/>')
    for (region,) in (answers.read_coco(in_coco, size=(8, 8)), answers.read_cvat(in_cvat)):
        assert region.mask_HW is not None
        assert np.array_equal(region.mask_HW | np.eye(8, dtype=np.bool_), TRIANGLE)


def test_shapes_that_a_person_grouped_keep_their_labels() -> None:
    shapes = [("sky", 0, 0), ("car", 4, 0), ("sky", 2, 0), ("sky", 6, 1)]
    body = cvat(
        "".join(
            f'<polygon label="{label}" group_id="1" z_order="{layer}" points="{x},0;{x + 2},0;{x + 2},8;{x},8"/>'
            for label, x, layer in shapes
        )
    )
    found = [(region.label, np.flatnonzero(region.mask_HW[0]).tolist()) for region in answers.read_cvat(body)]  # type: ignore[index]
    assert found == [("sky", [0, 1, 2, 3]), ("car", [4, 5]), ("sky", [6, 7])]


def cvat(shapes: str) -> bytes:
    return f'<annotations><image width="8" height="8">{shapes}</image></annotations>'.encode()


def test_other_multipart_is_refused() -> None:
    with pytest.raises(ValueError, match="expected multipart/mixed with a boundary, but got 'image/png'"):
        answers.read_mixed("image/png", b"")


def test_a_gray_png_is_read_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.fromarray(CASES["noise"]).save(buffer, format="PNG")
    assert np.array_equal(answers.read_picture(buffer.getvalue()), CASES["noise"])
