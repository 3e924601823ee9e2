"""The HTTP contract as an OpenAPI 3.1 document, generated from the types of `segserve.api`.

Says all that a client can receive: also what TorchServe answers before or instead of the service.
"""

import ast
import base64
import inspect
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from segserve import api
from segserve.api import Form, Options, Render
from segserve.problem import STATUS, TITLE

Json = dict[str, Any]

INFERENCE = "http://127.0.0.1:8080"
OPS = "http://127.0.0.1:8082"
ANSWERS: tuple[type[BaseModel], ...] = (api.SegmentationAnswer, api.LabelsAnswer, api.ProblemAnswer)
TEXT = {"type": "string"}
BYTES = {"type": "string", "format": "binary"}

DESCRIPTION = """\
POST an image, get the mask, as PNG, JSON or a file that your tool imports.

Options have the same names as form fields, JSON keys, in the query of `/models/{model}/invoke`, and as headers
`X-Segserve-<Option>`; a body's options win over the query's, those over the headers'. Without `format` the `Accept`
header decides between `image/png`, `application/json` and `multipart/mixed`. `/predictions/{model}/{version}` asks one
version of a model. What the service itself refuses is `application/problem+json`; where a status also has
`application/json`, that is TorchServe's own answer, without the headers of the service.
"""

EXAMPLES: dict[str, object] = {
    "format": ("json",),
    "render": ("overlay",),
    "masks": "polygons",
    "tta": "flips",
    "aggregate": "vote",
    "measure": "disagreement",
    "objects": True,
    "split": "watershed",
    "min_area": 16,
    "simplify": 1.5,
    "precision": "float16",
    "name": "cells-07.png",
    "top_k": 2,
    "deadline_ms": 60000,
}
"""A value for each option that means something to every model; the names of `classes` are each model's own."""


def as_text() -> str:
    """The document as it is printed and kept in `docs/openapi.json`."""
    return json.dumps(document(), indent=1) + "\n"


def document() -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segserve",
            "summary": "Image segmentation and classification",
            "description": DESCRIPTION,
            "version": version("segserve"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": INFERENCE, "description": "inference port"}],
        "paths": {
            "/predictions/{model}": _predictions(),
            "/models/{model}/invoke": _invoke(),
            "/metrics": _on_ops_port("metrics", "Prometheus metrics of the service and of TorchServe", _metrics()),
            "/ready": _on_ops_port("ready", "Whether every model has a worker that passed its self-check", _ready()),
            "/live": _on_ops_port("live", "Whether TorchServe runs and answers", _live()),
        },
        "components": {
            "parameters": _parameters(),
            "requestBodies": {"Image": _request_body()},
            "responses": _prediction_responses(),
            "headers": _headers(),
            "schemas": _schemas(),
        },
    }


def _predictions() -> Json:
    operation = {"operationId": "predict", "summary": "Segment or classify an image", **_asked_and_answered()}
    return {"parameters": _shared_parameters(), "post": operation}


def _invoke() -> Json:
    operation = {
        "operationId": "invoke",
        "summary": "The same, with options in the query",
        "parameters": [_option_parameter(name, in_query=True) for name in Options.model_fields],
        **_asked_and_answered(),
    }
    return {"parameters": _shared_parameters(), "post": operation}


def _asked_and_answered() -> Json:
    statuses = ["200", "404", *(str(status) for status in sorted(set(STATUS.values())))]
    return {
        "requestBody": {"$ref": "#/components/requestBodies/Image"},
        "responses": {status: {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)},
    }


def _shared_parameters() -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in _parameters()]


def _parameters() -> Json:
    """Those of the path and the headers, by name."""
    schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
    request_id = "Comes back as `X-Segserve-Request-Id`, and as `request_id` of a problem"
    named = [
        {"name": "model", "in": "path", "required": True, "description": "The model's name", "schema": schema},
        {"name": "X-Request-ID", "in": "header", "description": request_id, "schema": TEXT, "example": "req-1"},
        *(_option_parameter(name, in_query=False) for name in Options.model_fields),
    ]
    return {str(parameter["name"]): parameter for parameter in named}


def _option_parameter(name: str, *, in_query: bool) -> Json:
    schema = dict(_option_schemas()[name])
    parameter = {
        "name": name if in_query else option_header(name),
        "in": "query" if in_query else "header",
        "description": schema.pop("description"),
        "style": "form" if in_query else "simple",
        "explode": False,
        "schema": schema,
    }
    return parameter | ({"example": EXAMPLES[name]} if name in EXAMPLES else {})


def option_header(name: str) -> str:
    """The header that carries an option: `X-Segserve-Top-K` for `top_k`."""
    return "X-Segserve-" + "-".join(part.capitalize() for part in name.split("_"))


def _request_body() -> Json:
    image = {"schema": BYTES, "examples": {"PNG file": _external("image/png", example_png())}}
    some_bytes = {"schema": BYTES, "examples": {"PNG file": _external("application/octet-stream", example_png())}}
    return {
        "required": True,
        "description": "The image: JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF, told from the bytes",
        "content": {
            "image/*": image,
            "application/octet-stream": some_bytes,
            "multipart/form-data": _form_body(),
            "application/json": _json_body(),
        },
    }


def _form_body() -> Json:
    options = {"format": "json", "tta": "flips", "top_k": "2"}
    return {
        "schema": _request_schema(BYTES | {"description": "The file"}, _option_schemas()),
        "encoding": {
            "image": {"contentType": "image/*, application/octet-stream"},
            **{name: {"style": "form", "explode": False} for name in ("format", "render", "classes")},
        },
        "examples": {"file and options": _external("multipart/form-data; boundary=part", example_form(options))},
    }


def _json_body() -> Json:
    image = {
        "type": "string",
        "contentEncoding": "base64",
        "contentMediaType": "image/*",
        "description": "The file, as base64",
    }
    png = base64.b64encode(example_png()).decode()
    with_options = {"image": png, "format": ["json"], "masks": "polygons", "tta": "hflip", "objects": True, "top_k": 2}
    options = {name: _as_text_too(name, schema) for name, schema in _option_schemas().items()}
    return {
        "schema": _request_schema(image, options),
        "examples": {
            "image only": {"value": {"image": png}},
            "with options": {"value": with_options},
            "every form": {"value": {"image": png, "format": list(get_args(Form))}},
            "every picture": {"value": {"image": png, "render": ",".join(get_args(Render))}},
        },
    }


def _request_schema(image: Json, options: Mapping[str, Json]) -> Json:
    return {
        "type": "object",
        "required": ["image"],
        "properties": {"image": image, **options},
        "additionalProperties": False,
    }


def _as_text_too(name: str, schema: Json) -> Json:
    """In JSON a list may also be written as in the other carriers, with commas."""
    if schema.get("type") != "array":
        return schema
    text: Json = {"type": "string", "description": "The same with commas between"}
    if "enum" in schema["items"]:
        choice = "|".join(schema["items"]["enum"])
        text["pattern"] = f"^({choice})(, *({choice}))*$"
    kept = {key: value for key, value in schema.items() if key in ("description", "default")}
    as_list = {key: value for key, value in schema.items() if key not in kept}
    return {**kept, "anyOf": [as_list, text]}


@cache
def _option_schemas() -> dict[str, Json]:
    """Each option's, for any carrier."""
    properties: dict[str, Json] = _described(Options, Options.model_json_schema())["properties"]
    for name in ("format", "classes"):
        del properties[name]["default"]  # the description says what an empty list means
    return properties


def _external(media_type: str, body: bytes) -> Json:
    """An example that JSON cannot hold as it is."""
    return {"externalValue": f"data:{media_type.replace(' ', '')};base64,{base64.b64encode(body).decode()}"}


def example_png() -> bytes:
    """A white disc on black, 16x16, 1 bit a pixel; stored, not compressed, as zlib's versions differ."""
    rows = [sum(1 << (15 - x) for x in range(16) if (x - 7.5) ** 2 + (y - 7.5) ** 2 < 36) for y in range(16)]
    pixels = zlib.compress(b"".join(b"\0" + struct.pack(">H", row) for row in rows), level=0)
    header = struct.pack(">IIBBBBB", 16, 16, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def example_form(options: Mapping[str, str]) -> bytes:
    """A form with `example_png`; its boundary is `part`."""
    head = b'--part\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = [head % (name.encode(), b"", value.encode()) for name, value in options.items()]
    return head % (b"image", b'; filename="disc.png"', example_png()) + b"".join(fields) + b"--part--\r\n"


def _prediction_responses() -> Json:
    return {
        "200": {
            "description": "The answer, in the form asked for",
            "headers": _refs("X-Segserve-Model", "X-Segserve-Version", "X-Segserve-Request-Id", "Server-Timing"),
            "content": _answer_content(),
        },
        "404": {"description": "TorchServe has no such model or version", "content": _torchserve_content()},
        **{str(status): _problem_response(status) for status in sorted(set(STATUS.values()))},
    }


def _answer_content() -> Json:
    return {
        "image/png": {"schema": BYTES},
        "application/json": {"schema": {"anyOf": [_ref("SegmentationAnswer"), _ref("LabelsAnswer")]}},
    }


TORCHSERVE_ALSO: dict[int, str] = {
    413: "From TorchServe, for a body above 64 MiB: empty",
    500: "From TorchServe: the worker ended or did not answer in time; what was in its batch is lost",
    503: "From TorchServe: its queue is full, or the model has no worker; without `Retry-After`",
    507: "From TorchServe: the uploads in progress fill its memory",
}
"""When a status is not the service's."""


def _problem_response(status: int) -> Json:
    titles = [TITLE[kind] + f" (`{kind}`)" for kind in STATUS if STATUS[kind] == status]
    headers = ["X-Segserve-Model", "X-Segserve-Version", "X-Segserve-Request-Id", "Server-Timing"]
    content = {"application/problem+json": {"schema": _ref("ProblemAnswer")}}
    if status in TORCHSERVE_ALSO and status != 413:
        content |= _torchserve_content()
    return {
        "description": ". ".join([*titles, *filter(None, [TORCHSERVE_ALSO.get(status)])]),
        "headers": _refs(*headers, *(["Retry-After"] if status == 503 else [])),
        "content": content,
    }


def _torchserve_content() -> Json:
    return {"application/json": {"schema": _ref("TorchServeError")}}


def _on_ops_port(name: str, summary: str, responses: Json) -> Json:
    return {
        "servers": [{"url": OPS, "description": "ops port"}],
        "get": {"operationId": name, "summary": summary, "responses": responses},
    }


def _metrics() -> Json:
    return {"200": {"description": "Text format 0.0.4", "content": {"text/plain": {"schema": TEXT}}}}


def _ready() -> Json:
    ready: Json = {"description": "Ready", "content": {"application/json": {"schema": _ref("Readiness")}}}
    return {"200": ready, "503": ready | {"description": "Not ready, and why", "headers": _refs("Retry-After")}}


def _live() -> Json:
    live: Json = {"description": "Live", "content": {"application/json": {"schema": _ref("Liveness")}}}
    return {"200": live, "503": live | {"description": "Restart it", "headers": _refs("Retry-After")}}


def _schemas() -> Json:
    _, answers = models_json_schema([(model, "validation") for model in ANSWERS], ref_template=REF)
    named = {name: _described(getattr(api, name), schema) for name, schema in answers["$defs"].items()}
    reasons = {"type": "array", "items": TEXT}
    workers = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
    versions = {"type": "object", "additionalProperties": workers}
    return named | {
        "TorchServeError": _object("TorchServe's own answer", code={"type": "integer"}, type=TEXT, message=TEXT),
        "Readiness": _object(
            "Workers of each model's versions, by state; why not ready",
            status={"enum": ["ready", "unready", "draining"]},
            models={"type": "object", "additionalProperties": versions},
            optional={"reasons": reasons},
        ),
        "Liveness": _object("Why not live", status={"enum": ["live", "dead"]}, optional={"reasons": reasons}),
    }


def _object(description: str, *, optional: Mapping[str, Json] | None = None, **required: Json) -> Json:
    return {
        "type": "object",
        "description": description,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


REF = "#/components/schemas/{model}"


def _ref(name: str) -> Json:
    return {"$ref": REF.format(model=name)}


def _refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _headers() -> Json:
    return {
        "X-Segserve-Model": {"description": "The model that answered", "schema": TEXT},
        "X-Segserve-Version": {"description": "Its version", "schema": TEXT},
        "X-Segserve-Request-Id": {"description": "The client's `X-Request-ID`, if it sent one", "schema": TEXT},
        "Server-Timing": {"description": "Milliseconds of each stage: `decode;dur=1.2, ...`", "schema": TEXT},
        "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}},
    }


def _described(model: type[BaseModel], schema: Json) -> Json:
    """The schema with the docstrings of the model's attributes in it, and without titles and nulls.

    Absent values are left out of answers, and options are left out to have none.
    """
    docs = dict(_attribute_docs(model))
    properties = {name: _tidy(value) for name, value in schema["properties"].items()}
    for name in docs.keys() & properties.keys():
        properties[name]["description"] = docs[name]
    return {key: value for key, value in schema.items() if key != "title"} | {"properties": properties}


def _tidy(value: Json) -> Json:
    tidied = {key: entry for key, entry in value.items() if key != "title"}
    choices: Sequence[Json] = [choice for choice in tidied.pop("anyOf", []) if choice != {"type": "null"}]
    if not choices:
        return tidied
    if tidied.get("default", 0) is None:
        del tidied["default"]
    return tidied | ({"anyOf": choices} if len(choices) > 1 else choices[0])


def _attribute_docs(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str() as text)):
                yield name, inspect.cleandoc(text)
