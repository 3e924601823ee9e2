"""`format=coco`: a list of COCO annotations, one for each region (https://cocodataset.org/#format-results)."""

from itertools import chain
from pathlib import PurePath
from typing import Any

from segserve.findings import Findings
from segserve.forms.part import Part, json_part
from segserve.regions import Region
from segserve.rle import coco_rle

MAX_DIGITS = 15
"""Of numbers that every JSON reader keeps exactly."""


def coco_part(findings: Findings) -> Part:
    return json_part("coco", [_annotation(findings, n, region) for n, region in enumerate(findings.regions, start=1)])


def _annotation(findings: Findings, number: int, region: Region) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "id": number,
        "image_id": _image_id(findings.options.name),
        "category_id": region.class_id,
        "bbox": region.box,
        "area": region.area,
        "iscrowd": 0,
        "score": region.confidence,
    }
    if findings.options.masks != "none":
        annotation["segmentation"] = _segmentation(findings, region)
    return annotation


def _segmentation(findings: Findings, region: Region) -> object:
    """Polygons where they were asked for and can be had: COCO's have no holes, and pycocotools wants three points."""
    if findings.options.masks == "polygons":
        polygons = findings.polygons(region)
        if all(len(rings) == 1 for rings in polygons):
            return [list(chain.from_iterable(outline[:-1])) for [outline] in polygons]
    return coco_rle(region)


def _image_id(name: str) -> int | str:
    """As COCO names its files, `000000000139.jpg` is image 139; other images have their name as id."""
    stem = PurePath(name).stem
    is_number = stem.isascii() and stem.isdecimal() and len(stem) <= MAX_DIGITS
    return int(stem) if is_number else name
