"""What a client reads out of the answers: the inverse of `segserve.forms`, of each form.

Knows no HTTP. Libraries that only some forms need are imported by those.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segserve.api import PolygonMask, RleMask, SegmentationAnswer
from segserve.forms.part import Part
from segserve.png import NO_CLASS

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """Class indices, and the colours of the classes."""

    mask_HW: NDArray[np.uint8]
    """`segserve.png.NO_CLASS` (255) where the class was not asked for."""
    palette_K3: NDArray[np.uint8]
    """Red, green, blue of each index."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """One entry of a form that is a list: a class, or with `objects=true` an object."""

    label: int | str
    """The class: its index in COCO, its name in the other forms."""
    score: float | None
    mask_HW: Bools | None
    """None with `masks=none`, and of labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probabilities:
    """What `format=npz` holds."""

    probs_KHW: NDArray[np.float32]
    """0 to 1."""
    mask_HW: NDArray[np.uint8]
    """Class indices, see `Mask`."""
    names: tuple[str, ...]
    """Of the K classes."""
    ids: tuple[int, ...]
    """Their indices in the mask."""


class Segmentation(SegmentationAnswer):
    """The JSON answer with its masks as arrays."""

    @property
    def mask_HW(self) -> NDArray[np.uint8]:
        """Class indices, see `Mask`.

        Raises:
            ValueError: asked for with `masks=none`.
        """
        if self.mask is not None:
            return read_mask(base64.b64decode(self.mask.data)).mask_HW
        mask_HW = np.full((self.image.height, self.image.width), NO_CLASS, dtype=np.uint8)
        for entry in self.classes:
            mask_HW[self.region_HW(entry.mask)] = entry.id
        return mask_HW

    def region_HW(self, mask: RleMask | PolygonMask | None) -> Bools:
        """The pixels of the mask of one class or object of this answer, (H, W)."""
        match mask:
            case RleMask():
                return _coco_rle(mask.model_dump())
            case PolygonMask():
                return _rasterised(mask.coordinates, (self.image.height, self.image.width))
            case None:
                raise ValueError("expected an answer with masks, but it has none: ask for masks=rle")


def read_mask(body: bytes) -> Mask:
    """An index PNG."""
    image = Image.open(io.BytesIO(body))
    if image.mode != "P":
        raise ValueError(f"expected a PNG with a palette, but its mode is {image.mode}: ask for render=index")
    palette_K3 = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    return Mask(mask_HW=np.array(image), palette_K3=palette_K3)


def read_picture(body: bytes) -> NDArray[np.uint8]:
    """Any PNG as it is: (H, W, 3) of an overlay, else (H, W)."""
    return np.array(Image.open(io.BytesIO(body)))


def read_segmentation(body: bytes) -> Segmentation:
    """`format=json`."""
    return Segmentation.model_validate_json(body)


def read_coco(body: bytes, *, size: tuple[int, int] | None = None) -> tuple[Region, ...]:
    """`format=coco`.

    Args:
        body: the list of annotations.
        size: the image's height and width, which annotations with polygons do not tell.
    """
    return tuple(
        Region(
            label=annotation["category_id"],
            score=annotation.get("score"),
            mask_HW=_coco_mask(annotation.get("segmentation"), size),
        )
        for annotation in json.loads(body)
    )


def _coco_mask(segmentation: Any, size: tuple[int, int] | None) -> Bools | None:
    match segmentation:
        case None:
            return None
        case dict():
            return _coco_rle(segmentation)
        case _ if size is None:
            raise ValueError(
                "expected the image's size with COCO polygons, which do not tell it: give size, or ask for masks=rle"
            )
        case _:
            return _rasterised([[list(zip(ring[::2], ring[1::2], strict=True))] for ring in segmentation], size)


def read_cvat(body: bytes) -> tuple[Region, ...]:
    """`format=cvat`. Shapes of one group are one region, if they have one label, too: people group what they like."""
    regions = []
    for image in ElementTree.fromstring(body).iter("image"):
        size = int(image.attrib["height"]), int(image.attrib["width"])
        for shapes in _groups(image):
            masks = [_cvat_shape(shape, size) for shape in shapes]
            label = shapes[0].attrib["label"]
            regions.append(Region(label=label, score=None, mask_HW=np.logical_or.reduce(masks)))
    return tuple(regions)


def _groups(image: Element) -> Sequence[Sequence[Element]]:
    groups: dict[object, list[Element]] = defaultdict(list)
    for shape in image:
        group = shape.get("group_id")
        groups[(group, shape.get("label"), shape.get("z_order")) if group else shape].append(shape)
    return list(groups.values())


def _cvat_shape(shape: Element, size: tuple[int, int]) -> Bools:
    if shape.tag == "polygon":
        points = [tuple(map(float, point.split(","))) for point in shape.attrib["points"].split(";")]
        return _rasterised([[points]], size)
    left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
    mask_HW = np.zeros(size, dtype=np.bool_)
    counts = list(map(int, shape.attrib["rle"].split(",")))
    mask_HW[top : top + height, left : left + width] = _run_lengths(counts, (height, width))
    return mask_HW


def _run_lengths(counts: Sequence[int], size: tuple[int, int]) -> Bools:
    """Lengths outside and inside by turns, row by row."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size)


def read_label_studio(body: bytes) -> tuple[Region, ...]:
    """`format=labelstudio`."""
    return tuple(
        Region(
            label=result["value"]["brushlabels"][0],
            score=result.get("score"),
            mask_HW=_label_studio_rle(result["value"]["rle"], (result["original_height"], result["original_width"])),
        )
        for task in json.loads(body)
        for prediction in task["predictions"]
        for result in prediction["result"]
    )


def _label_studio_rle(rle: Sequence[int], size: tuple[int, int]) -> Bools:
    """The inverse of `segserve.rle.label_studio_rle`, and of packets that are no runs, which Label Studio writes."""
    bits = io.StringIO("".join(map("{:08b}".format, rle)))

    def take(width: int) -> int:
        return int(bits.read(width), 2)

    num_values, value_bits = take(32), take(5) + 1
    length_bits = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num_values:
        is_run, kind = take(1), take(2)
        length = take(length_bits[kind]) + 1
        values += [take(value_bits)] * length if is_run else [take(value_bits) for _ in range(length)]
    return np.array(values, dtype=np.uint8).reshape(*size, 4)[..., 3] > 0


def read_hf(body: bytes) -> tuple[Region, ...]:
    """`format=hf`, of masks and of labels."""
    return tuple(
        Region(
            label=entry["label"],
            score=entry["score"],
            mask_HW=read_picture(base64.b64decode(entry["mask"])) > 0 if "mask" in entry else None,
        )
        for entry in json.loads(body)
    )


def read_npz(body: bytes) -> Probabilities:
    """`format=npz`, at either precision."""
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        probs_KHW = arrays["probabilities"]
        scale = 255 if probs_KHW.dtype == np.uint8 else 1
        return Probabilities(
            probs_KHW=probs_KHW.astype(np.float32) / scale,
            mask_HW=arrays["mask"],
            names=tuple(arrays["classes"].tolist()),
            ids=tuple(arrays["class_ids"].tolist()),
        )


def read_mixed(content_type: str, body: bytes) -> dict[str, Part]:
    """The parts of `multipart/mixed` by name: the `format`, and for PNG the `render`."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if boundary is None:
        raise ValueError(f"expected multipart/mixed with a boundary, but got {content_type!r}")
    _, *parts, _ = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    return {part.name: part for part in map(_part, parts)}


def _part(text: bytes) -> Part:
    head, _, body = text.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    headers = BytesHeaderParser().parsebytes(head)
    return Part(
        name=str(headers.get_param("name", header="Content-Disposition")),
        filename=headers.get_filename(""),
        content_type=headers.get_content_type(),
        body=body,
    )


def index_mask(regions: Sequence[Region], ids: Mapping[str, int] | None = None) -> NDArray[np.uint8]:
    """Class indices of regions that do not overlap, (H, W); `NO_CLASS` where there is none.

    Args:
        regions: at least one, all of one image.
        ids: the index of each class name, for forms that have names.
    """
    masks = [_present(region) for region in regions]
    if not masks:
        raise ValueError("expected at least one region: without any the image's size is unknown")
    mask_HW = np.full(masks[0].shape, NO_CLASS, dtype=np.uint8)
    for region, region_HW in zip(regions, masks, strict=True):
        mask_HW[region_HW] = region.label if isinstance(region.label, int) else (ids or {})[region.label]
    return mask_HW


def _present(region: Region) -> Bools:
    if region.mask_HW is None:
        raise ValueError(f"expected regions with masks, but {region.label!r} has none: leave out masks=none")
    return region.mask_HW


def _coco_rle(rle: Mapping[str, Any]) -> Bools:
    from pycocotools import mask as coco

    return np.asarray(coco.decode({"size": list(rle["size"]), "counts": rle["counts"]}), dtype=np.bool_)


def _rasterised(polygons: Sequence[Any], size: tuple[int, int]) -> Bools:
    """The pixels whose centres lie inside; polygons of rings of points, as in GeoJSON, closed or not."""
    from rasterio.features import rasterize

    closed = [[[*ring, ring[0]] for ring in polygon] for polygon in polygons]
    shape = {"type": "MultiPolygon", "coordinates": closed}
    return np.asarray(rasterize([(shape, 1)], out_shape=size, dtype=np.uint8), dtype=np.bool_)
