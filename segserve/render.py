"""From a prediction to the answer's body, in the forms the options ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from segserve import api
from segserve.api import Form, Options
from segserve.clock import StageClock
from segserve.findings import Findings
from segserve.forms.answer import answer_part, labels, labels_answer, segmentation_answer
from segserve.forms.coco import coco_part
from segserve.forms.cvat import cvat_part
from segserve.forms.huggingface import labels_part, masks_part
from segserve.forms.labelstudio import label_studio_part
from segserve.forms.mixed import mix
from segserve.forms.npz import npz_part
from segserve.forms.part import Part
from segserve.forms.png import png_part
from segserve.prediction import ClassificationPrediction, Prediction, SegmentationPrediction
from segserve.problem import Problem
from segserve.spec import ModelSpec

ONE_PART: Mapping[Form, Callable[[Findings], Part]] = {
    "coco": coco_part,
    "cvat": cvat_part,
    "labelstudio": label_studio_part,
    "hf": masks_part,
    "npz": npz_part,
}
"""Forms of masks that are one part whatever else is asked."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One image, and what was asked about it."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB, (H, W, 3); whole where an overlay is asked for."""
    sent_size: tuple[int, int] | None = None
    """Height and width of what was sent, where the image was decoded at less."""
    options: Options

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image as it was sent."""
        return self.sent_size or (self.image_HWC.shape[0], self.image_HWC.shape[1])


def render(
    prediction: Prediction, asked: Asked, *, spec: ModelSpec, model: api.ModelInfo, clock: StageClock
) -> tuple[str, bytes]:
    """The content type and the body: one form as it is, several as `multipart/mixed`.

    Args:
        prediction: what the predictor gave for the image.
        asked: the image and the options.
        spec: the model's.
        model: what JSON answers say of the model.
        clock: holds the seconds of the earlier stages, for `timings_ms`; receives those of the encoding.

    Raises:
        Problem: `bad-option` (a form of masks asked of labels) or `too-large`.
    """
    match prediction:
        case SegmentationPrediction():
            findings = Findings(
                image_HWC=asked.image_HWC, options=asked.options, prediction=prediction, spec=spec, model=model
            )
            parts = [part for form in asked.options.format or ("png",) for part in _mask_parts(form, findings, clock)]
        case ClassificationPrediction():
            forms = _label_forms(asked.options)
            parts = [_label_part(form, prediction, asked, spec, model, clock) for form in forms]
        case _:
            assert_never(prediction)
    return (parts[0].content_type, parts[0].body) if len(parts) == 1 else mix(parts)


def _mask_parts(form: Form, findings: Findings, clock: StageClock) -> list[Part]:
    match form:
        case "png":
            with clock("encode"):
                return [png_part(findings, render) for render in findings.options.render]
        case "json":
            with clock("encode"):
                answer = segmentation_answer(findings)
            answer.timings_ms = clock.milliseconds()
            return [answer_part(answer)]
        case _:
            with clock("encode"):
                return [ONE_PART[form](findings)]


def _label_forms(options: Options) -> tuple[Form, ...]:
    """Labels are JSON, also for clients that always ask for PNG."""
    wrong = [form for form in options.format if form not in ("png", "json", "hf")]
    if wrong:
        raise Problem(
            "bad-option",
            f"expected 'format' to be json or hf for a model that gives labels, but got {', '.join(wrong)}: "
            "the other forms hold masks",
        )
    return tuple(dict.fromkeys("json" if form == "png" else form for form in options.format)) or ("json",)


def _label_part(
    form: Form,
    prediction: ClassificationPrediction,
    asked: Asked,
    spec: ModelSpec,
    model: api.ModelInfo,
    clock: StageClock,
) -> Part:
    with clock("encode"):
        if form == "hf":
            return labels_part(labels(prediction, asked.options, spec))
        height, width = asked.size
        image = api.ImageInfo(width=width, height=height)
        answer = labels_answer(prediction, asked.options, image, spec=spec, model=model)
    answer.timings_ms = clock.milliseconds()
    return answer_part(answer)
