"""`format=hf`: what Hugging Face's image-segmentation and image-classification pipelines give
(https://huggingface.co/docs/inference-providers/tasks/image-segmentation)."""

import numpy as np
from PIL import Image

from segserve import png
from segserve.api import Label
from segserve.findings import Findings
from segserve.forms.part import Part, json_part


def masks_part(findings: Findings) -> Part:
    """One entry for each class that is present, its mask as a gray PNG: 255 inside, 0 outside."""
    return json_part(
        "hf",
        [
            {
                "label": findings.name(region),
                "score": region.confidence,
                "mask": png.to_base64(_png(findings, region.class_id)),
            }
            for region in findings.classes
        ],
    )


def labels_part(labels: list[Label]) -> Part:
    return json_part("hf", [{"label": label.name, "score": label.probability} for label in labels])


def _png(findings: Findings, class_id: int) -> bytes:
    return png.encode_png(Image.fromarray(np.where(findings.mask_HW == class_id, np.uint8(255), np.uint8(0))))
