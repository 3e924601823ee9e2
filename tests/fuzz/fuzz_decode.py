"""Coverage-guided fuzzing of `decode_image`: `python tests/fuzz/fuzz_decode.py -max_total_time=1800 CORPUS`.

Only Python is instrumented: Pillow's readers and `segserve.codec`. The C libraries below are run, but libFuzzer does
not see their branches.
"""

import io
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["PIL", "segserve"]):
    from PIL import Image

    from segserve import codec
    from segserve.problem import Problem

from corpus import fuzz

ODD_IMAGES = Path(__file__).resolve().parents[2] / "../shared/data/odd_images/files"
LARGEST_SEED = 20_000
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "I;16", "P", "LA", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "I;16", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "AVIF": ("L", "RGB", "RGBA"),
}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({"progressive": True}, {"restart_marker_rows": 1}),
    "PNG": ({"transparency": 3}, {"bits": 2}),
    "WEBP": ({"lossless": True},),
    "TIFF": tuple({"compression": name} for name in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4")),
    "GIF": ({"save_all": True, "append_images": [Image.new("P", (5, 4), 7)]}, {"transparency": 3}),
}


def check_image(data: bytes) -> None:
    """A file becomes an image of uint8, or is refused with a 4xx status."""
    try:
        image_HWC = codec.decode_image(data)
    except Problem as problem:
        assert 400 <= problem.status < 500, problem
    else:
        assert image_HWC.dtype == "uint8"
        assert image_HWC.ndim == 3
        assert image_HWC.shape[2] == 3
        assert 0 < image_HWC.size <= 3 * codec.MAX_PIXELS


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """As libFuzzer does; half of the PNG files then get checksums that fit, or few would come further than that."""
    mutated = bytes(atheris.Mutate(data, max_size))
    return _with_checksums(mutated)[:max_size] if random.Random(seed).random() < 0.5 else mutated


def _with_checksums(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(mended)


def seeds() -> dict[str, bytes]:
    """Small images of every format, mode and variant that Pillow writes, and the small ones of `odd_images`."""
    found = dict(_written())
    if ODD_IMAGES.is_dir():
        files = [path for path in sorted(ODD_IMAGES.iterdir()) if path.stat().st_size <= LARGEST_SEED]
        found |= {path.name: path.read_bytes() for path in files}
    return found


def _written() -> Iterator[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, modes in MODES.items():
        for mode in modes:
            image = Image.effect_noise((7, 5), 50).convert("RGB").convert(mode)
            for number, options in enumerate(({}, {"exif": exif}, *VARIANTS.get(kind, ()))):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, **options)
                except (OSError, ValueError, TypeError, KeyError):  # not every mode has every variant
                    continue
                yield f"{kind}-{mode}-{number}", buffer.getvalue()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about broken EXIF and the like
    codec.MAX_PIXELS = Image.MAX_IMAGE_PIXELS = 1_000_000  # an input that claims 100 megapixels takes long to refuse
    fuzz(sys.argv, check_image, seeds(), custom_mutator=mutate)
