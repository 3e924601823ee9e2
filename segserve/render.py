"""From a prediction to the answer's body, in the form the options ask for."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from segserve import api, codec
from segserve.api import Options
from segserve.clock import StageClock
from segserve.predictor import ClassificationPrediction, Prediction, SegmentationPrediction
from segserve.spec import ModelSpec
from segserve.tta import PLANS


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One image, and what was asked about it."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB, (H, W, 3)."""
    options: Options


def render(
    prediction: Prediction, asked: Asked, *, spec: ModelSpec, model: api.ModelInfo, clock: StageClock
) -> tuple[str, bytes]:
    """The content type and the body.

    Args:
        prediction: what the predictor gave for the image.
        asked: the image and the options.
        spec: the model's.
        model: what JSON answers say of the model.
        clock: holds the seconds of the earlier stages, for `timings_ms`; receives those of the encoding.
    """
    match prediction:
        case SegmentationPrediction() if asked.options.format != "json":
            with clock("encode"):
                return "image/png", _png(prediction, asked, spec)
        case SegmentationPrediction():
            with clock("encode"):
                segmentation = _segmentation(prediction, asked, spec, model)
            segmentation.timings_ms = clock.milliseconds()
            return "application/json", segmentation.model_dump_json(exclude_none=True).encode()
        case ClassificationPrediction():
            with clock("encode"):
                labels = _labels(prediction, asked, spec, model)
            labels.timings_ms = clock.milliseconds()
            return "application/json", labels.model_dump_json().encode()
        case _:
            assert_never(prediction)


def _png(prediction: SegmentationPrediction, asked: Asked, spec: ModelSpec) -> bytes:
    match asked.options.render:
        case "index":
            return codec.encode_index_png(_asked_mask(prediction, asked.options, spec), spec.classes)
        case "overlay":
            mask_HW = _asked_mask(prediction, asked.options, spec)
            return codec.encode_overlay_png(asked.image_HWC, mask_HW, spec.classes)
        case "confidence":
            return codec.encode_gray_png(prediction.confidence_HW)
        case "uncertainty":
            assert prediction.uncertainty_HW is not None, "the query must ask for the map"
            return codec.encode_gray_png(prediction.uncertainty_HW)
        case other:
            assert_never(other)


def _asked_ids(options: Options, spec: ModelSpec) -> list[int]:
    names = options.classes or spec.class_names
    return [entry.id for entry in spec.classes if entry.name in names]


def _asked_mask(prediction: SegmentationPrediction, options: Options, spec: ModelSpec) -> NDArray[np.uint8]:
    """The mask, with `NO_CLASS` where the class was not asked for."""
    if not options.classes:
        return prediction.mask_HW
    asked = _asked_ids(options, spec)
    table = np.full(256, codec.NO_CLASS, dtype=np.uint8)
    table[asked] = asked
    return table[prediction.mask_HW]


def _segmentation(
    prediction: SegmentationPrediction, asked: Asked, spec: ModelSpec, model: api.ModelInfo
) -> api.SegmentationAnswer:
    mask = None
    if asked.options.masks == "png":
        png = codec.encode_index_png(_asked_mask(prediction, asked.options, spec), spec.classes)
        mask = api.PngMask(data=codec.to_base64(png))
    return api.SegmentationAnswer(
        model=model,
        image=_image_info(asked),
        classes=_class_answers(prediction, asked.options, spec),
        mask=mask,
        uncertainty=_uncertainty(prediction),
        tta=_tta_info(asked.options),
        timings_ms={},
    )


def _class_answers(prediction: SegmentationPrediction, options: Options, spec: ModelSpec) -> list[api.ClassAnswer]:
    """The classes that are present, of those asked for."""
    pixels_K = class_pixels(prediction, spec.num_classes)
    confidence_K = np.bincount(
        prediction.mask_HW.ravel(), weights=prediction.confidence_HW.ravel() / 255, minlength=spec.num_classes
    )
    return [
        api.ClassAnswer(
            **spec.classes[index].model_dump(),
            pixels=int(pixels_K[index]),
            fraction=round(float(pixels_K[index] / prediction.mask_HW.size), 6),
            confidence=round(float(confidence_K[index] / pixels_K[index]), 4),
            mask=codec.encode_rle(prediction.mask_HW == index) if options.masks == "rle" else None,
        )
        for index in _asked_ids(options, spec)
        if pixels_K[index]
    ]


def _labels(
    prediction: ClassificationPrediction, asked: Asked, spec: ModelSpec, model: api.ModelInfo
) -> api.LabelsAnswer:
    likeliest = np.argsort(-prediction.probs_K, kind="stable")[: asked.options.top_k]
    return api.LabelsAnswer(
        model=model,
        image=_image_info(asked),
        labels=[
            api.Label(id=index, name=spec.classes[index].name, probability=float(prediction.probs_K[index]))
            for index in map(int, likeliest)
        ],
        uncertainty=_uncertainty(prediction),
        tta=_tta_info(asked.options),
        timings_ms={},
    )


def class_pixels(prediction: SegmentationPrediction, num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class, (K,)."""
    return np.bincount(prediction.mask_HW.ravel(), minlength=num_classes)


def _image_info(asked: Asked) -> api.ImageInfo:
    height, width = asked.image_HWC.shape[:2]
    return api.ImageInfo(width=width, height=height)


def _uncertainty(prediction: Prediction) -> api.Uncertainty:
    return api.Uncertainty(
        mean_entropy=round(prediction.mean_entropy, 6), view_agreement=round(prediction.view_agreement, 6)
    )


def _tta_info(options: Options) -> api.TtaInfo:
    return api.TtaInfo(plan=options.tta, views=len(PLANS[options.tta]), aggregate=options.aggregate)
