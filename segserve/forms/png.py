"""`format=png`: pictures for eye and program, one for each `render`."""

from typing import assert_never

from segserve import png
from segserve.api import Render
from segserve.findings import Findings
from segserve.forms.part import Part


def png_part(findings: Findings, render: Render) -> Part:
    return Part(name=render, filename=f"{render}.png", content_type="image/png", body=_png(findings, render))


def _png(findings: Findings, render: Render) -> bytes:
    prediction = findings.prediction
    match render:
        case "index":
            return png.encode_index_png(findings.mask_HW, findings.spec.classes)
        case "overlay":
            return png.encode_overlay_png(findings.image_HWC, findings.mask_HW, findings.spec.classes)
        case "confidence":
            return png.encode_gray_png(prediction.confidence_HW)
        case "uncertainty":
            return png.encode_gray_png(prediction.uncertainty_HW[findings.options.measure])
        case other:
            assert_never(other)
