"""Image files made by hand, byte by byte, for what Pillow does not write, and a short way to what it does."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray
from PIL import Image


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    """A TIFF file as tifffile writes it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, software=False, **options)
    return buffer.getvalue()


def gray(values: ArrayLike) -> NDArray[np.uint8]:
    """(H, W, 3) of equal channels."""
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=-1)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color_type: int, *chunks: tuple[bytes, bytes], interlace: int = 0) -> bytes:
    """A PNG of these chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in [(b"IHDR", header), *chunks, (b"IEND", b"")])


def one_row_png(bits: int, color_type: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row; `chunks` come before its pixels."""
    return png(width, 1, bits, color_type, *chunks, (b"IDAT", zlib.compress(b"\0" + row)))


def with_checksums(data: bytes) -> bytes:
    """The same PNG, with a right checksum in every chunk."""
    mended, at = bytearray(data), 8
    while at < len(data):
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(mended)


def tiff_of_12_bits(pixels: bytes, *, width: int) -> bytes:
    """One row of gray."""
    entries = [(256, width), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(pixels))]
    padded = pixels + bytes(-len(pixels) % 2)
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(padded))
    return header + padded + struct.pack("<H", len(entries)) + directory + bytes(4)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_frame(marker: int, width: int, height: int, *, bits: int = 8) -> bytes:
    """Start of a frame of one component."""
    return jpeg_segment(marker, struct.pack(">BHHB", bits, height, width, 1) + b"\1\x11\0")


def lossless_jpeg(gray_HW: NDArray[np.uint8]) -> bytes:
    """Each pixel as its difference to the left one; all 17 lengths of differences have codes of 5 bits."""
    left_HW = np.hstack([np.vstack([[[128]], gray_HW[:-1, :1]]), gray_HW[:, :-1]]).astype(int)
    bits = "".join(_difference(int(value)) for value in (gray_HW - left_HW).ravel())
    codes = b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    frame = jpeg_frame(0xC3, gray_HW.shape[1], gray_HW.shape[0])
    scan = jpeg_segment(0xDA, b"\1\1\0\1\0\0") + _scan(bits)
    return b"\xff\xd8" + frame + jpeg_segment(0xC4, codes) + scan + b"\xff\xd9"


def _difference(value: int) -> str:
    length = abs(value).bit_length()
    return f"{length:05b}" + (f"{value if value > 0 else value + 2**length - 1:0{length}b}" if length else "")


def _scan(bits: str) -> bytes:
    padded = bits + "1" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\0")


def jpeg_time_bomb(side: int, scans: int) -> bytes:
    """A gray progressive JPEG; each further scan passes over all blocks and changes none, in few bytes."""
    blocks = (side // 8) ** 2
    quantisation = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    one_code = bytes([1] + [0] * 15)
    no_difference = jpeg_segment(0xC4, b"\0" + one_code + b"\0")
    end_of_32767_bands = jpeg_segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    empty = jpeg_segment(0xDA, b"\1\1\0\1\x3f\0") + _scan(("0" + "1" * 14) * -(-blocks // 32767))
    head = b"\xff\xd8" + quantisation + jpeg_frame(0xC2, side, side) + no_difference + end_of_32767_bands
    return head + first + empty * scans + b"\xff\xd9"
