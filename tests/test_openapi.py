import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote_to_bytes

import jsonschema_rs
import numpy as np
import pytest
from PIL import Image
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from segserve import v2
from segserve.api import Options, Request, parse_request
from segserve.multipart import read_form
from segserve.openapi import as_text, document, option_header
from segserve.openapi_examples import example_png
from segserve.openapi_schemas import V2_OUTPUTS, V2_PARAMETERS
from segserve.problem import STATUS, ProblemKind
from segserve.spec import Task
from tests.conftest import tiny_spec

ROOT = Path(__file__).parents[1]
DOCUMENT = document()
COMPONENTS = DOCUMENT["components"]
BODIES = COMPONENTS["requestBodies"]["Image"]["content"]


def everything_in(node: Any) -> Iterator[Any]:
    """The node and all below it."""
    yield node
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from everything_in(child)


def external(example: dict[str, str]) -> tuple[str, bytes]:
    """Media type and bytes of an example that is a data URI."""
    head, _, data = example["externalValue"].partition(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(unquote_to_bytes(data), validate=True)


def test_it_is_an_openapi_document() -> None:
    problems = [f"{list(error.instance_path)}: {error.message}" for error in OPENAPI_31_VALIDATOR.iter_errors(DOCUMENT)]
    assert problems == []


def test_its_schemas_are_json_schemas() -> None:
    """OpenAPI's own schema does not look inside them."""
    schemas = [node["schema"] for node in everything_in(DOCUMENT) if isinstance(node, dict) and "schema" in node]
    for schema in [*schemas, *COMPONENTS["schemas"].values()]:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_reference_leads_somewhere() -> None:
    for node in everything_in(DOCUMENT):
        if isinstance(node, dict) and "$ref" in node:
            *path, name = node["$ref"].removeprefix("#/components/").split("/")
            assert name in COMPONENTS[path[0]], node


def test_every_component_is_referred_to() -> None:
    used = {node["$ref"] for node in everything_in(DOCUMENT) if isinstance(node, dict) and "$ref" in node}
    assert used == {f"#/components/{kind}/{name}" for kind, named in COMPONENTS.items() for name in named}


def test_the_committed_copy_is_this_one() -> None:
    renew = "renew it: .venv/bin/segserve openapi > docs/openapi.json"
    assert (ROOT / "docs/openapi.json").read_text() == as_text(), renew


def test_the_command_prints_it_without_torch() -> None:
    program = "import sys, cli; cli.main(['openapi']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (printed.returncode, printed.stdout) == (0, as_text()), printed.stderr


@pytest.mark.parametrize("option", Options.model_fields)
def test_every_option_is_in_every_carrier_and_explained(option: str) -> None:
    query = {
        parameter["name"]: parameter for parameter in DOCUMENT["paths"]["/models/{model}/invoke"]["post"]["parameters"]
    }
    described = [
        query[option],
        COMPONENTS["parameters"][option_header(option)],
        BODIES["multipart/form-data"]["schema"]["properties"][option],
        BODIES["application/json"]["schema"]["properties"][option],
    ]
    assert len({entry["description"] for entry in described}) == 1


@pytest.mark.parametrize("kind", get_args(ProblemKind))
def test_every_problem_is_under_its_status(kind: ProblemKind) -> None:
    answer = COMPONENTS["responses"][str(STATUS[kind])]
    assert f"`{kind}`" in answer["description"]
    assert "application/problem+json" in answer["content"]


def test_only_503_says_when_to_come_again() -> None:
    said = {status for status, answer in COMPONENTS["responses"].items() if "Retry-After" in answer.get("headers", {})}
    assert said == {"503"}


def as_text_value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value).strip('"')


@pytest.mark.parametrize(
    "parameter", [p for p in COMPONENTS["parameters"].values() if "example" in p], ids=lambda p: p["name"]
)
def test_header_examples_fit_their_schema_and_are_read(parameter: dict[str, Any]) -> None:
    assert jsonschema_rs.is_valid(parameter["schema"], json.loads(json.dumps(parameter["example"])))
    name, value = parameter["name"].lower(), parameter["example"]
    _, options = parse_request(Request(headers={name: as_text_value(value)}, fields={"body": b"image"}))
    if name != "x-request-id":
        assert options == Options.model_validate({name.removeprefix("x-segserve-").replace("-", "_"): value})
        assert options != Options()


@pytest.mark.parametrize(
    "example", BODIES["application/json"]["examples"].values(), ids=BODIES["application/json"]["examples"]
)
def test_json_examples_fit_their_schema_and_are_read(example: dict[str, Any]) -> None:
    assert jsonschema_rs.is_valid(BODIES["application/json"]["schema"], example["value"])
    body = json.dumps(example["value"]).encode()
    image, options = parse_request(Request(headers={"content-type": "application/json"}, fields={"body": body}))
    assert image == example_png()
    assert options == Options.model_validate({k: v for k, v in example["value"].items() if k != "image"})


def test_the_form_example_is_read() -> None:
    media_type, body = external(BODIES["multipart/form-data"]["examples"]["file and options"])
    fields = read_form(media_type, body)
    assert fields.pop("image") == example_png()
    assert {name: value.decode() for name, value in fields.items()} == {"format": "json", "tta": "flips", "top_k": "2"}


@pytest.mark.parametrize("media_type", ["image/*", "application/octet-stream"])
def test_the_file_examples_are_the_disc(media_type: str) -> None:
    declared, body = external(BODIES[media_type]["examples"]["PNG file"])
    assert declared in ("image/png", media_type)
    y, x = np.mgrid[:16, :16] - 7.5
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), x**2 + y**2 < 36)


@pytest.mark.parametrize(
    ("text", "fits"), [("png,json", True), ("png, json", True), ("json", True), ("png,", False), ("all", False)]
)
def test_lists_may_be_written_with_commas_in_json(text: str, fits: bool) -> None:
    schema = BODIES["application/json"]["schema"]
    assert jsonschema_rs.is_valid(schema, {"image": "", "format": text}) is fits


def test_the_v2_names_are_the_handler_s() -> None:
    assert set(V2_OUTPUTS) == set(get_args(v2.OutputName))
    assert set(V2_PARAMETERS) == {name for names in v2.PARAMETERS.values() for name in names}


@pytest.mark.parametrize("task", get_args(Task))
def test_v2_examples_fit_their_schema_and_are_read(task: Task) -> None:
    described = DOCUMENT["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    schema = {"$ref": described["schema"]["$ref"], "components": COMPONENTS}
    for example in described["examples"].values():
        jsonschema_rs.validate(schema, example["value"])
        request = Request(headers={}, fields={"body": json.dumps(example["value"]).encode()})
        assert v2.asks_v2(request)
        assert v2.read_inference(request, spec=tiny_spec(task), max_answer_bytes=1000).images_BHWC.shape == (1, 2, 2, 3)
