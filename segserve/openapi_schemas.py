"""The schemas of `segserve.openapi`: those of `segserve.api`'s types, and of what others have laid down."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from segserve import api
from segserve.api import Options

Json = dict[str, Any]

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}
BYTES = {"type": "string", "format": "binary"}
REF = "#/components/schemas/{model}"
ANSWERS: tuple[type[BaseModel], ...] = (api.SegmentationAnswer, api.LabelsAnswer, api.ProblemAnswer)
V2_PARAMETERS = ("tta", "aggregate", "measure", "classes", "min_area", "precision", "deadline_ms")
V2_OUTPUTS = (
    *("mask", "confidence", "uncertainty", "probabilities", "label"),
    *("mean_entropy", "mutual_information", "view_agreement"),
)


def ref(name: str) -> Json:
    """A reference to one of `component_schemas`."""
    return {"$ref": REF.format(model=name)}


def component_schemas() -> Json:
    """Every schema that has a name."""
    _, answers = models_json_schema([(model, "validation") for model in ANSWERS], ref_template=REF)
    named = {name: _described(getattr(api, name), schema) for name, schema in answers["$defs"].items()}
    reasons = _array(TEXT)
    workers = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
    versions = {"type": "object", "additionalProperties": workers}
    return named | {
        "TorchServeError": _object("TorchServe's own answer", code=INTEGER, type=TEXT, message=TEXT),
        "Readiness": _object(
            "Workers of each model's versions, by state; why not ready",
            status={"enum": ["ready", "unready", "draining"]},
            models={"type": "object", "additionalProperties": versions},
            optional={"reasons": reasons},
        ),
        **_foreign_schemas(),
        **_tensor_schemas(),
        "Liveness": _object("Why not live", status={"enum": ["live", "dead"]}, optional={"reasons": reasons}),
    }


@cache
def option_schemas() -> dict[str, Json]:
    """Each option's, for any carrier."""
    properties: dict[str, Json] = _described(Options, Options.model_json_schema())["properties"]
    for name in ("format", "classes"):
        del properties[name]["default"]  # the description says what an empty list means
    return properties


def form_schema() -> Json:
    """Of the request as a form."""
    return _request_schema(BYTES | {"description": "The file"}, option_schemas())


def json_schema() -> Json:
    """Of the request as JSON."""
    image = TEXT | {"contentEncoding": "base64", "contentMediaType": "image/*", "description": "The file, as base64"}
    return _request_schema(image, {name: _as_text_too(schema) for name, schema in option_schemas().items()})


def _request_schema(image: Json, options: Mapping[str, Json]) -> Json:
    return {
        "type": "object",
        "required": ["image"],
        "properties": {"image": image, **options},
        "additionalProperties": False,
    }


def _as_text_too(schema: Json) -> Json:
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


def _foreign_schemas() -> Json:
    """The forms that other tools have laid down."""
    outlines = _array(_array(NUMBER))
    annotation = _object(
        "One class, or with `objects=true` one object; `masks=none` leaves out the segmentation",
        id=INTEGER,
        image_id={"type": ["integer", "string"]},
        category_id=INTEGER,
        bbox=_array(NUMBER) | {"minItems": 4, "maxItems": 4},
        area=INTEGER,
        iscrowd={"const": 0},
        score=NUMBER,
        optional={"segmentation": {"anyOf": [ref("RleMask"), outlines]}},
    )
    brush = _object("A brush mask", format={"const": "rle"}, rle=_array(INTEGER), brushlabels=_array(TEXT))
    result = _object("", id=TEXT, type={"const": "brushlabels"}, from_name=TEXT, to_name=TEXT, value=brush)
    prediction = _object("", model_version=TEXT, score=NUMBER, result=_array(result))
    task = _object("", data=_object("", image=TEXT), predictions=_array(prediction))
    entry = _object("A class", label=TEXT, score=NUMBER, optional={"mask": TEXT | {"contentEncoding": "base64"}})
    return {
        "CocoAnnotations": _array(annotation) | {"description": "`format=coco`"},
        "LabelStudioTasks": _array(task) | {"description": "`format=labelstudio`: one task with one prediction"},
        "HuggingFaceList": _array(entry) | {"description": "`format=hf`"},
    }


def _tensor_schemas() -> Json:
    """The protocol's. `docs/kserve.md` says more."""
    options: Json = {name: option_schemas()[name] for name in V2_PARAMETERS}
    options["classes"] = TEXT | {"description": options["classes"]["description"] + " Commas between them."}
    shape = _array(INTEGER | {"minimum": 1})
    sent = _strict(
        "Pixels: as `data`, in one list or nested, or after the JSON",
        name={"const": "image"},
        datatype={"const": "UINT8"},
        shape=shape | {"minItems": 3, "maxItems": 4},
        optional={"data": {"type": "array"}, "parameters": _settings(binary_data_size=INTEGER)},
    )
    wanted = _strict(
        "An output",
        name={"enum": list(V2_OUTPUTS)},
        optional={"parameters": _settings(binary_data={"type": "boolean"})},
    )
    answered = _object(
        "A tensor",
        name={"enum": list(V2_OUTPUTS)},
        datatype={"enum": ["UINT8", "FP16", "FP32", "BYTES"]},
        shape=shape,
        optional={"data": {"type": "array"}, "parameters": _settings(binary_data_size=INTEGER)},
    )
    return {
        "V2Request": _strict(
            "Without `outputs`: the mask, or the label and the probabilities",
            inputs=_array(sent) | {"minItems": 1, "maxItems": 1},
            optional={
                "id": TEXT,
                "parameters": _settings(**options, binary_data_output={"type": "boolean"}),
                "outputs": _array(wanted),
            },
        ),
        "V2Answer": _object(
            "The outputs, in the order asked for",
            model_name=TEXT,
            model_version=TEXT,
            parameters=_object("", digest=TEXT, classes=TEXT),
            outputs=_array(answered),
            optional={"id": TEXT},
        ),
    }


def _strict(description: str, *, optional: Mapping[str, Json], **required: Json) -> Json:
    """An object whose other keys are refused."""
    return _object(description, optional=optional, **required) | {"additionalProperties": False}


def _settings(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(description: str, *, optional: Mapping[str, Json] | None = None, **required: Json) -> Json:
    return {
        "type": "object",
        **({"description": description} if description else {}),
        "required": list(required),
        "properties": {**required, **(optional or {})},
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
                yield name, " ".join(text.split())
