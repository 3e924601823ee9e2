"""The HTTP contract as an OpenAPI 3.1 document, generated from the types of `segserve.api`.

Says all that a client can receive: also what TorchServe answers before or instead of the service.
"""

import json
from importlib.metadata import version

from segserve.api import Options
from segserve.openapi_examples import OPTIONS, file_requests, form_requests, json_requests, tensor_requests
from segserve.openapi_schemas import (
    BYTES,
    INTEGER,
    TEXT,
    Json,
    component_schemas,
    form_schema,
    json_schema,
    option_schemas,
    ref,
)
from segserve.problem import STATUS, TITLE

BINARY = "application/octet-stream"
INFERENCE = "http://127.0.0.1:8080"
OPS = "http://127.0.0.1:8082"
SERVICE_HEADERS = ("X-Segserve-Model", "X-Segserve-Version", "X-Segserve-Request-Id", "Server-Timing")

DESCRIPTION = """\
POST an image, get the mask, as PNG, JSON or a file that your tool imports.

Options have the same names as form fields, JSON keys, in the query of `/models/{model}/invoke`, and as headers
`X-Segserve-<Option>`; a body's options win over the query's, those over the headers'. Without `format` the `Accept`
header decides between `image/png`, `application/json` and `multipart/mixed`. `/predictions/{model}/{version}` asks one
version of a model. What the service itself refuses is `application/problem+json`; where a status also has
`application/json`, that is TorchServe's own answer, without the headers of the service.
"""


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
            "/v2/models/{model}/infer": _infer(),
            "/metrics": _on_ops_port("metrics", "Prometheus metrics of the service and of TorchServe", _metrics()),
            "/ready": _on_ops_port("ready", "Whether every model has a worker that passed its self-check", _ready()),
            "/live": _on_ops_port("live", "Whether TorchServe runs and answers", _live()),
        },
        "components": {
            "parameters": _parameters(),
            "requestBodies": {"Image": _request_body()},
            "responses": _responses(),
            "headers": _headers(),
            "schemas": component_schemas(),
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
    return {"requestBody": {"$ref": "#/components/requestBodies/Image"}, "responses": _by_status("Answer")}


def _by_status(answer: str) -> Json:
    errors = {str(status): str(status) for status in (403, 404, *STATUS.values())}
    named = sorted({"200": answer, **errors}.items())
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in named}


def _infer() -> Json:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "The JSON's bytes, where binary tensors follow it",
        "schema": {"type": "integer", "minimum": 1},
    }
    operation = {
        "operationId": "infer",
        "summary": "Segment or classify a batch of pixel arrays: Open Inference Protocol v2",
        "parameters": [*_shared_parameters()[:2], length],
        "requestBody": _tensors_body(),
        "responses": _by_status("V2Answer"),
    }
    return {"post": operation}


def _tensors_body() -> Json:
    return {
        "required": True,
        "description": "One tensor of images of one size: upright RGB, 0 to 255, channels last",
        "content": {
            "application/json": {"schema": ref("V2Request"), "examples": tensor_requests()},
            BINARY: {"schema": BYTES},
        },
    }


def _shared_parameters() -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in _parameters()]


def _parameters() -> Json:
    """Those of the path and the headers, by name."""
    schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
    request_id = "Comes back as `X-Segserve-Request-Id`, and as `request_id` of a problem"
    named: list[Json] = [
        {"name": "model", "in": "path", "required": True, "description": "The model's name", "schema": schema},
        {"name": "X-Request-ID", "in": "header", "description": request_id, "schema": TEXT, "example": "req-1"},
        *(_option_parameter(name, in_query=False) for name in Options.model_fields),
    ]
    return {str(parameter["name"]): parameter for parameter in named}


def _option_parameter(name: str, *, in_query: bool) -> Json:
    schema = dict(option_schemas()[name])
    parameter = {
        "name": name if in_query else option_header(name),
        "in": "query" if in_query else "header",
        "description": schema.pop("description"),
        "style": "form" if in_query else "simple",
        "explode": False,
        "schema": schema,
    }
    return parameter | ({"example": OPTIONS[name]} if name in OPTIONS else {})


def option_header(name: str) -> str:
    """The header that carries an option: `X-Segserve-Top-K` for `top_k`."""
    return "X-Segserve-" + "-".join(part.capitalize() for part in name.split("_"))


def _request_body() -> Json:
    return {
        "required": True,
        "description": "The image: JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF, told from the bytes",
        "content": {
            **{name: {"schema": BYTES, "examples": file_requests(name)} for name in ("image/*", BINARY)},
            "multipart/form-data": _form_body(),
            "application/json": {"schema": json_schema(), "examples": json_requests()},
        },
    }


def _form_body() -> Json:
    lists = {name: {"style": "form", "explode": False} for name in ("format", "render", "classes")}
    return {
        "schema": form_schema(),
        "encoding": {"image": {"contentType": f"image/*, {BINARY}"}, **lists},
        "examples": form_requests(),
    }


def _responses() -> Json:
    return {
        "Answer": {
            "description": "The answer, in the form asked for",
            "headers": _refs(*SERVICE_HEADERS, "X-Segserve-Windows", "X-Segserve-Degraded"),
            "content": _answer_content(),
        },
        "V2Answer": {
            "description": "The tensors asked for; binary ones follow the JSON",
            "headers": _refs(*SERVICE_HEADERS, "Inference-Header-Content-Length", "X-Segserve-Degraded"),
            "content": {
                "application/json": {"schema": ref("V2Answer")},
                BINARY: {"schema": BYTES},
            },
        },
        "403": {"description": "From TorchServe: the URL cannot be decoded", "content": _torchserve_content()},
        "404": {"description": "From TorchServe: no such model or version", "content": _torchserve_content()},
        **{str(status): _problem_response(status) for status in sorted(set(STATUS.values()))},
    }


def _answer_content() -> Json:
    documents = ("SegmentationAnswer", "LabelsAnswer", "CocoAnnotations", "LabelStudioTasks", "HuggingFaceList")
    return {
        "image/png": {"schema": BYTES},
        "application/json": {"schema": {"anyOf": [ref(name) for name in documents]}},
        "application/xml": {"schema": {"type": "string", "description": "`format=cvat`: CVAT for images 1.1"}},
        "application/x-npz": {"schema": BYTES | {"description": "`format=npz`: arrays for `numpy.load`"}},
        "multipart/mixed": {"schema": BYTES | {"description": "Several forms, or several `render`"}},
    }


TORCHSERVE_ALSO: dict[int, str] = {
    400: "From TorchServe, for an address above 4096 bytes or headers above 8192: options in a form have no such limit",
    413: "From TorchServe, for a body above 64 MiB: empty",
    500: "From TorchServe: the worker ended or did not answer in time; what was in its batch is lost",
    503: "From TorchServe: its queue is full, or the model has no worker; without `Retry-After`",
    507: "From TorchServe: the uploads in progress fill its memory",
}
"""When a status is not the service's."""


def _problem_response(status: int) -> Json:
    titles = [TITLE[kind] + f" (`{kind}`)" for kind in STATUS if STATUS[kind] == status]
    content = {"application/problem+json": {"schema": ref("ProblemAnswer")}}
    if status in TORCHSERVE_ALSO and status != 413:
        content |= _torchserve_content()
    return {
        "description": ". ".join([*titles, *filter(None, [TORCHSERVE_ALSO.get(status)])]),
        "headers": _refs(*SERVICE_HEADERS, *(["Retry-After"] if status == 503 else [])),
        "content": content,
    }


def _torchserve_content() -> Json:
    return {"application/json": {"schema": ref("TorchServeError")}}


def _on_ops_port(name: str, summary: str, responses: Json) -> Json:
    return {
        "servers": [{"url": OPS, "description": "ops port"}],
        "get": {"operationId": name, "summary": summary, "responses": responses},
    }


def _metrics() -> Json:
    return {"200": {"description": "Text format 0.0.4", "content": {"text/plain": {"schema": TEXT}}}}


def _ready() -> Json:
    ready: Json = {"description": "Ready", "content": {"application/json": {"schema": ref("Readiness")}}}
    return {"200": ready, "503": ready | {"description": "Not ready, and why", "headers": _refs("Retry-After")}}


def _live() -> Json:
    live: Json = {"description": "Live", "content": {"application/json": {"schema": ref("Liveness")}}}
    return {"200": live, "503": live | {"description": "Restart it", "headers": _refs("Retry-After")}}


def _refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _headers() -> Json:
    return {
        "X-Segserve-Model": {"description": "The model that answered", "schema": TEXT},
        "X-Segserve-Version": {"description": "Its version", "schema": TEXT},
        "X-Segserve-Request-Id": {"description": "The client's `X-Request-ID`, if it sent one", "schema": TEXT},
        "X-Segserve-Windows": {"description": "In how many pieces the network saw the image", "schema": INTEGER},
        "X-Segserve-Degraded": {
            "description": "`tta`: the request waited so long that test-time augmentation was left out",
            "schema": {"type": "string", "enum": ["tta"]},
        },
        "Inference-Header-Content-Length": {"description": "The JSON's bytes before binary tensors", "schema": INTEGER},
        "Server-Timing": {"description": "Milliseconds of each stage: `decode;dur=1.2, ...`", "schema": TEXT},
        "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}},
    }
