import io
import json
import random
import struct
import time
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from segserve import codec, png_chunks
from segserve.codec import decode_image
from segserve.problem import Problem
from tests.conftest import random_image
from tests.pictures import gray, jpeg_time_bomb, png, png_chunk, saved, tiff, tiff_of_12_bits

Outcome = tuple[int, int] | int
"""Upright width and height, or the status of the problem."""

ODD_IMAGES: dict[str, Outcome] = {
    **{f"exif_landscape_{orientation}.jpg": (1800, 1200) for orientation in range(1, 9)},
    "hopper_orientation_8.webp": (128, 128),
    "exif_imagemagick_orientation.png": (512, 512),
    "g4_orientation_6.tif": (590, 88),
    "pil_sample_cmyk.jpg": (100, 100),
    "app13-multiple.jpg": (256, 160),
    "hopper_gray.jpg": (128, 128),
    "invalid-exif.jpg": (200, 200),  # the pixels are whole: a broken description is no reason to refuse them
    "junk_jpeg_header.jpg": (1024, 768),
    "sugarshack_mpo.jpg": (640, 480),
    "truncated_jpeg.jpg": 422,
    "truncated_image.png": 422,
    "broken_data_stream.png": 422,
    "png_decompression_dos.png": 422,  # its pixels are few: it is the text in it that expands
    "i_trns.png": (64, 64),
    "p_trns_single.png": (64, 64),
    "pil123p.png": (162, 150),
    "hopper_bw_500.png": (500, 500),
    "transparent.png": (200, 150),
    "uncompressed_la.png": (128, 128),
    "chi.gif": (320, 240),
    "iss634.webp": (245, 245),
    "apng_mode_palette.png": (128, 64),
    "hopper.avif": (128, 128),
    "hopper_lzw.tif": (128, 128),
    "multipage.tiff": (10, 10),
    "12bit.cropped.tif": (100, 100),
    "10ct_32bit_128.tiff": 415,  # floats have no largest value, so that no rule could say what is white
    "hopper.bmp": (128, 128),
    "hopper_rle8.bmp": (128, 128),
    "short_file.bmp": 422,
    "decompression_bomb.gif": 413,
    "zero_width.gif": 422,
    "jfif_unit_cm.jpg": (1, 1),
    "pngsuite_basi0g16.png": (32, 32),
    "pngsuite_basn6a16.png": (32, 32),
    "pngsuite_xc1n0g08.png": 422,
    "pngsuite_xd9n2c08.png": 422,
    "pngsuite_xcsn0g01.png": (32, 32),  # only a checksum is wrong; Pillow decodes it, as browsers do
    "pngsuite_xdtn0g01.png": 422,
    "pngsuite_xs1n0g01.png": 415,  # without its signature it is no PNG
    "half_landscape.jpg": 422,
    "zero_bytes.jpg": 400,  # an empty body, whatever the name
    "webp_named.jpg": (128, 128),
}

RGB_PLANES = {"photometric": "rgb", "planarconfig": "separate"}

tolerates_pillows_warnings = pytest.mark.filterwarnings("ignore::UserWarning")
"""Pillow warns of broken EXIF and the like; elsewhere here warnings are errors."""


def decode(image: Image.Image, kind: str = "PNG", **options: Any) -> NDArray[np.uint8]:
    return decode_image(saved(image, kind, **options))


def refused(data: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        decode_image(data)
    return caught.value


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda stored: np.rot90(stored, 1)),
        (0, lambda stored: stored),
        (9, lambda stored: stored),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: Any, kind: str) -> None:
    stored_HWC = random_image(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found_HWC = decode(Image.fromarray(stored_HWC), kind, exif=exif, **options)
    np.testing.assert_array_equal(found_HWC, upright(stored_HWC))


def test_jpeg_orientation_turns_the_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(Image.new("RGB", (40, 20)), "JPEG", exif=exif).shape == (40, 20, 3)


def test_rgb_stays_as_it_is() -> None:
    image_HWC = random_image(6, 9)
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(Image.fromarray(image_HWC), kind), image_HWC)


def test_palettes_are_looked_up() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 128, 0, 7, 8, 9])
    assert decode(image).tolist() == [[[255, 0, 0], [0, 128, 0]], [[7, 8, 9], [0, 128, 0]]]


def test_bits_become_black_and_white() -> None:
    image = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(image), gray([[0, 255, 255]]))


def test_gray_is_repeated() -> None:
    np.testing.assert_array_equal(decode(Image.fromarray(np.array([[3, 200]], dtype=np.uint8))), gray([[3, 200]]))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_divided_by_257(kind: str) -> None:
    values_HW = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(decode(Image.fromarray(values_HW * 257), kind), gray(values_HW.tolist()))


def test_16_bit_gray_is_rounded() -> None:
    values_HW = np.array([[0, 128, 129, 65535 - 129, 65535 - 128]], dtype=np.uint16)
    np.testing.assert_array_equal(decode(Image.fromarray(values_HW)), gray([[0, 0, 1, 254, 255]]))


def test_12_bit_gray_keeps_its_range() -> None:
    samples = f"{0:012b}{4095:012b}{2048:012b}{1606:012b}"
    data = tiff_of_12_bits(int(samples, 2).to_bytes(6, "big"), width=4)
    np.testing.assert_array_equal(decode_image(data), gray([[0, 255, 128, 100]]))


def test_16_bit_colour_and_alpha() -> None:
    pixels = struct.pack(">8H", 257 * 10, 257 * 20, 257 * 30, 65535, 257 * 10, 257 * 20, 257 * 30, 0)
    data = png(2, 1, 16, 6, (b"IDAT", zlib.compress(b"\0" + pixels)))
    assert decode_image(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def on_white(values: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return values * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_rgba_is_composed_on_white(kind: str) -> None:
    rgb_HWC, alpha_HW = random_image(8, 9), random_image(8, 9, seed=1)[..., 0]
    found = decode(Image.fromarray(np.dstack([rgb_HWC, alpha_HW])), kind)
    np.testing.assert_allclose(found, on_white(rgb_HWC, alpha_HW), atol=1)


def test_gray_with_alpha_is_composed_on_white() -> None:
    gray_HW, alpha_HW = random_image(8, 9)[..., 0], random_image(8, 9, seed=1)[..., 0]
    image = Image.merge("LA", [Image.fromarray(gray_HW), Image.fromarray(alpha_HW)])
    expected = on_white(np.repeat(gray_HW[..., None], 3, axis=-1), alpha_HW)
    np.testing.assert_allclose(decode(image), expected, atol=1)


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (1, [[[255, 0, 0], [255, 255, 255], [7, 8, 9]]]),
        (b"\xff\x00\x80", [[[255, 0, 0], [255, 255, 255], [131, 131, 132]]]),
    ],
    ids=["one entry", "a table"],
)
def test_transparent_palette_entries_become_white(transparency: object, expected: list[Any]) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 128, 0, 7, 8, 9])
    np.testing.assert_allclose(decode(image, transparency=transparency), expected, atol=1)


@pytest.mark.parametrize(
    ("image_HW", "transparency"),
    [(np.array([[9, 80]], dtype=np.uint8), 9), (np.array([[257 * 9, 257 * 80]], dtype=np.uint16), 257 * 9)],
    ids=["8 bits", "16 bits"],
)
def test_a_transparent_gray_value_becomes_white(image_HW: NDArray[Any], transparency: int) -> None:
    if image_HW.dtype == np.uint8:
        data = saved(Image.fromarray(image_HW), transparency=transparency)
    else:
        pixels = b"\0" + image_HW.astype(">u2").tobytes()
        data = png(2, 1, 16, 0, (b"tRNS", struct.pack(">H", transparency)), (b"IDAT", zlib.compress(pixels)))
    np.testing.assert_array_equal(decode_image(data), gray([[255, 80]]))


def test_a_transparent_colour_becomes_white() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert decode(image, transparency=(1, 2, 3)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_is_light_that_the_inks_leave() -> None:
    cmyk_HWC = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    expected = (255.0 - cmyk_HWC[..., :3]) * (255.0 - cmyk_HWC[..., 3:]) / 255
    found = decode(Image.fromarray(cmyk_HWC, mode="CMYK"), "TIFF")
    np.testing.assert_allclose(found, expected, atol=1)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    found = decode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([255, 0, 0]), (6, 8, 3)))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (100_000_001, 1), (14_000, 8_000)])
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    problem = refused(png(width, height, 8, 2))  # there is nothing to decode
    assert problem.status == 413
    assert "expected at most 100000000 pixels" in problem.detail


@pytest.mark.parametrize("kind", codec.FORMATS)
def test_the_pixel_limit_holds_for_every_format(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_PIXELS", 32 * 32)
    assert decode(Image.new("RGB", (32, 32)), kind).shape == (32, 32, 3)
    problem = refused(saved(Image.new("RGB", (32, 33)), kind))
    assert (problem.status, problem.detail) == (
        413,
        "expected at most 1024 pixels, but got 32 x 33: send a smaller image",
    )


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("RGB", (8, 8)))
    monkeypatch.setattr(codec, "MAX_BYTES", len(data) - 1)
    problem = refused(data)
    assert problem.status == 413
    assert f"expected at most {len(data) - 1} bytes, but got {len(data)}" in problem.detail


AVIF = saved(Image.fromarray(random_image(32, 32)), "AVIF")
AVIF_HEAD = AVIF[: AVIF.index(b"mdat") + 4]


def test_time_runs_out_during_a_jpeg_of_endless_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 200 000 scans passes over 62 500 blocks: minutes of work in 3 MiB."""
    monkeypatch.setattr(codec, "MAX_SECONDS", 0.2)
    data = jpeg_time_bomb(2000, 200_000)
    start = time.monotonic()
    problem = refused(data)
    assert time.monotonic() - start < 2
    assert (problem.kind, problem.detail) == (
        "too-large",
        "expected an image that is decoded within 0.2 s, but this one takes longer: send a smaller or a simpler one",
    )


def test_few_scans_are_decoded() -> None:
    np.testing.assert_array_equal(decode_image(jpeg_time_bomb(16, 3)), gray(np.full((16, 16), 128)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_time_runs_out_wherever_pillow_asks_for_more_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps once the header has been read: the image is refused while its pixels are decoded."""
    data = saved(Image.fromarray(random_image(300, 300)), kind)
    opened = codec._open(data)
    too_late = time.monotonic() + codec.MAX_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: too_late)
    with pytest.raises(Problem, match="is decoded within 10 s") as caught:
        codec._load(opened, data)
    assert caught.value.status == 413


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_large_avif_is_decoded_apart_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(random_image(20, 30)).convert(mode), "AVIF", exif=exif)
    here_HWC = decode_image(data)
    monkeypatch.setattr(codec, "MAX_AVIF_WORK", 0)
    np.testing.assert_array_equal(decode_image(data), here_HWC)


def test_an_avif_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_AVIF_WORK", 0)
    monkeypatch.setattr(codec, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(codec, "AVIF_TO_PIXELS", "import time; time.sleep(60)")
    start = time.monotonic()
    assert refused(AVIF).detail.startswith("expected an image that is decoded within 0.3 s")
    assert time.monotonic() - start < 20


def test_a_broken_avif_decoded_apart_is_undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_AVIF_WORK", 0)
    problem = refused(AVIF_HEAD + bytes(len(AVIF) - len(AVIF_HEAD)))
    assert (problem.status, "decoding failed (RuntimeError: Failed to decode frame 0" in problem.detail) == (422, True)


def test_an_avif_decoded_apart_that_needs_too_much_memory_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_AVIF_WORK", 0)
    monkeypatch.setattr(codec, "AVIF_TO_PIXELS", "raise MemoryError")
    with pytest.raises(MemoryError):
        decode_image(AVIF)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_header_cannot_take_longer_than_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of empty pieces before the pixels, which Pillow reads one by one."""
    whole = saved(Image.new("L", (8, 8)), kind)
    at, piece = {"JPEG": (2, b"\xff\xfe\0\2"), "PNG": (33, png_chunk(b"tEXt", b"a\0")), "GIF": (13, b"!\xfe\1a\0")}[
        kind
    ]
    monkeypatch.setattr(codec, "MAX_SECONDS", 0.2)
    start = time.monotonic()
    assert refused(whole[:at] + piece * 1_000_000 + whole[at:]).status == 413
    assert time.monotonic() - start < 2


def test_tiles_larger_than_the_pixel_limit_are_refused() -> None:
    """The image has one pixel, but libtiff decodes the whole tile."""
    data = tiff(np.zeros((1, 1), dtype=np.uint8), tile=(16, 16), compression="zlib")
    for tag in (322, 323):
        side = struct.pack("<HHI", tag, 4, 1)
        assert side in data
        data = data.replace(side + struct.pack("<I", 16), side + struct.pack("<I", 30_000))
    assert refused(data).detail.startswith("expected at most 100000000 pixels, but got 30000 x 30000")


def test_tiff_strips_that_share_their_bytes_are_counted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips may name the same megabyte of codes for nothing; libtiff reads it anew for each, and cannot be stopped."""
    data = tiff(np.zeros((64, 8), dtype=np.uint8), rowsperstrip=1, compression="zlib")
    decode_image(data)
    monkeypatch.setattr(codec, "MAX_BYTES", len(data))
    counts = TiffImagePlugin.TiffImageFile(io.BytesIO(data)).tag_v2[TiffImagePlugin.STRIPBYTECOUNTS]
    shared = data.replace(struct.pack("<64H", *counts), struct.pack("<64H", *[len(data) // 60] * 64))
    assert refused(shared).detail.startswith(f"expected strips of at most {len(data)} bytes in all, but got")


@pytest.mark.parametrize(
    ("shape", "options", "detail"),
    [
        ((8, 8, 3), {"photometric": "rgb", "byteorder": ">", "bigtiff": True}, "a big-endian BigTIFF: save it anew"),
        ((4, 8, 8), {**RGB_PLANES, "extrasamples": ["unspecified"]}, "another (string index out of range): save it"),
        ((2, 8, 8), {"planarconfig": "separate", "extrasamples": ["unassalpha"]}, "planes: save it as PNG"),
        (
            (2, 8, 8),
            {"planarconfig": "separate", "extrasamples": ["unassalpha"], "compression": "zlib"},
            "planes: save",
        ),
    ],
)
def test_whole_tiffs_that_pillow_does_not_read(shape: tuple[int, ...], options: dict[str, Any], detail: str) -> None:
    problem = refused(tiff(np.zeros(shape, dtype=np.uint8), **{"photometric": "minisblack", **options}))
    assert problem.status == 415
    assert detail in problem.detail


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_too_many_tiff_strips_are_refused_from_the_header(byteorder: str, bigtiff: bool) -> None:
    data = tiff(np.zeros((100_001, 1), dtype=np.uint8), rowsperstrip=1, byteorder=byteorder, bigtiff=bigtiff)
    problem = refused(data)
    assert (problem.status, problem.detail) == (
        413,
        "expected at most 100000 strips or tiles, but got 100001: save it in larger ones",
    )


@pytest.mark.parametrize(
    "data", [b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_a_tiff_without_a_directory_is_undecodable(data: bytes) -> None:
    assert refused(data).status == 422


def with_type(data: bytes, tag: int, *, kind: int) -> bytes:
    """The same little-endian TIFF, one tag's type replaced."""
    (start,) = struct.unpack_from("<I", data, 4)
    at = next(at for at in range(start + 2, len(data), 12) if struct.unpack_from("<H", data, at)[0] == tag)
    return data[: at + 2] + struct.pack("<H", kind) + data[at + 4 :]


@pytest.mark.parametrize("tag", [256, 258, 259, 262, 273, 278, 279])
@pytest.mark.parametrize("kind", [2, 5, 7, 12], ids=["text", "fraction", "bytes", "float"])
def test_tiff_tags_of_a_wrong_type_are_refused_or_understood(tag: int, kind: int) -> None:
    """Byte counts that were text ended in a TypeError; found by tests/fuzz/fuzz_decode.py, 2026-11-23."""
    decodes_or_is_refused(with_type(saved(Image.fromarray(random_image(8, 8)), "TIFF"), tag, kind=kind))


def test_tiff_byte_counts_of_text_are_undecodable() -> None:
    problem = refused(with_type(saved(Image.new("L", (8, 8)), "TIFF"), 279, kind=2))
    assert problem.kind == "undecodable"
    assert problem.detail.startswith("expected a whole TIFF image, but its header cannot be read (")


def test_a_tiff_tag_that_comes_twice_is_undecodable() -> None:
    """Two readers could take different ones: the checks read one, libtiff the other."""
    data = saved(Image.new("L", (8, 8)), "TIFF")
    twice = data.replace(struct.pack("<HH", 278, 4), struct.pack("<HH", 279, 4))
    assert twice != data
    assert refused(twice).detail == "expected a whole TIFF image, but its first directory has a tag twice"


def frames_of(kind: str, count: int) -> bytes:
    """An animation whose later frames were copied in by hand: writing thousands takes minutes."""
    two = [Image.fromarray(random_image(8, 8, seed=seed)) for seed in range(2)]
    if kind == "WEBP":
        whole = saved(two[0], "WEBP", save_all=True, append_images=two[1:], lossless=True)
        start = whole.rindex(b"ANMF")
        body = whole[8:start] + whole[start:] * (count - 1)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if kind == "PNG":
        pixels = zlib.compress(b"".join(b"\0" + bytes(8) for _ in range(8)))
        control = [struct.pack(">5IHHBB", 2 * n, 8, 8, 0, 0, 1, 10, 0, 0) for n in range(count)]
        later = [((b"fcTL", control[n]), (b"fdAT", struct.pack(">I", 2 * n + 1) + pixels)) for n in range(1, count)]
        first = [(b"acTL", struct.pack(">II", count, 0)), (b"fcTL", control[0]), (b"IDAT", pixels)]
        return png(8, 8, 8, 0, *first, *(chunk for pair in later for chunk in pair))
    if kind == "GIF":
        one = saved(two[0].convert("P"), "GIF")
        start = one.index(b",", 13 + 3 * 2 ** ((one[10] & 7) + 1))
        return one[:-1] + one[start:-1] * (count - 1) + b";"
    one = tiff(np.zeros((8, 8), dtype=np.uint8))
    (start,) = struct.unpack_from("<I", one, 4)
    directory = one[start : start + 2 + 12 * struct.unpack_from("<H", one, start)[0]]
    size = len(directory) + 4
    nexts = [len(one) + size * number for number in range(1, count - 1)] + [0]
    first = one[: start + len(directory)] + struct.pack("<I", len(one)) + one[start + size :]
    return first + b"".join(directory + struct.pack("<I", offset) for offset in nexts)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_ten_thousand_frames_cost_what_their_bytes_cost_to_skip(kind: str) -> None:
    """Only the first is decoded: 10 000 cost less than 0.2 s, where decoding them all takes several."""
    data = frames_of(kind, 10_000)
    if kind == "TIFF":
        assert len(tifffile.TiffFile(io.BytesIO(data)).pages) == 10_000  # Pillow takes seconds to count them
    else:
        assert Image.open(io.BytesIO(data)).n_frames == 10_000
    start = time.process_time()
    decode_image(data)
    assert time.process_time() - start < 0.2


PNG = saved(Image.fromarray(random_image(32, 32)))


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "body is empty: send the file"),
        (
            b"just some text",
            415,
            "expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF, but the bytes start with b'just",
        ),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "expected one of JPEG"),
        (b"%PDF-1.7", 415, "expected one of JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 415, "expected one of JPEG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", 415, "expected one of JPEG"),
        (b"RIFF\x24\0\0\0WAVEfmt ", 415, "expected one of JPEG"),
        (
            saved(Image.new("I", (4, 4)), "TIFF"),
            415,
            "expected 1 to 16 bits a sample, gray, palette, RGB, YCbCr or CMYK",
        ),
        (
            saved(Image.new("F", (4, 4)), "TIFF"),
            415,
            "expected 1 to 16 bits a sample, gray, palette, RGB, YCbCr or CMYK",
        ),
        (PNG[: len(PNG) // 2], 422, "expected a whole PNG image, but decoding failed"),
        (PNG[:20], 422, "expected a whole PNG image, but its header cannot be read"),
        (b"\xff\xd8\xff", 422, "expected a whole JPEG image, but its header cannot be read"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", 422, "expected a whole WEBP image, but its header cannot be read"),
        (AVIF[: len(AVIF) // 2], 422, "expected a whole"),
        (AVIF_HEAD + bytes(len(AVIF) - len(AVIF_HEAD)), 422, "expected a whole AVIF image, but decoding failed"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, status: int, words: str) -> None:
    problem = refused(data)
    assert (problem.status, words in problem.detail) == (status, True), problem.detail


@tolerates_pillows_warnings
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_tag_is_no_reason_to_refuse_the_pixels(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    as_text, as_float = b"\x01\x0f\0\x02\0\0\0\x06", b"\x01\x0f\0\x0b\0\0\0\x01"
    broken = exif.tobytes().replace(as_text, as_float)
    assert decode(Image.new("RGB", (20, 10)), kind, exif=broken).shape == (20, 10, 3)


@tolerates_pillows_warnings
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no such thing", b"Exif\0\0II*\0\x08"], ids=["no EXIF", "cut short"])
def test_a_description_that_is_none_is_no_reason_to_refuse_the_pixels(exif: bytes, kind: str) -> None:
    resolution = {} if kind == "WEBP" else {"dpi": (72, 72)}  # for want of it Pillow looks for one in EXIF
    assert decode(Image.new("RGB", (20, 10)), kind, exif=exif, **resolution).shape == (10, 20, 3)


@pytest.mark.parametrize("is_last", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"zTXt", b"Comment\0\1" + zlib.compress(b"by no method that there is")),
        (b"tEXt", b"Raw profile type exif\0\nexif\n    4\nno hexadecimal"),
        (b"iCCP", b"profile\0\1x"),
        (b"pHYs", b"short"),
        (b"acTL", b"short"),
    ],
    ids=["unknown method", "no hexadecimal", "a profile", "a short density", "short frames"],
)
def test_a_png_whose_descriptions_cannot_be_read_keeps_its_pixels(name: bytes, content: bytes, is_last: bool) -> None:
    image_HWC = random_image(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(Image.fromarray(image_HWC), "PNG", exif=exif)
    place = whole.index(b"IEND") - 4 if is_last else 33
    chunk = len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
    data = whole[:place] + chunk + whole[place:]
    assert (decode_image(data) == np.rot90(image_HWC, -1)).all()
    assert refused(data.replace(b"IDAT", b"IDAX")).kind == "undecodable"


def test_a_png_of_countless_chunks_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.fromarray(random_image(20, 30)), "PNG", dpi=(72, 72))
    assert len(png_chunks.without_descriptions(data)) == len(data) - 21
    monkeypatch.setattr(png_chunks, "MAX_CHUNKS", 3)
    assert png_chunks.without_descriptions(data) is data


def test_running_out_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(codec, "_to_rgb", no_memory)
    with pytest.raises(MemoryError):
        decode(Image.new("RGB", (8, 8)))


@tolerates_pillows_warnings
@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images(name: str, shared_data: Path) -> None:
    data = (shared_data / "odd_images/files" / name).read_bytes()
    expected = ODD_IMAGES[name]
    if isinstance(expected, int):
        assert refused(data).status == expected
    else:
        image_HWC = decode_image(data)
        assert image_HWC.shape == (expected[1], expected[0], 3)
        assert image_HWC.dtype == np.uint8


def test_the_table_of_odd_images_is_whole_and_agrees_with_the_manifest(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "odd_images/manifest.json").read_text())["files"]
    assert sorted(ODD_IMAGES) == sorted(entry["file"] for entry in manifest)
    sizes = {entry["file"]: tuple(entry["pillow"].get("upright_size", ())) for entry in manifest}
    assert {name: size for name, size in ODD_IMAGES.items() if not isinstance(size, int)} == {
        name: sizes[name] for name, size in ODD_IMAGES.items() if not isinstance(size, int)
    }


def test_upright_scenes_agree_whatever_their_orientation(shared_data: Path) -> None:
    """The eight photographs differ by a number printed on them, so that their small versions are nearly equal."""
    files = [shared_data / f"odd_images/files/exif_landscape_{orientation}.jpg" for orientation in range(1, 9)]
    small = [Image.fromarray(decode_image(file.read_bytes())).resize((30, 20)) for file in files]
    scenes = [np.asarray(image).astype(int) for image in small]
    assert max(np.abs(scene - scenes[0]).mean() for scene in scenes) < 3
    assert np.abs(scenes[0] - scenes[0][:, ::-1]).mean() > 20


@tolerates_pillows_warnings
@pytest.mark.parametrize("kind", codec.FORMATS)
def test_broken_files_raise_problems_only(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    whole = saved(Image.fromarray(random_image(12, 16)), kind, **options)
    generator = random.Random(0)
    statuses = set()
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(generator.choice([1, 2, 8])):
            broken[generator.randrange(generator.choice([32, 128, len(broken)])) % len(broken)] = generator.randrange(
                256
            )
        try:
            decode_image(bytes(broken))
        except Problem as problem:
            statuses.add(problem.status)
    assert statuses <= {413, 415, 422}
    assert 422 in statuses or kind == "BMP"


WHOLE_FILES = {kind: saved(Image.fromarray(random_image(12, 16)), kind) for kind in codec.FORMATS} | {
    "progressive JPEG": saved(Image.fromarray(random_image(12, 16)), "JPEG", progressive=True),
    "LZW TIFF": saved(Image.fromarray(random_image(12, 16)), "TIFF", compression="tiff_lzw"),
    "lossless WEBP": saved(Image.fromarray(random_image(12, 16)), "WEBP", lossless=True),
    "palette PNG": saved(Image.fromarray(random_image(12, 16)).convert("P"), transparency=3),
}
HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"II*\0", b"MM\0+", b"BM", b"GIF89a")
whole_files = st.sampled_from(sorted(WHOLE_FILES)).map(WHOLE_FILES.__getitem__)
hypothesis_settings = settings(max_examples=300, deadline=timedelta(seconds=20), derandomize=True)


def decodes_or_is_refused(data: bytes) -> None:
    try:
        image_HWC = decode_image(data)
    except Problem as problem:
        assert problem.status in (400, 413, 415, 422)
    else:
        assert (image_HWC.dtype, image_HWC.ndim, image_HWC.shape[2]) == (np.uint8, 3, 3)


@tolerates_pillows_warnings
@hypothesis_settings
@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=200))
def test_any_bytes_after_a_signature_decode_or_are_refused(head: bytes, rest: bytes) -> None:
    decodes_or_is_refused(head + rest)


@tolerates_pillows_warnings
@hypothesis_settings
@given(whole=whole_files, flips=st.lists(st.integers(0, 8 * 4096), min_size=1, max_size=8))
def test_files_with_flipped_bits_decode_or_are_refused(whole: bytes, flips: list[int]) -> None:
    broken = bytearray(whole)
    for flip in flips:
        broken[flip // 8 % len(whole)] ^= 1 << flip % 8
    decodes_or_is_refused(bytes(broken))


@tolerates_pillows_warnings
@hypothesis_settings
@given(whole=whole_files, share=st.floats(0, 1, exclude_max=True))
def test_files_cut_short_decode_to_their_size_or_are_refused(whole: bytes, share: float) -> None:
    """What lies behind the pixels may be missing; pixels may not."""
    try:
        image_HWC = decode_image(whole[: int(share * len(whole))])
    except Problem as problem:
        assert problem.status in (400, 415, 422)
    else:
        np.testing.assert_array_equal(image_HWC, decode_image(whole))


@given(image_HWC=arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
@settings(deadline=None, derandomize=True)
def test_every_lossless_format_gives_back_the_pixels(image_HWC: NDArray[np.uint8]) -> None:
    for kind, options in (
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ):
        np.testing.assert_array_equal(decode(Image.fromarray(image_HWC), kind, **options), image_HWC)
