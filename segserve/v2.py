"""KServe's Open Inference Protocol v2 with its binary tensor extension: tensors of 8-bit images in, tensors out.

One request holds a batch of images of one size. The protocol: https://github.com/kserve/open-inference-protocol;
the extension: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension

Dimensions: B images, K classes, H, W, C channels (red, green, blue).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool, StrictInt, ValidationError

from segserve import api, codec
from segserve.prediction import Query
from segserve.problem import Problem
from segserve.settings import Settings, explain
from segserve.spec import ModelSpec, Task

HEADER_LENGTH = "Inference-Header-Content-Length"
"""This header, of requests and answers, tells the JSON's bytes where binary tensors follow it."""
INPUT = "image"
MAX_JSON_BYTES = 16 * 2**20
"""Numbers in JSON take up to thirty times their bytes of memory while they are read."""
MAX_KEYS = 10_000
"""Most keys in a request's JSON, where images are lists of numbers: see `api.MAX_JSON_ITEMS`."""
MAX_IMAGES = 64
"""Most images in one request: as many views as a full batch of plain requests with `tta=d4` has."""

MapName = Literal["mask", "confidence", "uncertainty"]
ScoreName = Literal["mean_entropy", "mutual_information", "view_agreement"]
OutputName = Literal[MapName, "probabilities", "label", ScoreName]

OUTPUTS: dict[Task, tuple[OutputName, ...]] = {
    "segmentation": (*get_args(MapName), "probabilities", *get_args(ScoreName)),
    "classification": ("probabilities", "label", *get_args(ScoreName)),
}
"""What there is to ask for."""
DEFAULT_OUTPUTS: dict[Task, tuple[OutputName, ...]] = {
    "segmentation": ("mask",),
    "classification": ("probabilities", "label"),
}
"""What comes where nothing is asked for."""
PARAMETERS: dict[Task, tuple[str, ...]] = {
    "segmentation": ("tta", "aggregate", "measure", "classes", "min_area", "precision", "deadline_ms"),
    "classification": ("tta", "aggregate", "deadline_ms"),
}
"""The options, see `api.Options`, that mean something here; the others choose a form or belong to the other task."""

_BRACE = re.compile(rb"\s*\{")
_INPUTS_KEY = re.compile(rb'"inputs"\s*:')
"""Only a key is followed by a colon: in JSON text a quote inside a string has a backslash before it."""


class InputParameters(Settings):
    """Of an input tensor."""

    binary_data_size: StrictInt | None = None
    """Its bytes after the JSON."""


class InputTensor(Settings):
    """The images."""

    name: str
    shape: tuple[StrictInt, ...] = Field(fail_fast=True)
    """B, H, W, 3; or H, W, 3 of one image."""
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = None
    """Values from 0 to 255, row by row: flat, or nested as the shape says."""


class OutputParameters(Settings):
    """Of an output tensor."""

    binary_data: StrictBool | None = None
    """After the JSON, not in it."""


class RequestedOutput(Settings):
    """An output tensor asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(Settings):
    """The JSON of a request."""

    id: str | None = None
    """Comes back in the answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Options, and `binary_data_output`: whether outputs that do not say otherwise come after the JSON."""
    inputs: tuple[InputTensor, ...] = Field(fail_fast=True)
    outputs: tuple[RequestedOutput, ...] = Field(default=(), fail_fast=True)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor asked for."""

    name: OutputName
    binary: bool
    """After the JSON, not in it."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A v2 request, read and checked."""

    id: str | None
    images_BHWC: NDArray[np.uint8]
    """RGB, (B, H, W, 3)."""
    options: api.Options
    outputs: tuple[Output, ...]

    def queries(self, *, deadline: float | None = None) -> list[Query]:
        """What the predictor is asked: one query an image; for `deadline` see `Query`."""
        names = {output.name for output in self.outputs}
        return [
            Query(
                image_HWC=image_HWC,
                tta=self.options.tta,
                aggregate=self.options.aggregate,
                maps=(self.options.measure,) if "uncertainty" in names else (),
                probabilities=self.options.precision if "probabilities" in names else None,
                deadline=deadline,
            )
            for image_HWC in self.images_BHWC
        ]


def asks_v2(request: api.Request) -> bool:
    """Whether this is a v2 request. TorchServe does not hand on the path, and v2 clients send any content type."""
    if HEADER_LENGTH.lower() in request.headers:
        return True
    body = request.fields.get("body", b"")
    return _BRACE.match(body) is not None and (
        api.media_type(request.headers) != "application/json" or _INPUTS_KEY.search(body) is not None
    )


def read_inference(request: api.Request, *, spec: ModelSpec, max_answer_bytes: int) -> Inference:
    """Read and check a v2 request.

    Args:
        request: for which `asks_v2` is true.
        spec: the model's; the task decides on outputs and options.
        max_answer_bytes: requests whose answer would be larger are refused before anything is computed.

    Raises:
        Problem: `bad-body`, `bad-option`, `unsupported-type` or `too-large`.
    """
    head, tail = _split(request)
    asked = _parse(head)
    images_BHWC = _images(asked.inputs, tail)
    parameters = dict(asked.parameters)
    binary = _binary_by_default(parameters)
    options = _options({**_carried(request), **parameters}, spec)
    outputs = _outputs(asked.outputs, task=spec.task, options=options, binary=binary)
    inference = Inference(id=asked.id, images_BHWC=images_BHWC, options=options, outputs=outputs)
    _check_answer(inference, spec=spec, max_answer_bytes=max_answer_bytes)
    return inference


def _split(request: api.Request) -> tuple[bytes, memoryview]:
    """The JSON, and the binary tensors after it."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(
            "unsupported-type", f"expected a body as it is, but got Content-Encoding {encoding!r}: send it so"
        )
    body = request.fields.get("body", b"")
    given = request.headers.get(HEADER_LENGTH.lower(), str(len(body)))
    length = int(given) if re.fullmatch(r"[0-9]{1,12}", given) else -1
    if not 0 < length <= len(body):
        raise Problem(
            "bad-body",
            f"expected {HEADER_LENGTH} to be the JSON's bytes, 1 to {len(body)} here, but got {given!r}: correct it",
        )
    if length > MAX_JSON_BYTES:
        raise Problem(
            "too-large",
            f"expected at most {MAX_JSON_BYTES} bytes of JSON, but got {length}: send the images as binary data",
        )
    return body[:length], memoryview(body)[length:]


def _parse(head: bytes) -> InferRequest:
    num_keys = head.count(b":")
    if num_keys > MAX_KEYS:
        raise Problem("bad-body", f"expected at most {MAX_KEYS} keys in JSON, but got {num_keys}: send fewer")
    try:
        return InferRequest.model_validate(json.loads(head))
    except ValidationError as error:
        raise Problem("bad-body", f"this is no v2 request: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise Problem(
            "bad-body",
            f"expected the JSON of a v2 request, but it cannot be parsed: {error}; "
            f"where binary tensors follow it, send its length as {HEADER_LENGTH}",
        ) from None


def _images(inputs: Sequence[InputTensor], tail: memoryview) -> NDArray[np.uint8]:
    """The only input's values, (B, H, W, 3)."""
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(repr(tensor.name) for tensor in inputs) or "none"
        raise Problem("bad-body", f"expected one input named {INPUT!r}, but got {names}: send the images as one tensor")
    (tensor,) = inputs
    if tensor.datatype != "UINT8":
        raise Problem(
            "bad-body",
            f"expected datatype 'UINT8', but got {tensor.datatype!r}: send values from 0 to 255, not normalised ones",
        )
    _check_shape(tensor.shape)
    values = np.frombuffer(_values(tensor, tail), dtype=np.uint8)
    if values.size != math.prod(tensor.shape):
        raise Problem(
            "bad-body",
            f"expected {math.prod(tensor.shape)} values for the shape {list(tensor.shape)}, but got {values.size}",
        )
    return values.reshape(-1, *tensor.shape[-3:])


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1:
        raise Problem(
            "bad-body",
            "expected the shape [images, height, width, 3], or [height, width, 3] of one image, "
            f"but got {list(shape)}: put red, green and blue last",
        )
    if len(shape) == 4 and shape[0] > MAX_IMAGES:
        raise Problem("too-large", f"expected at most {MAX_IMAGES} images, but got {shape[0]}: send several requests")
    if math.prod(shape[:-1]) > codec.MAX_PIXELS:
        raise Problem(
            "too-large",
            f"expected at most {codec.MAX_PIXELS} pixels in all, but got the shape {list(shape)}: send fewer images",
        )


def _values(tensor: InputTensor, tail: memoryview) -> bytes | memoryview:
    size = tensor.parameters.binary_data_size
    if size is None and len(tail) == 0:
        return _from_json(tensor)
    if size != len(tail):
        raise Problem(
            "bad-body",
            f"expected 'binary_data_size' of the input to be the bytes after the JSON, {len(tail)}, but got {size}: "
            f"correct it, or the header {HEADER_LENGTH}",
        )
    if tensor.data is not None:
        raise Problem(
            "bad-body", "expected either 'data' or 'binary_data_size' for the input, but got both: remove one"
        )
    return tail


def _from_json(tensor: InputTensor) -> bytes:
    try:
        return bytes(_flat(tensor.data, tensor.shape))
    except (TypeError, ValueError):
        raise Problem(
            "bad-body",
            f"expected 'data' to be whole numbers from 0 to 255, in one list or in lists nested as the shape "
            f"{list(tensor.shape)} says, but got something else: send so, or as binary data",
        ) from None


def _flat(data: Any, shape: Sequence[int]) -> list[Any]:
    """The innermost values of lists that are nested as the shape says, or not nested at all.

    Raises:
        ValueError: they are neither.
    """
    rows = [data]
    nested = isinstance(data, list) and data and isinstance(data[0], list)
    for length in shape if nested else (len(data) if isinstance(data, list) else -1,):
        if any(not isinstance(row, list) or len(row) != length for row in rows):
            raise ValueError
        rows = list(chain.from_iterable(rows))
    return rows


def _binary_by_default(parameters: dict[str, Any]) -> bool:
    """Taken out of the parameters; what is left are options."""
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise Problem("bad-option", f"expected 'binary_data_output' to be true or false, but got {binary!r}")
    return binary


def _carried(request: api.Request) -> dict[str, str]:
    """Options outside the body, which gives way to none of them."""
    in_query = {name: value.decode("utf-8", "replace") for name, value in request.fields.items() if name != "body"}
    return api.options_of_headers(request.headers) | in_query


def _options(given: Mapping[str, Any], spec: ModelSpec) -> api.Options:
    known = PARAMETERS[spec.task]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise Problem(
            "bad-option",
            f"expected parameters of v2 requests to be among {', '.join(known)}, "
            f"but got {', '.join(unknown)}: remove what is not",
        )
    try:
        options = api.Options.model_validate(given)
    except ValidationError as error:
        raise Problem("bad-option", explain(error)) from None
    api.check_classes(options.classes, spec)
    return options


def _outputs(
    requested: Sequence[RequestedOutput], *, task: Task, options: api.Options, binary: bool
) -> tuple[Output, ...]:
    known = {str(name): name for name in OUTPUTS[task]}
    names = [output.name for output in requested]
    if not set(names) <= known.keys() or len(set(names)) < len(names):
        raise Problem(
            "bad-body", f"expected outputs to be among {', '.join(known)}, each once, but got {', '.join(names)}"
        )
    if not requested:
        return tuple(Output(name=name, binary=binary) for name in DEFAULT_OUTPUTS[task])
    outputs = tuple(
        Output(
            name=known[output.name],
            binary=binary if output.parameters.binary_data is None else output.parameters.binary_data,
        )
        for output in requested
    )
    for output in outputs:
        _check_has_json(output, options)
    return outputs


def _check_has_json(output: Output, options: api.Options) -> None:
    if output.name == "probabilities" and options.precision == "float16" and not output.binary:
        raise Problem(
            "bad-option",
            "expected 'binary_data' to be true for probabilities of precision=float16, as JSON has no such numbers, "
            "but it is false: set it, or ask for precision=uint8",
        )


def _check_answer(inference: Inference, *, spec: ModelSpec, max_answer_bytes: int) -> None:
    """Refuse what cannot fit; what may fit is measured when it is written."""
    size = sum(_least_bytes(output, inference, spec) for output in inference.outputs)
    if size > max_answer_bytes:
        names = ", ".join(output.name for output in inference.outputs)
        raise Problem(
            "too-large",
            f"expected an answer of at most {max_answer_bytes} bytes, but {names} of {len(inference.images_BHWC)} "
            f"images have at least {size}: ask for fewer outputs, as binary data, or send fewer images",
        )


def _least_bytes(output: Output, inference: Inference, spec: ModelSpec) -> int:
    """Exact for binary maps; a number in JSON has a digit and a comma at least."""
    if spec.task == "classification" or output.name not in (*get_args(MapName), "probabilities"):
        return 0
    is_probabilities = output.name == "probabilities"
    values = math.prod(inference.images_BHWC.shape[:-1]) * (spec.num_classes if is_probabilities else 1)
    is_wide = is_probabilities and inference.options.precision == "float16"
    return values * (2 if is_wide or not output.binary else 1)
