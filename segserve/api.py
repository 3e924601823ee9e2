"""The HTTP contract as types: options, how they are read from a request, and the JSON answers.

Knows HTTP bodies and headers, but no server.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from segserve.multipart import read_form
from segserve.problem import Problem
from segserve.settings import Settings, explain
from segserve.spec import Aggregate, Plan

OPTION_HEADER = "x-segserve-"

HOW_TO_SEND = (
    "send the image's bytes with 'Content-Type: image/*' (curl: --data-binary @FILE -H 'Content-Type: image/jpeg'), "
    'as form field \'image\' (curl: -F image=@FILE), or as JSON {"image": "<base64>"}'
)


class Options(Settings):
    """What a client may ask for; the first value of each is the default."""

    format: Literal["png", "json"] | None = None
    """None: by the Accept header, else PNG for segmentation. Labels are always JSON."""
    render: Literal["index", "overlay", "confidence", "uncertainty"] = "index"
    masks: Literal["rle", "png", "none"] = "rle"
    tta: Plan = "none"
    aggregate: Aggregate = "mean"
    classes: tuple[str, ...] = ()
    """Names of the classes asked for; empty, or the word `all`: all."""
    top_k: int = Field(default=5, ge=1)
    deadline_ms: int | None = Field(default=None, ge=1)
    """Counted from the request's arrival in the worker."""

    @field_validator("classes", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return () if value == "all" else tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("deadline_ms", mode="before")
    @classmethod
    def _word_none(cls, value: object) -> object:
        return None if value == "none" else value


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as any server can hand it over."""

    headers: Mapping[str, str]
    """Names in lower case."""
    fields: Mapping[str, bytes]
    """The query's parameters, and `body`, or the form's fields where the server has parsed it."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """A whole answer."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes


def parse_request(request: Request) -> tuple[bytes, Options]:
    """The image's bytes and the options; a body's options win over the query's, those over the headers'.

    Raises:
        Problem: `bad-option`, `bad-body` or `unsupported-type`.
    """
    image, from_body = _read_body(request)
    from_headers = {
        name.removeprefix(OPTION_HEADER).replace("-", "_"): value
        for name, value in request.headers.items()
        if name.startswith(OPTION_HEADER) and name != f"{OPTION_HEADER}request-id"
    }
    return image, _parse_options(
        {**from_headers, **_as_text(request.fields), **from_body}, request.headers.get("accept", "")
    )


def _parse_options(raw: Mapping[str, Any], accept: str) -> Options:
    try:
        options = Options.model_validate(raw)
    except ValidationError as error:
        raise Problem("bad-option", explain(error, known_keys=tuple(Options.model_fields))) from None
    if options.format is None and _prefers_json(accept):
        return options.model_copy(update={"format": "json"})
    return options


def _prefers_json(accept: str) -> bool:
    return _preference(accept, "application/json") > _preference(accept, "image/png")


def _preference(accept: str, media_type: str) -> tuple[float, int]:
    """How an Accept header rates a type: q of the most specific range that covers it (RFC 9110, 12.5.1), then how
    specific that range is: 0 for `*/*`, 1 for the family, 2 for the name. (0, -1): not wanted."""
    ranges = ("*/*", media_type.split("/")[0] + "/*", media_type)
    quality, specificity = 0.0, -1
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name in ranges and ranges.index(name) > specificity:
            quality, specificity = _quality(parameters), ranges.index(name)
    return (quality, specificity) if quality else (0.0, -1)


def _quality(parameters: Sequence[str]) -> float:
    """The q value among a range's parameters; 1 where there is none that makes sense."""
    given = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    return float(given) if given.replace(".", "", 1).isdecimal() else 1.0


def _read_body(request: Request) -> tuple[bytes, Mapping[str, Any]]:
    content_type = _media_type(request.headers.get("content-type", ""))
    if content_type == "application/json":
        return _read_json(request.fields.get("body", b""))
    if content_type == "multipart/form-data":
        return _read_form(request)
    if content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        return request.fields.get("body", b""), {}
    raise Problem("unsupported-type", f"expected an image, but got Content-Type {content_type!r}: {HOW_TO_SEND}")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _read_form(request: Request) -> tuple[bytes, Mapping[str, Any]]:
    """Some servers parse forms themselves; `segserve serve` hands them over as they were sent."""
    fields = request.fields
    if "body" in fields:
        fields = read_form(request.headers["content-type"], fields["body"])
    if "image" not in fields:
        names = ", ".join(sorted(fields)) or "no field"
        raise Problem("bad-body", f"expected a file field 'image' in the form, but got {names}: {HOW_TO_SEND}")
    return fields["image"], _as_text(fields)


def _as_text(fields: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.decode("utf-8", "replace") for name, value in fields.items() if name not in ("body", "image")}


def _read_json(body: bytes) -> tuple[bytes, Mapping[str, Any]]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem("bad-body", f"expected a JSON object, but it cannot be parsed ({error}): {HOW_TO_SEND}") from None
    if not isinstance(document, dict) or not isinstance(document.get("image"), str):
        raise Problem("bad-body", f"expected a JSON object with the image as base64 text under 'image': {HOW_TO_SEND}")
    text = document.pop("image")
    try:
        return base64.b64decode("".join(text.split()), validate=True), document  # `base64 FILE` breaks lines
    except (binascii.Error, ValueError) as error:
        raise Problem("bad-body", f"expected base64 under 'image', but it cannot be decoded: {error}") from None


class ModelInfo(BaseModel):
    """Which model answered."""

    name: str
    version: str
    digest: str


class ImageInfo(BaseModel):
    """Upright size of the upload, pixels."""

    width: int
    height: int


class ClassAnswer(BaseModel):
    """One class that is present in the mask."""

    id: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    fraction: float
    confidence: float
    """Mean probability over its pixels."""
    mask: dict[str, Any] | None = None
    """COCO compressed RLE, only with `masks=rle`."""


class PngMask(BaseModel):
    """The index mask, as base64 of a palette PNG."""

    encoding: Literal["png"] = "png"
    data: str


class Uncertainty(BaseModel):
    """0 to 1 each: entropy over its maximum, and how far the views agree with the answer."""

    mean_entropy: float
    view_agreement: float


class TtaInfo(BaseModel):
    """The views that were seen."""

    plan: Plan
    views: int
    aggregate: Aggregate


class SegmentationAnswer(BaseModel):
    """JSON answer to a segmentation request."""

    model: ModelInfo
    image: ImageInfo
    classes: list[ClassAnswer]
    mask: PngMask | None = None
    uncertainty: Uncertainty
    tta: TtaInfo
    timings_ms: dict[str, float]


class Label(BaseModel):
    """One class and its probability."""

    id: int
    name: str
    probability: float


class LabelsAnswer(BaseModel):
    """JSON answer to a classification request; labels sorted, the likeliest first."""

    model: ModelInfo
    image: ImageInfo
    labels: list[Label]
    uncertainty: Uncertainty
    tta: TtaInfo
    timings_ms: dict[str, float]


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
