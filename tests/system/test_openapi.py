"""The service against its OpenAPI document: every example in it, and what schemathesis makes of it."""

import base64
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import checks

from handlers.local_service import LocalService
from segserve.openapi import document
from segserve.openapi_examples import PIXELS, example_png

pytestmark = pytest.mark.system

DOCUMENT = document()
OPERATIONS = {path: method for path, item in DOCUMENT["paths"].items() for method in ("get", "post") if method in item}
GETS = [path for path, method in OPERATIONS.items() if method == "get"]
POSTS = [path for path, method in OPERATIONS.items() if method == "post"]
SEGMENTATION, CLASSIFICATION = "demo-segmentation", "demo-classification"
MASKS_ONLY = "every form"


def resolved(node: Any) -> Any:
    """The node with what its references lead to in their place."""
    if isinstance(node, dict) and "$ref" in node:
        target = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return resolved(target)
    if isinstance(node, dict):
        return {key: resolved(value) for key, value in node.items()}
    return [resolved(entry) for entry in node] if isinstance(node, list) else node


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example of the document, as a request."""

    name: str
    path: str
    headers: dict[str, str]
    content: bytes
    query: dict[str, str] = field(default_factory=dict)

    def send(self, service: LocalService, model: str) -> httpx.Response:
        address = service.inference + self.path.replace("{model}", model)
        return httpx.post(address, headers=self.headers, params=self.query, content=self.content, timeout=60)


def examples() -> Iterator[Example]:
    """Those of bodies on every path, those of parameters once."""
    done = set()
    for path in POSTS:
        item = resolved(DOCUMENT["paths"][path])
        bodies = list(body_examples(path, item["post"]["requestBody"]))
        yield from bodies
        for parameter in [*item.get("parameters", []), *item["post"].get("parameters", [])]:
            if "example" in parameter and parameter["name"] not in done:
                done.add(parameter["name"])
                yield with_parameter(bodies[0], parameter)


def body_examples(path: str, body: dict[str, Any]) -> Iterator[Example]:
    for media_type, described in body["content"].items():
        for name, example in described.get("examples", {}).items():
            sent_type, content = media_type, json.dumps(example.get("value")).encode()
            if "externalValue" in example:
                head, _, data = example["externalValue"].partition(";base64,")
                sent_type, content = head.removeprefix("data:"), base64.b64decode(data)
            yield Example(name=name, path=path, headers={"Content-Type": sent_type}, content=content)


def with_parameter(example: Example, parameter: dict[str, Any]) -> Example:
    value = parameter["example"]
    text = ",".join(value) if isinstance(value, tuple | list) else json.dumps(value).strip('"')
    name = parameter["name"]
    if parameter["in"] == "query":
        return replace(example, name=f"?{name}={text}", query={name: text})
    return replace(example, name=f"{name}: {text}", headers={**example.headers, name: text})


EXAMPLES = list(examples())
BODY_EXAMPLES = [
    example
    for path in POSTS
    for example in body_examples(path, resolved(DOCUMENT["paths"][path]["post"]["requestBody"]))
]


def conforms(answer: httpx.Response, path: str) -> None:
    """Status, content type, headers and body are among those the document has for the path."""
    SCHEMA[path][OPERATIONS[path].upper()].validate_response(answer)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.path} {example.name}")
def test_examples_are_answered_as_documented(service: LocalService, example: Example) -> None:
    answer = example.send(service, SEGMENTATION)
    assert answer.status_code == 200, answer.text
    conforms(answer, example.path)


@pytest.mark.parametrize("example", BODY_EXAMPLES, ids=lambda example: f"{example.path} {example.name}")
def test_examples_fit_a_model_that_gives_labels(service: LocalService, example: Example) -> None:
    answer = example.send(service, CLASSIFICATION)
    assert answer.status_code == (400 if example.name == MASKS_ONLY else 200), answer.text
    conforms(answer, example.path)


@pytest.mark.parametrize("path", GETS)
def test_the_ops_port_answers_as_documented(service: LocalService, path: str) -> None:
    answer = httpx.get(service.ops + path)
    assert answer.status_code == 200
    conforms(answer, path)


@pytest.mark.parametrize("path", POSTS)
def test_an_unknown_model_is_answered_as_documented(service: LocalService, path: str) -> None:
    answer = httpx.post(service.inference + path.replace("{model}", "nobody"), content=example_png())
    assert answer.status_code == 404
    conforms(answer, path)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("long", [{"params": {"name": "x" * 5000}}, {"headers": {"X-Segserve-Name": "x" * 9000}}])
def test_too_long_a_head_is_answered_as_documented(service: LocalService, path: str, long: dict[str, Any]) -> None:
    address = service.inference + path.replace("{model}", SEGMENTATION)
    answer = httpx.post(address, content=example_png(), **long)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/json"
    conforms(answer, path)


A_FILE = "a file"
PNG_BASE64 = base64.b64encode(example_png()).decode()
FILES = [example_png(), example_png(), example_png(), example_png()[:-20], b"\x89PNG\r\n\x1a\n", b"GIF89a", b""]
"""An image, and what only begins like one."""


def for_schemathesis() -> dict[str, Any]:
    """The document of this service: with the names of its models and classes, and with images that are images.

    One media type stands for each range, since a client sends no ranges.
    """
    made = deepcopy(DOCUMENT)
    components = made["components"]
    components["parameters"]["model"]["schema"] = {"enum": [SEGMENTATION, CLASSIFICATION]}
    components["parameters"]["X-Segserve-Classes"]["schema"]["items"] = {"enum": ["all", "cell", "scratch"]}
    made["paths"]["/v2/models/{model}/infer"]["post"]["parameters"].pop()  # the length, see `before_call`
    components["schemas"]["V2Request"]["properties"]["inputs"] = {"enum": [[PIXELS]]}
    content = components["requestBodies"]["Image"]["content"]
    content["multipart/form-data"]["schema"]["properties"]["image"] = {"enum": [A_FILE]}
    content["application/json"]["schema"]["properties"]["image"] = {"enum": [PNG_BASE64]}
    content["image/png"] = content.pop("image/*")
    return made


SCHEMA = schemathesis.openapi.from_dict(for_schemathesis())
SCHEMA.config.checks.not_a_server_error.expected_statuses = ["2xx", "4xx", "504"]
"""504 is what `deadline_ms` asks for."""
SCHEMA.config.phases.coverage.unexpected_methods = {"put", "patch", "delete", "options", "trace"}

for media_type in ("image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, st.sampled_from(FILES) | st.binary(max_size=64))


@SCHEMA.hook
def flatmap_body(context: Any, body: Any) -> st.SearchStrategy[Any]:
    """Forms hold the files; schemathesis cannot vary a form with bytes in it."""
    if isinstance(body, dict) and body.get("image") == A_FILE:
        return st.sampled_from(FILES).map(lambda image: {**body, "image": image})
    return st.just(body)


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, **_: Any) -> None:
    """Bytes on the v2 path are tensors after JSON; without the header that says so they are asked as on the others."""
    if case.path.startswith("/v2/") and case.media_type == "application/octet-stream":
        length = len(case.body) if isinstance(case.body, bytes) else 1
        case.headers["Inference-Header-Content-Length"] = str(max(1, length // 2))


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES_EACH = int(os.environ.get("SEGSERVE_EXAMPLES", "15"))
"""Drawn for each path, beside the hundreds that schemathesis derives from the schemas; 2000 take some ten minutes."""
drawn = settings(max_examples=EXAMPLES_EACH, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@SCHEMA.include(method="POST").parametrize()
@drawn
def test_whatever_is_sent_is_answered_as_documented(case: schemathesis.Case, service: LocalService) -> None:
    case.call_and_validate(base_url=service.inference, checks=CHECKS, timeout=60)


@SCHEMA.include(method="GET").parametrize()
@drawn
def test_whatever_is_sent_to_the_ops_port_too(case: schemathesis.Case, service: LocalService) -> None:
    case.call_and_validate(base_url=service.ops, checks=CHECKS, timeout=60)
