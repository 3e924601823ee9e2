"""`format=json`: the answers of `segserve.api`."""

from collections import Counter

import numpy as np

from segserve import api, png
from segserve.api import Options
from segserve.findings import Findings
from segserve.forms.part import Part
from segserve.prediction import ClassificationPrediction, Prediction
from segserve.regions import Region
from segserve.rle import coco_rle
from segserve.spec import ModelSpec
from segserve.tta import PLANS


def segmentation_answer(findings: Findings) -> api.SegmentationAnswer:
    """Everything but the timings."""
    options = findings.options
    height, width = findings.size
    return api.SegmentationAnswer(
        model=findings.model,
        image=api.ImageInfo(width=width, height=height),
        classes=_classes(findings),
        objects=_objects(findings) if options.objects else None,
        mask=_png_mask(findings) if options.masks == "png" else None,
        windows=findings.prediction.windows,
        uncertainty=_uncertainty(findings.prediction),
        tta=_tta(options),
        timings_ms={},
    )


def labels_answer(
    prediction: ClassificationPrediction,
    options: Options,
    image: api.ImageInfo,
    *,
    spec: ModelSpec,
    model: api.ModelInfo,
) -> api.LabelsAnswer:
    """Everything but the timings."""
    return api.LabelsAnswer(
        model=model,
        image=image,
        labels=labels(prediction, options, spec),
        uncertainty=_uncertainty(prediction),
        tta=_tta(options),
        timings_ms={},
    )


def labels(prediction: ClassificationPrediction, options: Options, spec: ModelSpec) -> list[api.Label]:
    """The likeliest classes, as many as were asked for."""
    likeliest = np.argsort(-prediction.probs_K, kind="stable")[: options.top_k]
    return [
        api.Label(id=index, name=spec.classes[index].name, probability=float(prediction.probs_K[index]))
        for index in map(int, likeliest)
    ]


def answer_part(answer: api.SegmentationAnswer | api.LabelsAnswer) -> Part:
    return Part(
        name="json",
        filename="answer.json",
        content_type="application/json",
        body=answer.model_dump_json(exclude_none=True).encode(),
    )


def _classes(findings: Findings) -> list[api.ClassAnswer]:
    counts = Counter(region.class_id for region in findings.objects) if findings.options.objects else None
    return [
        api.ClassAnswer(
            **findings.spec.classes[region.class_id].model_dump(),
            pixels=region.area,
            fraction=round(region.area / findings.mask_HW.size, 6),
            confidence=region.confidence,
            count=None if counts is None else counts[region.class_id],
            mask=_mask(findings, region),
        )
        for region in findings.classes
    ]


def _objects(findings: Findings) -> list[api.ObjectAnswer]:
    return [
        api.ObjectAnswer(
            id=number,
            class_id=region.class_id,
            class_name=findings.name(region),
            box=region.box,
            area=region.area,
            centroid=region.centroid,
            confidence=region.confidence,
            mask=_mask(findings, region),
        )
        for number, region in enumerate(findings.objects, start=1)
    ]


def _mask(findings: Findings, region: Region) -> api.RleMask | api.PolygonMask | None:
    match findings.options.masks:
        case "rle":
            return api.RleMask.model_validate(coco_rle(region))
        case "polygons":
            # Traced, not given: checking each of a million points would take longer than tracing them.
            return api.PolygonMask.model_construct(coordinates=findings.polygons(region))
        case _:
            return None


def _png_mask(findings: Findings) -> api.PngMask:
    return api.PngMask(data=png.to_base64(png.encode_index_png(findings.mask_HW, findings.spec.classes)))


def _uncertainty(prediction: Prediction) -> api.Uncertainty:
    return api.Uncertainty(
        mean_entropy=round(prediction.mean_entropy, 6),
        mutual_information=round(prediction.mutual_information, 6),
        view_agreement=round(prediction.view_agreement, 6),
    )


def _tta(options: Options) -> api.TtaInfo:
    return api.TtaInfo(plan=options.tta, views=len(PLANS[options.tta]), aggregate=options.aggregate)
