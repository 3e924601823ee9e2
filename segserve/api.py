"""The HTTP contract as types: options, how they are read from a request, and the JSON answers.

Knows HTTP bodies and headers, but no server.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from segserve.multipart import read_form
from segserve.problem import Problem
from segserve.settings import Settings, explain
from segserve.spec import Aggregate, Measure, ModelSpec, Plan, Split, StoredPrecision

OPTION_HEADER = "x-segserve-"

HOW_TO_SEND = (
    "send the image's bytes with 'Content-Type: image/*' (curl: --data-binary @FILE -H 'Content-Type: image/jpeg'), "
    'as form field \'image\' (curl: -F image=@FILE), or as JSON {"image": "<base64>"}'
)


MAX_JSON_ITEMS = 10_000
"""Most keys and list entries in a JSON body: pydantic keeps a fault for each wrong one, a thousand times its bytes."""
MAX_LIST_CHARACTERS = 65_536
"""Of a list as text: 255 names of classes are shorter."""

Form = Literal["png", "json", "coco", "cvat", "labelstudio", "hf", "npz"]
Render = Literal["index", "overlay", "confidence", "uncertainty"]
Masks = Literal["rle", "polygons", "png", "none"]


class Options(Settings):
    """What a client may ask for; the first value of each is the default."""

    format: tuple[Form, ...] = Field(default=(), fail_fast=True)
    """Empty: by the Accept header, else PNG for segmentation and JSON for labels. Several: `multipart/mixed`."""
    render: tuple[Render, ...] = Field(default=("index",), fail_fast=True)
    """What PNG answers show; several: one PNG each, in `multipart/mixed`."""
    masks: Masks = "rle"
    """How JSON answers, COCO included, hold the masks."""
    tta: Plan = "none"
    """Views of test-time augmentation: flips, quarter turns and sizes of the image, that are predicted, too."""
    aggregate: Aggregate = "mean"
    """How the views' answers are joined: `mean` of the probabilities, of `logits`, their `max`, or a `vote`."""
    measure: Measure = "entropy"
    """What `render=uncertainty` shows."""
    classes: tuple[str, ...] = Field(default=(), fail_fast=True)
    """Names of the classes asked for; empty, or the word `all`: all."""
    objects: bool = False
    """Also each connected region (8 neighbours) of a class: its box, area, centroid and confidence."""
    split: Split = "none"
    """`watershed`: touching objects of a class are taken apart where their outline narrows."""
    min_area: int = Field(default=0, ge=0)
    """Regions of fewer pixels take the class of the largest region beside them, and objects of fewer are left out."""
    simplify: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Corners of polygons that cut off less than this squared, in pixels, are left out; 0: polygons follow the pixels'
    edges, and hold exactly the mask's pixels."""
    precision: StoredPrecision = "uint8"
    """Of the probabilities in `format=npz`: 255 = 1, or half-precision floats."""
    name: str = Field(default="image", min_length=1, max_length=255)
    """The image's file name, for the forms that name it: `coco`, `cvat`, `labelstudio`."""
    top_k: int = Field(default=5, ge=1)
    """How many labels, the likeliest first."""
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    """Counted from the request's arrival in the worker; no forward pass is begun after it."""

    @field_validator("format", "render", "classes", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if len(value) > MAX_LIST_CHARACTERS:
            raise ValueError(
                f"expected at most {MAX_LIST_CHARACTERS} characters, but got {len(value)}: send fewer names"
            )
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("classes", mode="before")
    @classmethod
    def _word_all(cls, value: object) -> object:
        return () if isinstance(value, str) and value.strip() == "all" else value

    @field_validator("format", "render", "classes")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("render")
    @classmethod
    def _something_to_show(cls, value: tuple[Render, ...]) -> tuple[Render, ...]:
        return value or ("index",)

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
    return image, _parse_options(
        {**options_of_headers(request.headers), **_as_text(request.fields), **from_body},
        request.headers.get("accept", ""),
    )


def options_of_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The options among a request's headers, by name."""
    return {
        name.removeprefix(OPTION_HEADER).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(OPTION_HEADER) and name != f"{OPTION_HEADER}request-id"
    }


def check_classes(names: Iterable[str], spec: ModelSpec) -> None:
    """A Problem where classes are asked for that the model does not have."""
    unknown = [name for name in names if name not in spec.class_names]
    if unknown:
        known = ", ".join(spec.class_names)
        raise Problem("bad-option", f"expected 'classes' to be among {known}, but got {', '.join(unknown)}")


def _parse_options(raw: Mapping[str, Any], accept: str) -> Options:
    try:
        options = Options.model_validate(raw)
    except ValidationError as error:
        raise Problem("bad-option", explain(error, known_keys=tuple(Options.model_fields))) from None
    return options if options.format else options.model_copy(update={"format": _accepted(accept)})


ACCEPTED: dict[str, tuple[Form, ...]] = {
    "image/png": ("png",),
    "application/json": ("json",),
    "multipart/mixed": ("png", "json"),
}
"""Media types a client may prefer, and the forms they stand for."""


def _accepted(accept: str) -> tuple[Form, ...]:
    """The forms the Accept header likes best; none where it likes several as well as any."""
    ratings = {media_type: _preference(accept, media_type) for media_type in ACCEPTED}
    best = max(ratings, key=lambda media_type: ratings[media_type])
    return ACCEPTED[best] if ratings[best] > ratings["image/png"] else ()


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
    content_type = media_type(request.headers)
    if content_type == "application/json":
        return _read_json(request.fields.get("body", b""))
    if content_type == "multipart/form-data":
        return _read_form(request)
    if content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        return request.fields.get("body", b""), {}
    raise Problem("unsupported-type", f"expected an image, but got Content-Type {content_type!r}: {HOW_TO_SEND}")


def media_type(headers: Mapping[str, str]) -> str:
    """Of the body, without parameters, in small letters; empty where none is named."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


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
    num_items = sum(map(body.count, (b",", b"[", b"{")))
    if num_items > MAX_JSON_ITEMS:
        raise Problem(
            "bad-body",
            f"expected at most {MAX_JSON_ITEMS} keys and list entries in JSON, but got {num_items}: send fewer",
        )
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
        raise Problem(
            "bad-body",
            f"expected base64 under 'image', but it cannot be decoded ({error}): send it alone, without 'data:...,'",
        ) from None


class ModelInfo(BaseModel):
    """Which model answered."""

    name: str
    version: str
    digest: str


class ImageInfo(BaseModel):
    """Upright size of the upload, pixels."""

    width: int
    height: int


class RleMask(BaseModel):
    """COCO compressed run-length encoding, as pycocotools reads it."""

    size: tuple[int, int]
    """Height, width."""
    counts: str


class PolygonMask(BaseModel):
    """GeoJSON MultiPolygon in pixel coordinates: (0, 0) is the image's upper left corner, x runs right and y down."""

    type: Literal["MultiPolygon"] = "MultiPolygon"
    coordinates: list[list[list[tuple[int, int]]]]
    """Polygons of rings of points, which are corners of pixels; the first ring of each is its outline, the others are
    its holes."""


class ClassAnswer(BaseModel):
    """One class that is present in the mask."""

    id: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    fraction: float
    confidence: float
    """Mean probability over its pixels."""
    count: int | None = None
    """Its objects, only with `objects=true`."""
    mask: RleMask | PolygonMask | None = None
    """Only with `masks=rle` or `masks=polygons`."""


class ObjectAnswer(BaseModel):
    """One object: a connected region of a class."""

    id: int
    """1, 2, ... in the order of the classes, then from top to bottom."""
    class_id: int
    class_name: str
    box: tuple[int, int, int, int]
    """x, y, width, height, in pixels."""
    area: int
    centroid: tuple[float, float]
    """x, y of the mean of its pixels' centres; the first pixel's centre is (0.5, 0.5)."""
    confidence: float
    mask: RleMask | PolygonMask | None = None


class PngMask(BaseModel):
    """The index mask, as base64 of a palette PNG."""

    encoding: Literal["png"] = "png"
    data: str


class Uncertainty(BaseModel):
    """0 to 1 each, means over the pixels: the entropy, how much the views of `tta` disagree, how often they agree."""

    mean_entropy: float
    mutual_information: float
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
    objects: list[ObjectAnswer] | None = None
    """Only with `objects=true`."""
    mask: PngMask | None = None
    """Only with `masks=png`."""
    windows: int
    """In how many pieces the network saw the image."""
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
    error: str | None = None
    """The detail once more, where clients of KServe's protocol look for it."""
