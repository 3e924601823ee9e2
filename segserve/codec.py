"""Bytes to images. Every limit on what is decoded is here.

What becomes of each kind of image is one rule per kind, written down in docs/images.md; the code of those rules is
`_to_rgb`.
"""

import io
import re
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segserve.png_chunks import without_descriptions
from segserve.problem import Problem

Size = tuple[int, int]
"""Height, width."""

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 100_000_000
MAX_SECONDS = 10.0
"""Of decoding one file. WebP and compressed TIFF are decoded in one call that cannot be stopped, but never takes as
long; docs/images.md says how that is known."""

NOT_IMAGES = (".json", ".jsonl", ".md", ".txt", ".csv")
"""Suffixes of what lies beside images."""

READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG": PngImageFile,
    rb"RIFF.{4}WEBP": WebPImageFile,
    rb"II\*\0|MM\0\*|II\+\0|MM\0\+": TiffImageFile,
    rb"BM": BmpImageFile,
    rb"GIF8": GifImageFile,
    rb".{4}ftyp.{0,40}avi[fs]": AvifImageFile,
}
"""How files begin, and Pillow's reader for them. Of the images in an MPO file the JPEG reader takes the first."""
FORMATS = tuple(reader.format or "" for reader in READERS.values())

TIFF_COMPRESSIONS = {
    *("raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits"),
    "zstd",
}
"""Pillow's names. Rare ones (old JPEG, LZMA, ThunderScan, SGI, WebP) are refused: nobody tests their decoders."""

NOT_TAKEN = re.compile(
    "cannot handle|unknown pixel mode|unknown raw mode|string index out of range|invalid value for samples per pixel"
    "|unsupported bmp|.* support not installed",
    re.IGNORECASE,
)
"""How Pillow's readers begin to say that a file is whole, but of a kind they do not read."""
TEXT_BOMB = re.compile("decompressed data too large|too much memory used in text", re.IGNORECASE)
"""What Pillow says of text in a PNG that expands beyond a megabyte, or 64 in all: an attack, no broken description."""

MAX_TIFF_PIECES = 100_000
"""Strips or tiles; Pillow makes an object of several hundred bytes of each before anything can be checked."""

JPEG_PROCESSES = (0xC0, 0xC1, 0xC2, 0xC3)
"""Baseline, extended, progressive and lossless with Huffman codes. Arithmetic codes cannot be decoded piece by piece,
and no decoder here knows the hierarchical ones."""

JPEG_TRANSFORMS = (0xC0, 0xC1, 0xC2)
"""Those that can be decoded at less: all but the lossless one."""

JPEG_SCALES = (8, 4, 2)
"""By which libjpeg can divide their sides."""

JPEG_BLOCK = 1024
"""Bytes of a JPEG file decoded between two looks at the clock: a scan over 100 megapixels can be 100 bytes long."""

# Pillow raises its own bomb error where an image claims twice this; `_open` refuses from MAX_PIXELS on, also later
# frames and embedded thumbnails, so that the warning in between says nothing new.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


MAX_AVIF_WORK = 2 * 10**10
"""Pixels, and 5000 for what every frame costs, times bytes. Any number of hidden frames may come before the one an AVIF
shows, each in some 20 bytes; below this they cannot take long, above it a process of its own decodes."""
AVIF_TO_PIXELS = """
import io, sys
from PIL.AvifImagePlugin import AvifImageFile
sys.stdout.buffer.write(AvifImageFile(io.BytesIO(sys.stdin.buffer.read())).tobytes())
"""

MODES = ("1", "L", "P", "RGB", "YCbCr", "CMYK", "LA", "La", "PA", "RGBA")
"""Pillow's names of what `_to_rgb` takes beside gray of 16 bits."""

_PIECE_TAGS = {
    *(TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH, TiffImagePlugin.COMPRESSION),
    *(TiffImagePlugin.ROWSPERSTRIP, TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS),
    *(TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH),
    *(TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS),
}
"""The tags that say which pieces a TIFF image is stored in."""


class _TimedFile(io.BytesIO):
    """A file that cannot be read any more once MAX_SECONDS have passed.

    Pillow's decoding has no limit of its own, but asks for the file piece by piece.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._end = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._end:
            raise _too_slow()
        return super().read(size)


def _too_slow() -> Problem:
    return Problem(
        "too-large",
        f"expected an image that is decoded within {MAX_SECONDS:g} s, but this one takes longer: "
        "send a smaller or a simpler one",
    )


def may_be_image(path: PurePath) -> bool:
    """By its path below the folder of images: what is hidden is none, nor is what usually lies beside images."""
    return not any(part.startswith(".") for part in path.parts) and path.suffix.lower() not in NOT_IMAGES


class Decoded(NamedTuple):
    """An image, and how large it was in its file."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB."""
    sent_size: Size
    """Height and width of the upright image in the file; those of `image_HWC`, unless it was decoded at less."""


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file's first frame: upright RGB, (H, W, 3) uint8; for the rest see `decode_scaled`."""
    return decode_scaled(data, needed=lambda size: size).image_HWC


def decode_scaled(data: bytes, *, needed: Callable[[Size], Size]) -> Decoded:
    """Decode an image file's first frame, a JPEG at a half, a quarter or an eighth where that is still enough.

    Args:
        data: the file. Its type is told from the bytes.
        needed: from the image's height and width to the least that the decoded one must have, likewise.

    Raises:
        Problem: `bad-body` (empty), `too-large` (bytes, pixels or time), `unsupported-type` or `undecodable`.
    """
    if not data:
        raise Problem("bad-body", "expected the bytes of an image, but the body is empty: send the file as the body")
    if len(data) > MAX_BYTES:
        raise Problem("too-large", f"expected at most {MAX_BYTES} bytes, but got {len(data)}: send a smaller file")
    try:
        return _decoded(data, needed)
    except Problem as problem:
        if problem.kind != "undecodable" or TEXT_BOMB.search(problem.detail):
            raise
        pixels = without_descriptions(data)
        if len(pixels) == len(data):
            raise
    return _decoded(pixels, needed)


def _decoded(data: bytes, needed: Callable[[Size], Size]) -> Decoded:
    with _open(data) as image:
        try:
            scale = _scale(image, data, needed((image.height, image.width)))
            image_HWC = np.asarray(_upright(image, _load(image, data)))
            return Decoded(image_HWC, (scale * image_HWC.shape[0], scale * image_HWC.shape[1]))
        except (Problem, MemoryError):
            raise
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            raise _unreadable(image.format, error, what="decoding failed") from None


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header only, and check what it claims."""
    reader = _reader(data)
    try:
        if reader is TiffImageFile:
            _check_tiff_directory(data)
        image = reader(_TimedFile(data))
        _check_header(image, data)
    except Image.DecompressionBombError as error:
        raise Problem("too-large", f"expected at most {MAX_PIXELS} pixels: {error}") from None
    except (Problem, MemoryError):
        raise
    except Exception as error:  # as above
        raise _unreadable(reader.format, error, what="its header cannot be read") from None
    return image


def _check_header(image: ImageFile.ImageFile, data: bytes) -> None:
    _check_pixels(image.width, image.height)
    if isinstance(image, TiffImageFile):
        if _has_planes(image) and image.mode in ("LA", "La", "PA"):  # Pillow makes something else of them
            raise Problem("unsupported-type", "expected gray and alpha pixel by pixel, but got planes: save it as PNG")
        _check_tiff_work(image)
    if isinstance(image, JpegImageFile):
        _check_jpeg_process(image, data)


def _reader(data: bytes) -> type[ImageFile.ImageFile]:
    for signature, reader in READERS.items():
        if re.match(signature, data, re.DOTALL):
            return reader
    known = ", ".join(FORMATS)
    raise Problem("unsupported-type", f"expected one of {known}, but the bytes start with {data[:8]!r}: convert it")


def _unreadable(name: str | None, error: Exception, *, what: str) -> Problem:
    if NOT_TAKEN.match(str(error)):
        return Problem(
            "unsupported-type", f"expected a common kind of {name}, but got another ({error}): save it as PNG"
        )
    return Problem(
        "undecodable", f"expected a whole {name} image, but {what} ({error}): send all of it, or save it anew"
    )


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Problem(
            "too-large", f"expected at most {MAX_PIXELS} pixels, but got {width} x {height}: send a smaller image"
        )


def _check_tiff_directory(data: bytes) -> None:
    """Refuse a first directory that lists more strips or tiles than any honest file, or says twice what they are, and
    one that Pillow reads as another.
    """
    counts = [(tag, count) for tag, count in _tiff_counts(data) if tag in _PIECE_TAGS]
    if len(dict(counts)) < len(counts):  # Pillow believes the last, libtiff the first
        raise Problem("undecodable", "expected a whole TIFF image, but its first directory has a tag twice")
    pieces = max((count for _, count in counts), default=0)
    if pieces > MAX_TIFF_PIECES:
        raise Problem(
            "too-large", f"expected at most {MAX_TIFF_PIECES} strips or tiles, but got {pieces}: save it in larger ones"
        )
    if data.startswith(b"MM\0+"):  # Pillow takes it for a classic one
        raise Problem("unsupported-type", "expected a classic TIFF, but got a big-endian BigTIFF: save it anew")


def _tiff_counts(data: bytes) -> Iterator[tuple[int, int]]:
    """The tags of the first directory, and how many values each has. Where it is broken, Pillow says how."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    offset_bytes, number_bytes, entry = (8, 8, "H2xQ8x") if b"+" in data[2:4] else (4, 2, "H2xI4x")
    entries = struct.Struct(("<" if order == "little" else ">") + entry)
    start = int.from_bytes(data[offset_bytes : 2 * offset_bytes], order)
    number = int.from_bytes(data[start : start + number_bytes], order)
    table = data[start + number_bytes : start + number_bytes + number * entries.size]
    return entries.iter_unpack(table[: len(table) // entries.size * entries.size])


def _check_tiff_work(image: TiffImageFile) -> None:
    """Bound what libtiff, which cannot be stopped, has to do: the pixels it decodes and the bytes it reads for them."""
    tags, compression = image.tag_v2, image.info["compression"]
    if compression not in TIFF_COMPRESSIONS:
        raise Problem("unsupported-type", f"expected a common TIFF compression, but got {compression}: save it as LZW")
    _check_pixels(
        _in_whole_tiles(tags[TiffImagePlugin.IMAGEWIDTH], tags.get(TiffImagePlugin.TILEWIDTH)),
        _in_whole_tiles(tags[TiffImagePlugin.IMAGELENGTH], tags.get(TiffImagePlugin.TILELENGTH)),
    )
    counts = *tags.get(TiffImagePlugin.TILEBYTECOUNTS, ()), *tags.get(TiffImagePlugin.STRIPBYTECOUNTS, ())
    if sum(counts) > MAX_BYTES:  # only strips that share bytes add up to more than the file has
        raise Problem("too-large", f"expected strips of at most {MAX_BYTES} bytes in all, but got {sum(counts)}")


def _check_jpeg_process(image: JpegImageFile, data: bytes) -> None:
    process = _jpeg_process(image, data)
    if process is not None and process not in JPEG_PROCESSES:
        raise Problem(
            "unsupported-type",
            f"expected a baseline, progressive or lossless JPEG with Huffman codes, but got SOF{process - 0xC0}: "
            "save it as baseline",
        )


def _jpeg_process(image: JpegImageFile, data: bytes) -> int | None:
    """Pillow's reader has read the start of frame, but does not tell which it was."""
    frame = struct.pack(">HBHHB", 8 + 3 * image.layers, image.bits, image.height, image.width, image.layers)
    found = re.search(rb"\xff([\xc0-\xcf])" + re.escape(frame), data)
    return found[1][0] if found else None


def _in_whole_tiles(pixels: int, tile: int | None) -> int:
    return pixels if not tile else -(-pixels // tile) * tile


def _load(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The pixels as stored, 8-bit RGB."""
    if isinstance(image, JpegImageFile):
        image.decodermaxblock = JPEG_BLOCK
    if isinstance(image, PngImageFile) and "transparency" in image.info:
        if image.tile[0].args == "RGB;16B":
            return _without_16_bit_key(image, data)
        _scale_key(image)
    if isinstance(image, TiffImageFile) and _has_planes(image) and _bits_per_sample(image) == 16:
        _read_planes_of_16_bits(image)
    if isinstance(image, AvifImageFile) and (image.width * image.height + 5_000) * len(data) > MAX_AVIF_WORK:
        return _to_rgb(_decoded_apart(image, data))
    image.load()
    return _to_rgb(image)


def _decoded_apart(image: AvifImageFile, data: bytes) -> Image.Image:
    """An AVIF's first frame, decoded in a process that can be ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", AVIF_TO_PIXELS],
            input=data,
            capture_output=True,
            timeout=MAX_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise _too_slow() from None
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise MemoryError if "MemoryError" in last_line else OSError(last_line) from None
    return Image.frombytes(image.mode, image.size, done.stdout)


def _has_planes(image: TiffImageFile) -> bool:
    """Whether all of one channel comes before all of the next."""
    return image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2


def _read_planes_of_16_bits(image: TiffImageFile) -> None:
    """Name the kind of each plane's samples in full, where planes are not compressed: of `R;16B` Pillow keeps the R."""
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    for index, tile in enumerate(image.tile):
        if tile.codec_name == "raw" and isinstance(tile.args, tuple):
            channel, *others = tile.args
            image.tile[index] = tile._replace(args=(f"{channel};16{order}", *others))


def _scale_key(image: PngImageFile) -> None:
    """Bring the transparent gray or colour of a PNG to 8 bits, as Pillow brings the pixels, but not it."""
    key, raw_mode = image.info["transparency"], image.tile[0].args
    if raw_mode in ("L;2", "L;4"):
        largest = 2 ** int(raw_mode[-1]) - 1
        image.info["transparency"] = (key & largest) * (255 // largest)
    elif raw_mode == "L":
        image.info["transparency"] = key & 255
    elif raw_mode == "RGB":
        image.info["transparency"] = tuple(channel & 255 for channel in key)


def _without_16_bit_key(image: PngImageFile, data: bytes) -> Image.Image:
    """White where all 16 bits of the three samples are the transparent colour's; Pillow keeps the upper 8 only."""
    key_C = np.array(image.info["transparency"])
    lower = _open(data)
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]  # samples are big-endian, so that this takes the lower byte
    upper_HWC, lower_HWC = np.array(image), np.asarray(lower)
    is_key_HW = ((upper_HWC == key_C >> 8) & (lower_HWC == key_C & 255)).all(axis=-1)
    upper_HWC[is_key_HW] = 255
    return Image.fromarray(upper_HWC)


def _scale(image: ImageFile.ImageFile, data: bytes, needed: Size) -> int:
    """Have libjpeg decode at less, from fewer coefficients, where that is enough; by what its sides are divided.

    Only by what divides both sides: else the last column, or row, would stand for more than the image has.
    """
    if not isinstance(image, JpegImageFile):
        return 1
    sides = list(zip(image.size, needed[::-1], strict=True))
    fitting = (each for each in JPEG_SCALES if all(side % each == 0 and side >= each * least for side, least in sides))
    scale = next(fitting, 1)
    if scale == 1 or _jpeg_process(image, data) not in JPEG_TRANSFORMS:
        return 1
    image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """As the camera was held. Unlike Pillow's `exif_transpose` this writes no EXIF, which fails on broken tags."""
    method = UPRIGHT.get(_orientation(image))  # Pillow turns TIFF itself while loading
    return pixels if method is None else pixels.transpose(method)


def _orientation(image: Image.Image) -> Any:
    """As EXIF says; 1 where it cannot be read, which is no reason to refuse the pixels."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):  # Pillow's for what is no EXIF, no text of it, or cut short
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by one rule per mode."""
    if image.mode.startswith("I;16"):
        return _gray_from_16_bit(image)
    if image.mode not in MODES:
        raise Problem(
            "unsupported-type",
            f"expected 1 to 16 bits a sample, gray, palette, RGB, YCbCr or CMYK, but got Pillow's mode {image.mode}: "
            "convert it first",
        )
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy of 100 megapixels is 400 MB


def _gray_from_16_bit(image: Image.Image) -> Image.Image:
    """Scaled so that the largest value becomes 255."""
    largest = 2 ** _bits_per_sample(image) - 1
    levels = (np.arange(2**16) * 255 + largest // 2) // largest
    if isinstance(image, TiffImageFile) and image.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0:
        levels = 255 - levels  # white is zero; Pillow has no such mode with 16 bits
    transparent = image.info.get("transparency")
    if transparent is not None:
        levels[transparent] = 255
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)[np.asarray(image)]).convert("RGB")


def _bits_per_sample(image: Image.Image) -> int:
    """16, or 12 in some TIFF files; Pillow has one mode for both."""
    if not isinstance(image, TiffImageFile):
        return 16
    return int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0])
