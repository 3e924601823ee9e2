"""`format=labelstudio`: one Label Studio task with one prediction, a brush region for each region
(https://labelstud.io/guide/predictions). The names are those of its template for semantic segmentation with masks:

    <BrushLabels name="tag" toName="image">, <Image name="image" value="$image">
"""

from typing import Any

from segserve.findings import Findings
from segserve.forms.part import Part, json_part
from segserve.problem import Problem
from segserve.regions import Region
from segserve.rle import label_studio_rle

MAX_RLE_BYTES = 15 * 2**20
"""Of all regions; each byte is up to four characters of the answer. Even the smallest region costs a byte for every
5,000 pixels of the image."""


def label_studio_part(findings: Findings) -> Part:
    """The task.

    Raises:
        Problem: `too-large`, more than `MAX_RLE_BYTES`.
    """
    regions = findings.regions
    prediction = {
        "model_version": f"{findings.model.name} {findings.model.version}",
        "score": round(float(findings.prediction.confidence_HW.mean()) / 255, 4),
        "result": _results(findings, regions),
    }
    return json_part("labelstudio", [{"data": {"image": findings.options.name}, "predictions": [prediction]}])


def _results(findings: Findings, regions: tuple[Region, ...]) -> list[dict[str, Any]]:
    results = []
    num_bytes = 0
    for number, region in enumerate(regions, start=1):
        rle = label_studio_rle(region)
        num_bytes += len(rle)
        if num_bytes > MAX_RLE_BYTES:
            raise Problem(
                "too-large",
                f"expected at most {MAX_RLE_BYTES} bytes of masks for Label Studio, but region {number} of "
                f"{len(regions)} exceeds them: ask for a larger min_area, or for format=coco",
            )
        results.append(_result(findings, region, rle, number))
    return results


def _result(findings: Findings, region: Region, rle: bytes, number: int) -> dict[str, Any]:
    height, width = findings.size
    return {
        "id": f"region-{number}",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": region.confidence,
        "value": {"format": "rle", "rle": list(rle), "brushlabels": [findings.name(region)]},
    }
