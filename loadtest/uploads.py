"""The images that are sent, made from a seed; and bodies with a fault."""

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

Kind = Literal["JPEG", "PNG"]
Fault = Literal["truncated", "text", "empty", "huge", "form", "option"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
KINDS: tuple[Kind, ...] = get_args(Kind)
STATUS: Mapping[Fault, int] = {"truncated": 422, "text": 415, "empty": 400, "huge": 413, "form": 415, "option": 400}
"""What the contract answers."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An encoded image and what is known about it."""

    width: int
    height: int
    content_type: str
    body: bytes

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6


@cache
def make_upload(width: int, height: int, kind: Kind, *, seed: int = 0) -> Upload:
    """Noise over a plain colour, and shapes on it; the same bytes for the same arguments and Pillow."""
    rng = np.random.default_rng([seed, width, height])
    buffer = io.BytesIO()
    _draw(width, height, rng).save(buffer, kind)
    return Upload(width=width, height=height, content_type=f"image/{kind.lower()}", body=buffer.getvalue())


def _draw(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    noise_HWC = rng.normal(rng.integers(60, 196, 3), 12, (height, width, 3))
    image = Image.fromarray(noise_HWC.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(6):
        left, top = (int(rng.integers(0, max(1, side * 3 // 4))) for side in (width, height))
        right, bottom = left + _drawn_side(width, rng), top + _drawn_side(height, rng)
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((left, top, right, bottom), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return image


def _drawn_side(side: int, rng: np.random.Generator) -> int:
    """Of a shape on an image of that side."""
    return int(rng.integers(1, max(2, side // 2)))


def make_faulty(fault: Fault) -> tuple[Upload, Mapping[str, str]]:
    """What is sent to be refused, and its headers beside `Content-Type`."""
    good = make_upload(320, 240, "PNG")
    match fault:
        case "truncated":
            body = good.body[: len(good.body) // 2]
        case "text":
            body = b"not an image"
        case "empty":
            body = b""
        case "huge":
            body = _huge()
        case "form" | "option":
            body = good.body
    content_type = "application/x-www-form-urlencoded" if fault == "form" else "image/png"
    headers = {"X-Segserve-Tta": "sideways"} if fault == "option" else {}
    return Upload(width=good.width, height=good.height, content_type=content_type, body=body), headers


def _huge() -> bytes:
    """A PNG of a few bytes whose head speaks of 2500 megapixels."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return PNG_MAGIC + _chunk(b"IHDR", head) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
