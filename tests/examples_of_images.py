"""One row of docs/images.md after the other: small files of its kind, and their pixels by hand."""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageCms

from tests.conftest import random_image
from tests.pictures import gray, jpeg_frame, lossless_jpeg, one_row_png, png, saved, tiff, tiff_of_12_bits


class Example(NamedTuple):
    """A file and the upright RGB that it must become."""

    name: str
    data: bytes
    expected_HWC: NDArray[np.uint8]
    tolerance: int = 0
    """Levels; above 0 only for lossy formats and where two roundings are both right."""
    orientation: int = 1


def example(name: str, data: bytes, pixels: ArrayLike, tolerance: int = 0) -> Example:
    return Example(name, data, np.asarray(pixels, dtype=np.uint8), tolerance)


def tRNS(*values: int) -> tuple[bytes, bytes]:
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


def palette_image(indices: ArrayLike) -> Image.Image:
    image = Image.fromarray(np.array(indices, dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 128, 0, 7, 8, 9])
    return image


def gif_of_frames(*colors: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (8, 6), color) for color in colors]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)


def animated(kind: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def flat(color: tuple[int, int, int], width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), color, dtype=np.uint8)


RED, GREEN, DARK = (255, 0, 0), (0, 128, 0), (7, 8, 9)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RGB_HWC = random_image(5, 7)
GRAY_HW = random_image(5, 7, seed=1)[..., 0]
SIXTEEN_HW = np.array([[0, 128, 129, 257 * 99, 65535]], dtype=np.uint16)
FROM_SIXTEEN = gray([[0, 0, 1, 99, 255]])
"""Rounded, not cut off: 128 / 257 is below one half, 129 / 257 above."""
SIXTEEN_HWC = np.array([[[257 * 10, 257 * 20 + 200, 257 * 30]]], dtype=np.uint16)
UPPER_BYTES = [[(10, 20, 30)]]
"""Cut off, not rounded: (257 * 20 + 200) / 257 is nearer to 21."""

TWO_BITS = bytes([0b00_01_10_11])
FOUR_BITS = bytes([0x01, 0x9F])
PALETTE = (b"PLTE", bytes([*RED, *GREEN, *DARK]))
LOOKED_UP = [[RED, GREEN, DARK, GREEN]]
SMOOTH_HWC = np.asarray(Image.fromarray(random_image(3, 3)).resize((32, 24), Image.Resampling.BICUBIC))

INTERLACED_2_X_2 = png(2, 2, 8, 0, (b"IDAT", zlib.compress(bytes([0, 10, 0, 20, 0, 30, 40]))), interlace=1)
"""Of the seven passes of so small an image only the first, sixth and seventh have pixels."""


def gray_of_few_bits() -> list[Example]:
    """Scaled so that the largest value becomes 255: times 255, 85 and 17."""
    black_white = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    return [
        example("png 1 bit", one_row_png(1, 0, bytes([0b011_00000]), 3), gray([[0, 255, 255]])),
        example("png 2 bits", one_row_png(2, 0, TWO_BITS, 4), gray([[0, 85, 170, 255]])),
        example("png 4 bits", one_row_png(4, 0, FOUR_BITS, 4), gray([[0, 17, 153, 255]])),
        example("png 8 bits", saved(Image.fromarray(GRAY_HW)), gray(GRAY_HW)),
        example("png interlaced", INTERLACED_2_X_2, gray([[10, 20], [30, 40]])),
        example("jpeg", saved(Image.new("L", (8, 8), 99), "JPEG"), gray(np.full((8, 8), 99))),
        example("jpeg lossless", lossless_jpeg(GRAY_HW), gray(GRAY_HW)),
        example("webp", saved(Image.fromarray(GRAY_HW), "WEBP", lossless=True), gray(GRAY_HW)),
        example("avif", saved(Image.new("L", (8, 8), 99), "AVIF", quality=100), gray(np.full((8, 8), 99)), 1),
        example("gif", saved(Image.fromarray(GRAY_HW), "GIF"), gray(GRAY_HW)),
        example("bmp", saved(Image.fromarray(GRAY_HW), "BMP"), gray(GRAY_HW)),
        example("bmp 1 bit", saved(black_white, "BMP"), gray([[0, 255, 255]])),
        *(
            example(f"tiff 1 bit {name}", saved(black_white, "TIFF", compression=name), gray([[0, 255, 255]]))
            for name in ("raw", "group3", "group4", "packbits")
        ),
    ]


def gray_of_more_bits() -> list[Example]:
    twelve = int(f"{0:012b}{4095:012b}{2048:012b}{1606:012b}", 2).to_bytes(6, "big")
    return [
        example("png", one_row_png(16, 0, SIXTEEN_HW.astype(">u2").tobytes(), 5), FROM_SIXTEEN),
        example("tiff", tiff(SIXTEEN_HW), FROM_SIXTEEN),
        example("tiff big-endian", tiff(SIXTEEN_HW, byteorder=">"), FROM_SIXTEEN),
        example("tiff lzw", saved(Image.fromarray(SIXTEEN_HW), "TIFF", compression="tiff_lzw"), FROM_SIXTEEN),
        example("tiff 12 bits", tiff_of_12_bits(twelve, width=4), gray([[0, 255, 128, 100]])),
    ]


def white_is_zero() -> list[Example]:
    bits = np.array([[False, True, True]])
    return [
        example("1 bit", tiff(bits, photometric="miniswhite"), gray([[255, 0, 0]])),
        example("8 bits", tiff(GRAY_HW, photometric="miniswhite"), gray(255 - GRAY_HW)),
        example("16 bits", tiff(SIXTEEN_HW, photometric="miniswhite"), 255 - FROM_SIXTEEN),
    ]


def colour() -> list[Example]:
    image, smooth = Image.fromarray(RGB_HWC), Image.fromarray(SMOOTH_HWC)
    large_HWC = random_image(40, 50)
    compressions = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "zstd")
    five_six_five = struct.pack("<2H", 0b11111_000000_00000, 0b00000_111111_11111)
    return [
        *(example(kind.lower(), saved(image, kind), RGB_HWC) for kind in ("PNG", "BMP", "TIFF")),
        *(example(f"tiff {name}", saved(image, "TIFF", compression=name), RGB_HWC) for name in compressions),
        example("tiff big-endian", tiff(RGB_HWC, byteorder=">"), RGB_HWC),
        example("bigtiff", tiff(RGB_HWC, bigtiff=True), RGB_HWC),
        example("tiff planes", tiff(RGB_HWC.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), RGB_HWC),
        example("tiff tiles", tiff(large_HWC, photometric="rgb", tile=(16, 32)), large_HWC),
        example(
            "tiff deflated tiles", tiff(large_HWC, photometric="rgb", tile=(16, 32), compression="zlib"), large_HWC
        ),
        example("tiff predictor", saved(image, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), RGB_HWC),
        example("tiff jpeg", saved(smooth, "TIFF", compression="jpeg", quality=100), SMOOTH_HWC, 6),
        example("webp lossless", saved(image, "WEBP", lossless=True), RGB_HWC),
        example("webp lossy", saved(smooth, "WEBP", quality=100), SMOOTH_HWC, 20),
        example("avif", saved(smooth, "AVIF", quality=100, subsampling="4:4:4"), SMOOTH_HWC, 6),
        example("jpeg", saved(smooth, "JPEG", quality=100, subsampling=0), SMOOTH_HWC, 4),
        example("jpeg progressive", saved(smooth, "JPEG", quality=100, subsampling=0, progressive=True), SMOOTH_HWC, 4),
        example("jpeg of rgb", saved(smooth, "JPEG", quality=100, keep_rgb=True), SMOOTH_HWC, 4),
        example("bmp 32 bits", bmp(32, 1, bytes([9, 8, 7, 0])), [[DARK]]),
        example("bmp 16 bits", bmp(16, 2, five_six_five, masks=(0xF800, 0x07E0, 0x001F)), [[RED, (0, 255, 255)]]),
        example("bmp 15 bits", bmp(16, 1, struct.pack("<H", 0b0_11111_00000_00000) + bytes(2)), [[RED]]),
    ]


def bmp(bits: int, width: int, pixels: bytes, *, masks: tuple[int, ...] = ()) -> bytes:
    """A BMP of one row; a fourth mask is alpha's."""
    table = struct.pack(f"<{len(masks)}I", *masks)
    size = 56 if len(masks) == 4 else 40
    information = struct.pack("<IiiHHIIiiII", size, width, 1, 1, bits, 3 if masks else 0, len(pixels), 0, 0, 0, 0)
    return _bmp_file(information + table, pixels)


def _bmp_file(information: bytes, pixels: bytes) -> bytes:
    start = 14 + len(information)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + information + pixels


def colour_of_16_bits() -> list[Example]:
    planes_CHW = np.moveaxis(SIXTEEN_HWC, -1, 0)
    return [
        example("png", one_row_png(16, 2, SIXTEEN_HWC.astype(">u2").tobytes(), 1), UPPER_BYTES),
        example("png with alpha", one_row_png(16, 6, _sixteen_and_alpha(), 1), UPPER_BYTES),
        example("png gray with alpha", one_row_png(16, 4, struct.pack(">2H", 257 * 20 + 200, 65535), 1), gray([[20]])),
        example("tiff", tiff(SIXTEEN_HWC, photometric="rgb"), UPPER_BYTES),
        example("tiff big-endian", tiff(SIXTEEN_HWC, photometric="rgb", byteorder=">"), UPPER_BYTES),
        example("tiff deflated", tiff(SIXTEEN_HWC, photometric="rgb", compression="zlib"), UPPER_BYTES),
        example("tiff planes", tiff(planes_CHW, photometric="rgb", planarconfig="separate"), UPPER_BYTES),
        example(
            "tiff big-endian planes",
            tiff(planes_CHW, photometric="rgb", planarconfig="separate", byteorder=">"),
            UPPER_BYTES,
        ),
    ]


def _sixteen_and_alpha() -> bytes:
    return SIXTEEN_HWC.astype(">u2").tobytes() + b"\xff\xff"


def palettes() -> list[Example]:
    image = palette_image([[0, 1, 2, 1]])
    run_of_two_twice = bytes([2, 0, 2, 2, 0, 0, 0, 1])
    return [
        example("png 1 bit", one_row_png(1, 3, bytes([0b01_000000]), 2, PALETTE), [[RED, GREEN]]),
        example("png 2 bits", one_row_png(2, 3, bytes([0b00_01_10_01]), 4, PALETTE), LOOKED_UP),
        example("png 4 bits", one_row_png(4, 3, bytes([0x01, 0x21]), 4, PALETTE), LOOKED_UP),
        *(example(kind.lower(), saved(image, kind), LOOKED_UP) for kind in ("PNG", "GIF", "BMP", "TIFF")),
        example("tiff lzw", saved(image, "TIFF", compression="tiff_lzw"), LOOKED_UP),
        example("bmp run lengths", rle_bmp(run_of_two_twice), [[RED, RED, DARK, DARK]]),
    ]


def rle_bmp(pixels: bytes) -> bytes:
    """A BMP of one row of four, run-length encoded, with the palette of `palette_image`."""
    table = b"".join(bytes([*color[::-1], 0]) for color in (RED, GREEN, DARK))
    information = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 1, len(pixels), 0, 0, 3, 0)
    return _bmp_file(information + table, pixels)


CMYK_HWC = np.array(
    [[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [51, 102, 0, 51], [0, 0, 0, 255]]], dtype=np.uint8
)
FROM_CMYK = [[WHITE, (0, 255, 255), RED, (163, 122, 204), BLACK]]
"""(255 - 51) * (255 - 51) / 255 = 163.2, (255 - 102) * 204 / 255 = 122.4, 255 * 204 / 255 = 204."""


def inks() -> list[Example]:
    image = Image.fromarray(CMYK_HWC, mode="CMYK")
    wide = Image.fromarray(np.repeat(np.repeat(CMYK_HWC, 8, axis=0), 8, axis=1), mode="CMYK")
    expected_wide = np.repeat(np.repeat(FROM_CMYK, 8, axis=0), 8, axis=1)
    sixteen_HWC = CMYK_HWC.astype(np.uint16) * 257
    return [
        example("tiff", saved(image, "TIFF"), FROM_CMYK, 1),
        example("tiff lzw", saved(image, "TIFF", compression="tiff_lzw"), FROM_CMYK, 1),
        example("tiff 16 bits", tiff(sixteen_HWC, photometric="separated"), FROM_CMYK, 1),
        example("jpeg as Adobe writes it", saved(wide, "JPEG", quality=100), expected_wide, 2),
    ]


def luminance() -> list[Example]:
    """ITU-R BT.601: Y alone is gray; red is Y 76, Cb 85, Cr 255."""
    values_HWC = np.array([[[99, 128, 128], [76, 85, 255]]], dtype=np.uint8)
    image = Image.fromarray(values_HWC, mode="YCbCr")
    return [
        example("tiff", saved(image, "TIFF"), [[(99, 99, 99), (254, 0, 0)]], 1),
    ]


HALF = 128
HALF_OF_RED = (255, 127, 127)
"""128 / 255 of red on white: 255 - 128 = 127 is left of green and blue."""


def alpha() -> list[Example]:
    rgba_HWC = np.array([[[*RED, HALF], [*GREEN, 255], [*DARK, 0]]], dtype=np.uint8)
    on_white = [[HALF_OF_RED, GREEN, WHITE]]
    la_HWC = np.array([[[0, HALF], [99, 255], [99, 0]]], dtype=np.uint8)
    gray_on_white = gray([[127, 99, 255]])
    image, gray_image = Image.fromarray(rgba_HWC), Image.fromarray(la_HWC, mode="LA")
    premultiplied_HWC = np.array([[[HALF, 0, 0, HALF], [*GREEN, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    gray_premultiplied_HWC = np.array([[[0, HALF], [99, 255], [0, 0]]], dtype=np.uint8)
    masks = (0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    return [
        *(example(f"{kind.lower()}", saved(image, kind), on_white, 1) for kind in ("PNG", "TIFF")),
        example("webp", saved(image, "WEBP", lossless=True), on_white, 1),
        example(
            "avif", saved(Image.new("RGBA", (8, 8), (0, 0, 0, HALF)), "AVIF", quality=100), flat((127,) * 3, 8, 8), 2
        ),
        example("png 16 bits", one_row_png(16, 6, (rgba_HWC.astype(">u2") * 257).tobytes(), 3), on_white, 1),
        *(example(f"gray {kind.lower()}", saved(gray_image, kind), gray_on_white, 1) for kind in ("PNG", "TIFF")),
        example("gray png 16 bits", one_row_png(16, 4, (la_HWC.astype(">u2") * 257).tobytes(), 3), gray_on_white, 1),
        example(
            "tiff premultiplied", tiff(premultiplied_HWC, photometric="rgb", extrasamples=["assocalpha"]), on_white, 1
        ),
        example(
            "gray tiff premultiplied",
            tiff(gray_premultiplied_HWC, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]),
            gray_on_white,
            1,
        ),
        example(
            "tiff of a sample that is not alpha",
            tiff(rgba_HWC, photometric="rgb", extrasamples=["unspecified"]),
            [[RED, GREEN, DARK]],
        ),
        example("bmp", bmp(32, 2, bytes([0, 0, 255, HALF, 0, 128, 0, 255]), masks=masks), [[HALF_OF_RED, GREEN]], 1),
        example("palette png", saved(palette_image([[0, 1, 2]]), transparency=bytes([HALF, 255, 0])), on_white, 1),
    ]


def transparent_colour() -> list[Example]:
    sixteen = np.array([[[1000, 2000, 3000], [1000, 2000, 3001], [257, 257, 257]]], dtype=">u2")
    return [
        example("png 1 bit", one_row_png(1, 0, bytes([0b01_000000]), 2, tRNS(0)), [[WHITE, WHITE]]),
        example("png 2 bits", one_row_png(2, 0, TWO_BITS, 4, tRNS(1)), gray([[0, 255, 170, 255]])),
        example("png 4 bits", one_row_png(4, 0, FOUR_BITS, 4, tRNS(9)), gray([[0, 17, 255, 255]])),
        example("png 8 bits", one_row_png(8, 0, bytes([9, 80]), 2, tRNS(9)), gray([[255, 80]])),
        example("png 16 bits", one_row_png(16, 0, struct.pack(">2H", 2313, 2314), 2, tRNS(2313)), gray([[255, 9]])),
        example("png rgb", one_row_png(8, 2, bytes([1, 2, 3, 1, 2, 4]), 2, tRNS(1, 2, 3)), [[WHITE, (1, 2, 4)]]),
        example(
            "png rgb 16 bits",
            one_row_png(16, 2, sixteen.tobytes(), 3, tRNS(1000, 2000, 3000)),
            [[WHITE, (3, 7, 11), (1, 1, 1)]],
        ),
        example("palette png", saved(palette_image([[0, 1, 2]]), transparency=1), [[RED, WHITE, DARK]]),
        example("gif", saved(palette_image([[0, 1, 2]]), "GIF", transparency=1), [[RED, WHITE, DARK]]),
    ]


def orientation() -> list[Example]:
    """6: the stored left edge is the upper edge, from right to left."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image, upright_HWC = Image.fromarray(RGB_HWC), np.rot90(RGB_HWC, -1)
    sides = Image.fromarray(np.repeat([[BLACK] * 8 + [WHITE] * 8], 16, axis=0).astype(np.uint8))
    halves_HWC = np.rot90(np.asarray(sides), -1)
    return [
        Example("png", saved(image, "PNG", exif=exif), upright_HWC, orientation=6),
        Example("tiff", saved(image, "TIFF", exif=exif), upright_HWC, orientation=6),
        Example("tiff lzw", saved(image, "TIFF", exif=exif, compression="tiff_lzw"), upright_HWC, orientation=6),
        Example("webp", saved(image, "WEBP", lossless=True, exif=exif), upright_HWC, orientation=6),
        Example("jpeg", saved(sides, "JPEG", exif=exif, quality=100), halves_HWC, 1, orientation=6),
        Example("avif", saved(sides, "AVIF", exif=exif, quality=100), halves_HWC, 2, orientation=6),
    ]


def profiles() -> list[Example]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(RGB_HWC)
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    return [
        *(example(kind.lower(), saved(image, kind, icc_profile=profile), RGB_HWC) for kind in ("PNG", "TIFF")),
        example("webp", saved(image, "WEBP", lossless=True, icc_profile=profile), RGB_HWC),
        example("png gamma", one_row_png(8, 0, bytes([9, 80]), 2, gamma), gray([[9, 80]])),
        example("jpeg", saved(Image.new("L", (8, 8), 99), "JPEG", icc_profile=profile), flat((99,) * 3, 8, 8)),
    ]


def several_images() -> list[Example]:
    return [
        example("gif", gif_of_frames("red", "lime", "blue"), flat(RED, 8, 6)),
        example("apng", animated("PNG"), flat(RED, 16, 16)),
        example("webp", animated("WEBP", lossless=True), flat(RED, 16, 16)),
        example("avif", animated("AVIF", quality=100), flat(RED, 16, 16), 4),
        example("tiff", animated("TIFF"), flat(RED, 16, 16)),
        example("mpo", animated("MPO", quality=100), flat(RED, 16, 16), 2),
    ]


ACCEPTED = {
    "gray, 1 to 8 bits": gray_of_few_bits(),
    "gray, 16 bits, and 12 (little-endian TIFF)": gray_of_more_bits(),
    "gray where white is zero (TIFF of 1 to 8 bits, or 16, little-endian)": white_is_zero(),
    "colour, 8 bits": colour(),
    "colour, 16 bits": colour_of_16_bits(),
    "palette": palettes(),
    "CMYK": inks(),
    "YCbCr": luminance(),
    "alpha": alpha(),
    "one transparent colour (PNG, GIF)": transparent_colour(),
    "EXIF orientation": orientation(),
    "colour profile, gamma": profiles(),
    "several images in a file": several_images(),
}
"""By the first column of the table in docs/images.md."""


FLOATS = np.zeros((4, 4), dtype=np.float32)
EIGHT = np.zeros((8, 8), dtype=np.uint8)


def huffman_jpeg() -> bytes:
    return saved(Image.new("L", (8, 8), 99), "JPEG")


def rare_jpegs() -> list[tuple[str, bytes]]:
    """Headers are enough: they are refused before anything is decoded."""
    frame = jpeg_frame(0xC0, 8, 8)
    arithmetic, hierarchical = jpeg_frame(0xC9, 8, 8), jpeg_frame(0xC5, 8, 8)
    return [
        ("arithmetic", huffman_jpeg().replace(frame, arithmetic)),
        ("hierarchical", huffman_jpeg().replace(frame, hierarchical)),
        ("12 bits", huffman_jpeg().replace(frame, jpeg_frame(0xC1, 8, 8, bits=12))),
    ]


def rare_tiffs() -> list[tuple[str, bytes]]:
    lab = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8), mode="LAB")
    return [
        ("float", tiff(FLOATS)),
        ("double", tiff(FLOATS.astype(np.float64))),
        ("32 bits", tiff(FLOATS.astype(np.uint32))),
        ("signed 16 bits", tiff(FLOATS.astype(np.int16))),
        ("ten channels", tiff(np.zeros((4, 4, 10), dtype=np.uint8), photometric="minisblack", planarconfig="contig")),
        ("LAB", saved(lab, "TIFF")),
        ("LZMA", saved(Image.fromarray(EIGHT), "TIFF", compression="lzma")),
    ]


def other_formats() -> list[tuple[str, bytes]]:
    return [
        ("text", b"just some text"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("pdf", b"%PDF-1.7"),
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("jpeg 2000", saved(Image.fromarray(EIGHT), "JPEG2000")),
        ("mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"),
        ("wav", b"RIFF\x24\0\0\0WAVEfmt "),
        ("ppm", saved(Image.fromarray(EIGHT), "PPM")),
    ]


def broken_files() -> list[tuple[str, bytes]]:
    """Of each format the first half, and the first bytes only."""
    whole = {
        kind: saved(Image.fromarray(random_image(32, 32)), kind)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF", "BMP")
    }
    return [(f"half a {kind}", data[: len(data) // 2]) for kind, data in whole.items()] + [
        (f"start of a {kind}", data[:12]) for kind, data in whole.items()
    ]


REFUSED = {
    "JPEG with arithmetic codes, hierarchical, or of 12 bits": (415, rare_jpegs()),
    "TIFF of 32 bits, signed, floats, LAB, more channels, gray and alpha in planes or of 16 bits, big-endian BigTIFF, "
    "or rarely compressed": (415, rare_tiffs()),
    "any other format (HEIC, JPEG 2000, SVG, PDF, ...)": (415, other_formats()),
    "truncated or corrupt": (422, broken_files()),
}
"""By the first column of the table in docs/images.md: the status, and files."""
