"""Coverage-guided fuzzing of the request parser: `python tests/fuzz/fuzz_options.py -max_total_time=1800 CORPUS`.

An input is text in the form of a request: a line with the query, a line per header, an empty line, the body.
"""

import base64
import json
import logging
import sys
from urllib.parse import parse_qsl

import atheris

with atheris.instrument_imports(include=["segserve", "python_multipart"]):
    from segserve.api import Options, Request, parse_request
    from segserve.problem import Problem

from corpus import fuzz

IMAGE = b"\x89PNG"


def check_request(data: bytes) -> None:
    """A request is parsed to options within their bounds, or refused with a 4xx status in words that can be sent."""
    try:
        image, options = parse_request(_read(data))
    except Problem as problem:
        assert 400 <= problem.status < 500, problem
        json.dumps(problem.detail, ensure_ascii=False).encode()
    else:
        assert isinstance(image, bytes)
        assert Options.model_validate(options.model_dump()) == options
        assert (options.deadline_ms or 0) / 1000 < 100_000  # an integer of 400 digits is no float


def _read(data: bytes) -> Request:
    head, _, body = data.partition(b"\n\n")
    query, *lines = head.decode("latin-1").split("\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    fields = {name: value.encode() for name, value in parse_qsl(query)}
    return Request(headers=headers, fields={**fields, "body": body})


def seeds() -> dict[str, bytes]:
    """One request per carrier and per option."""
    text = base64.b64encode(IMAGE).decode()
    values = {
        "format": "png,json,coco,cvat,labelstudio,hf,npz",
        "render": "index,overlay,confidence,uncertainty",
        "masks": "polygons",
        "tta": "multiscale-hflip",
        "aggregate": "vote",
        "measure": "mutual-information",
        "classes": "all",
        "objects": "true",
        "split": "watershed",
        "min_area": "12",
        "simplify": "0.5",
        "precision": "float16",
        "name": "a.png",
        "top_k": "3",
        "deadline_ms": "none",
    }
    requests = {
        "plain": b"\ncontent-type: image/png\n\n" + IMAGE,
        "accept": b"\naccept: image/*;q=0.5, application/json\ncontent-type: application/octet-stream\n\n" + IMAGE,
        "curl": b"\ncontent-type: application/x-www-form-urlencoded\n\n" + IMAGE,
        "json": _json(values, image=text),
        "form": _form(values),
    }
    for name, value in values.items():
        requests[f"query-{name}"] = f"{name}={value}\n\n".encode() + IMAGE
        requests[f"header-{name}"] = f"\nx-segserve-{name.replace('_', '-')}: {value}\n\n".encode() + IMAGE
        requests[f"json-{name}"] = _json({name: value}, image=text)
        requests[f"form-{name}"] = _form({name: value})
    return requests


def _json(values: dict[str, str], *, image: str) -> bytes:
    return b"\ncontent-type: application/json\n\n" + json.dumps({"image": image, **values}).encode()


def _form(values: dict[str, str]) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in values.items()]
    file = b'Content-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\n' + IMAGE
    body = b"".join(b"--x\r\n" + part.encode() for part in parts) + b"--x\r\n" + file + b"\r\n--x--\r\n"
    return b"\ncontent-type: multipart/form-data; boundary=x\n\n" + body


if __name__ == "__main__":
    logging.disable()  # python_multipart writes a line per broken form
    fuzz(sys.argv, check_request, seeds())
