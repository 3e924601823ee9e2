"""The examples of `segserve.openapi`: an image made here, and requests with it. Tests send each of them."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any, get_args

from segserve.api import Form, Render

Examples = dict[str, dict[str, Any]]

OPTIONS: dict[str, object] = {
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


PIXELS = {
    "name": "image",
    "datatype": "UINT8",
    "shape": [1, 2, 2, 3],
    "data": [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9],
}


def file_requests(media_type: str) -> Examples:
    """The image as it is."""
    return {"PNG file": _external(media_type.replace("*", "png"), example_png())}


def form_requests() -> Examples:
    """As a form."""
    body = _form({"format": "json", "tta": "flips", "top_k": "2"})
    return {"file and options": _external("multipart/form-data;boundary=part", body)}


def json_requests() -> Examples:
    """As JSON; `every form` and `every picture` are for segmentation."""
    png = base64.b64encode(example_png()).decode()
    options = {"format": ["json"], "masks": "polygons", "tta": "hflip", "objects": True, "top_k": 2}
    return {
        "image only": {"value": {"image": png}},
        "with options": {"value": {"image": png, **options}},
        "every form": {"value": {"image": png, "format": list(get_args(Form))}},
        "every picture": {"value": {"image": png, "render": ",".join(get_args(Render))}},
    }


def tensor_requests() -> Examples:
    """As the Open Inference Protocol has it."""
    asked = {"id": "42", "parameters": {"tta": "flips"}, "inputs": [PIXELS], "outputs": [{"name": "mean_entropy"}]}
    return {"pixels only": {"value": {"inputs": [PIXELS]}}, "with parameters": {"value": asked}}


def _external(media_type: str, body: bytes) -> dict[str, str]:
    """An example that JSON cannot hold as it is."""
    return {"externalValue": f"data:{media_type};base64,{base64.b64encode(body).decode()}"}


def example_png() -> bytes:
    """A white disc on black, 16x16, 1 bit a pixel; stored, not compressed, as zlib's versions differ."""
    rows = [sum(1 << (15 - x) for x in range(16) if (x - 7.5) ** 2 + (y - 7.5) ** 2 < 36) for y in range(16)]
    pixels = zlib.compress(b"".join(b"\0" + struct.pack(">H", row) for row in rows), level=0)
    header = struct.pack(">IIBBBBB", 16, 16, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _form(options: Mapping[str, str]) -> bytes:
    """A form with `example_png`; its boundary is `part`."""
    head = b'--part\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = [head % (name.encode(), b"", value.encode()) for name, value in options.items()]
    return head % (b"image", b'; filename="disc.png"', example_png()) + b"".join(fields) + b"--part--\r\n"
