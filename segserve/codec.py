"""Bytes to images, and masks to bytes. Every limit on what is decoded is here.

What becomes of each kind of image is one rule per kind, in `_to_rgb`: palettes are looked up, gray is repeated, 12- and
16-bit gray is scaled so that the largest value becomes 255, CMYK is converted by Pillow's formula, transparency is
composed on white; colour profiles are not applied.
"""

import base64
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from pycocotools import mask as coco

from segserve.problem import Problem
from segserve.spec import ClassSpec

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 100_000_000
NO_CLASS = 255
"""Mask index of pixels whose class was not asked for."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Pillow's names; its JPEG reader also takes MPO, which has no reader of its own."""
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8")
"""How files of these formats begin; WEBP and AVIF have a length first, see `_has_known_signature`."""

# Pillow raises its own bomb error where an image claims twice this; `_open` refuses from MAX_PIXELS on, also later
# frames and embedded thumbnails, so that the warning in between says nothing new.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
Image.init()  # all plugins now, not in whichever thread first meets a format
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


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file's first frame.

    Args:
        data: the file. Its type is told from the bytes.

    Returns:
        Upright RGB, (H, W, 3) uint8.

    Raises:
        Problem: `bad-body` (empty), `too-large`, `unsupported-type` or `undecodable`.
    """
    if not data:
        raise Problem("bad-body", "expected the bytes of an image, but the body is empty: send the file as the body")
    if len(data) > MAX_BYTES:
        raise Problem("too-large", f"expected at most {MAX_BYTES} bytes, but got {len(data)}: send a smaller file")
    with _open(data) as image:
        try:
            return np.asarray(_to_rgb(_upright(image)))
        except (Problem, MemoryError):
            raise
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            reason = f"expected a whole {image.format} image, but decoding failed: {error}"
            raise Problem("undecodable", reason) from None


def _open(data: bytes) -> Image.Image:
    """Read the header only, and check the size it claims."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Problem("too-large", f"expected at most {MAX_PIXELS} pixels: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _unreadable(data, error) from None
    if image.width * image.height > MAX_PIXELS:
        raise Problem(
            "too-large",
            f"expected at most {MAX_PIXELS} pixels, but got {image.width} x {image.height}: send a smaller image",
        )
    return image


def _unreadable(data: bytes, error: Exception) -> Problem:
    if _has_known_signature(data):
        reason = "its header is broken" if isinstance(error, UnidentifiedImageError) else str(error)
        return Problem("undecodable", f"expected a whole image, but it cannot be read: {reason}")
    known = ", ".join(FORMATS)
    return Problem("unsupported-type", f"expected one of {known}, but the bytes start with {data[:8]!r}")


def _has_known_signature(data: bytes) -> bool:
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data[4:12] in (b"ftypavif", b"ftypavis") or data.startswith(SIGNATURES)


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Unlike Pillow's `exif_transpose` this writes no EXIF, which fails on broken tags."""
    image.load()  # Pillow turns TIFF itself while loading
    method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by one rule per mode."""
    if image.mode.startswith("I;16"):
        return _gray_from_16_bit(image)
    if image.mode in ("I", "F"):
        raise Problem(
            "unsupported-type",
            f"expected 1, 8 or 16 bits a sample, but the image has 32 (Pillow's mode {image.mode}): convert it first",
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _gray_from_16_bit(image: Image.Image) -> Image.Image:
    largest = 2 ** _bits_per_sample(image) - 1
    gray_HW = (np.asarray(image).astype(np.uint32) * 255 + largest // 2) // largest
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray_HW[np.asarray(image) == transparent] = 255
    return Image.fromarray(gray_HW.astype(np.uint8)).convert("RGB")


def _bits_per_sample(image: Image.Image) -> int:
    """16, or 12 in some TIFF files; Pillow has one mode for both."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0])


def encode_index_png(mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]) -> bytes:
    """Palette PNG (mode P): a pixel is its class index, the palette holds the class colours."""
    image = Image.fromarray(mask_HW)
    palette = [channel for entry in classes for channel in entry.color]
    if (mask_HW == NO_CLASS).any():
        palette += [0] * (3 * 256 - len(palette))
    image.putpalette(palette)
    return encode_png(image)


def encode_gray_png(values_HW: NDArray[np.uint8]) -> bytes:
    """8-bit gray PNG."""
    return encode_png(Image.fromarray(values_HW))


def encode_overlay_png(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]
) -> bytes:
    """RGB PNG: the image, half covered by the class colours; pixels of no class asked for stay as they are."""
    return encode_png(Image.fromarray(overlay(image_HWC, mask_HW, classes)))


def overlay(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], classes: tuple[ClassSpec, ...]
) -> NDArray[np.uint8]:
    """The image blended half and half with the class colours, (H, W, 3) uint8."""
    palette_K3 = np.zeros((256, 3), dtype=np.uint16)
    palette_K3[: len(classes)] = [entry.color for entry in classes]
    blended_HWC = ((image_HWC + palette_K3[mask_HW]) // 2).astype(np.uint8)
    shown_HW1 = (mask_HW < len(classes))[..., None]
    return np.where(shown_HW1, blended_HWC, image_HWC)


def encode_png(image: Image.Image) -> bytes:
    """PNG at zlib's fastest level: masks compress well at any level."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_rle(region_HW: NDArray[np.bool_]) -> dict[str, object]:
    """COCO's compressed run-length encoding, `{"size": [height, width], "counts": text}`, as pycocotools reads it."""
    encoded = coco.encode(np.asfortranarray(region_HW.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
