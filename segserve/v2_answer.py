"""Answers in KServe's Open Inference Protocol v2, see `segserve.v2`.

Dimensions: B images, K classes, H, W, C channels (red, green, blue).
"""

import json
import struct
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from segserve import api
from segserve.findings import Findings
from segserve.prediction import ClassificationPrediction, Prediction, SegmentationPrediction
from segserve.spec import ModelSpec
from segserve.v2 import HEADER_LENGTH, Inference, OutputName, ScoreName

_DATATYPES = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32", "object": "BYTES"}
"""The protocol's names of NumPy's types."""


def write_inference(
    inference: Inference, predictions: Sequence[Prediction], *, spec: ModelSpec, model: api.ModelInfo
) -> tuple[str, dict[str, str], bytes]:
    """The content type, further headers and the body of the answer.

    Args:
        inference: the request.
        predictions: one an image, in order.
        spec: the model's.
        model: named in the answer.
    """
    tensors = [_tensor(output.name, inference, predictions, spec=spec, model=model) for output in inference.outputs]
    binaries = [
        _to_bytes(tensor) if output.binary else None for output, tensor in zip(inference.outputs, tensors, strict=True)
    ]
    answer = {
        "model_name": model.name,
        "model_version": model.version,
        **({} if inference.id is None else {"id": inference.id}),
        "parameters": {"digest": model.digest, "classes": ",".join(spec.class_names)},
        "outputs": [
            _described(output.name, tensor, binary)
            for output, tensor, binary in zip(inference.outputs, tensors, binaries, strict=True)
        ],
    }
    head = json.dumps(answer, separators=(",", ":")).encode()
    tail = [binary for binary in binaries if binary is not None]
    if not tail:
        return "application/json", {}, head
    return "application/octet-stream", {HEADER_LENGTH: str(len(head))}, b"".join([head, *tail])


def _tensor(
    name: OutputName, inference: Inference, predictions: Sequence[Prediction], *, spec: ModelSpec, model: api.ModelInfo
) -> NDArray[Any]:
    """(B, ...); text has the dtype object."""
    if name in get_args(ScoreName):
        return np.array([getattr(prediction, name) for prediction in predictions], dtype=np.float32)
    tensors = []
    for image_HWC, prediction in zip(inference.images_BHWC, predictions, strict=True):
        match prediction:
            case SegmentationPrediction():
                found = Findings(
                    image_HWC=image_HWC, options=inference.options, prediction=prediction, spec=spec, model=model
                )
                tensors.append(_of_pixels(name, found))
            case ClassificationPrediction(probs_K=probs_K):
                label = np.array(spec.class_names[probs_K.argmax()], dtype=object)
                tensors.append(label if name == "label" else probs_K)
    return np.stack(tensors)


def _of_pixels(name: OutputName, found: Findings) -> NDArray[Any]:
    match name:
        case "mask":
            return found.mask_HW
        case "confidence":
            return found.prediction.confidence_HW
        case "uncertainty":
            return found.prediction.uncertainty_HW[found.options.measure]
        case _:
            assert found.prediction.probs_KHW is not None, "the query must ask for probabilities"
            return found.prediction.probs_KHW


def _to_bytes(tensor: NDArray[Any]) -> bytes:
    """Little-endian values, row by row; text as its length in 4 bytes and UTF-8."""
    if tensor.dtype != object:
        return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [text.encode() for text in tensor.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _described(name: OutputName, tensor: NDArray[Any], binary: bytes | None) -> dict[str, Any]:
    head = {"name": name, "datatype": _DATATYPES[tensor.dtype.name], "shape": list(tensor.shape)}
    if binary is None:
        return {**head, "data": tensor.ravel().tolist()}
    return {**head, "parameters": {"binary_data_size": len(binary)}}
