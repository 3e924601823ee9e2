"""docs/images.md is true: its table, row by row, its limits, and independent decoders on every file that is taken."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

from segserve import codec
from segserve.codec import decode_image
from segserve.problem import Problem
from tests.examples_of_images import ACCEPTED, REFUSED, Example
from tests.pictures import with_checksums
from tests.test_codec import ODD_IMAGES, tolerates_pillows_warnings

PAGE = (Path(__file__).resolve().parents[1] / "docs/images.md").read_text()
EXAMPLES = [pytest.param(each, id=f"{row}: {each.name}") for row, examples in ACCEPTED.items() for each in examples]
REFUSALS = [
    pytest.param(data, status, id=f"{row}: {name}") for row, (status, files) in REFUSED.items() for name, data in files
]


def table_after(heading: str) -> dict[str, str]:
    """The first two columns of the table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1] for row in rows[2:]}


def test_every_row_of_the_table_has_examples_and_every_example_a_row() -> None:
    assert list(table_after("What becomes of each kind")) == [*ACCEPTED, *REFUSED]
    assert all(ACCEPTED.values())


def test_the_page_names_the_formats_and_limits_of_the_code() -> None:
    assert f"{', '.join(codec.FORMATS)}." in PAGE.replace("WebP", "WEBP")
    limits = table_after("Limits")
    assert limits["bytes"] == f"{codec.MAX_BYTES // 2**20} MiB"
    assert limits["pixels"] == f"{codec.MAX_PIXELS // 1_000_000} megapixels"
    assert limits["seconds"] == f"{codec.MAX_SECONDS:g}"
    assert limits["strips or tiles of a TIFF"] == f"{codec.MAX_TIFF_PIECES:,}"


@tolerates_pillows_warnings
@pytest.mark.parametrize("each", EXAMPLES)
def test_a_kind_becomes_what_the_page_says(each: Example) -> None:
    found_HWC = decode_image(each.data)
    assert found_HWC.shape == each.expected_HWC.shape
    assert distance(found_HWC, each.expected_HWC) <= each.tolerance


@tolerates_pillows_warnings
@pytest.mark.parametrize(("data", "status"), REFUSALS)
def test_a_kind_is_refused_as_the_page_says(data: bytes, status: int) -> None:
    with pytest.raises(Problem, match=r"expected .* but ") as caught:
        decode_image(data)
    assert caught.value.status == status


Pixels = NDArray[np.float64]
"""(H, W, 3), 0 to 255."""


def distance(one_HWC: NDArray[Any], other_HWC: NDArray[Any]) -> float:
    """The largest difference, levels."""
    return float(np.abs(one_HWC.astype(float) - other_HWC).max())


def opencv(data: bytes) -> Pixels | None:
    """OpenCV's own way to colour; it turns as EXIF says in JPEG, PNG and TIFF, and leaves alpha out."""
    image_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if image_HWC is None else image_HWC.astype(float)


def opencv_samples(data: bytes) -> Pixels | None:
    """What OpenCV finds stored, on white."""
    image_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image_HWC is None:
        return None
    samples_HWC = np.atleast_3d(image_HWC) * (1 / 257 if image_HWC.dtype == np.uint16 else 1)
    blue_first = (2, 1, 0, 3)[: samples_HWC.shape[2]]
    return on_white(samples_HWC[..., blue_first] if samples_HWC.shape[2] > 2 else samples_HWC)


def gdal(data: bytes) -> Pixels | None:
    """What GDAL finds stored, on white."""
    return _read_by_gdal(data, _rgb_of)


def gdal_premultiplied(data: bytes) -> Pixels | None:
    """As `gdal`, where the colours were multiplied by alpha before."""
    return _read_by_gdal(data, _premultiplied_rgb_of)


def _read_by_gdal(data: bytes, read: Callable[[DatasetReader], Pixels | None]) -> Pixels | None:
    try:
        with MemoryFile(data) as file, file.open() as dataset:
            return read(dataset)
    except RasterioIOError:
        return None


def _premultiplied_rgb_of(dataset: DatasetReader) -> Pixels | None:
    samples_HWC = dataset.read().transpose(1, 2, 0).astype(float)
    return samples_HWC[..., :3] + 255 - samples_HWC[..., 3:] if samples_HWC.shape[2] == 4 else None


def _rgb_of(dataset: DatasetReader) -> Pixels:
    samples_HWC = dataset.read().transpose(1, 2, 0)
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", samples_HWC.dtype.itemsize * 8))
    kinds = [kind.name for kind in dataset.colorinterp]
    if kinds == ["palette"] and bits <= 8:
        colors = dataset.colormap(1)
        return on_white(np.array([colors.get(index, (0, 0, 0, 255)) for index in range(256)])[samples_HWC[..., 0]])
    levels_HWC = samples_HWC * (255 / (2**bits - 1))
    if kinds == ["cyan", "magenta", "yellow", "black"]:
        return (255 - levels_HWC[..., :3]) * (255 - levels_HWC[..., 3:]) / 255
    key = dataset.tags().get("NODATA_VALUES", "").split() or [dataset.nodata] * (dataset.nodata is not None)
    if key:
        levels_HWC[(samples_HWC == np.array(key, dtype=float)).all(axis=-1)] = 255
    return on_white(levels_HWC)


def on_white(samples_HWC: NDArray[Any]) -> Pixels:
    """1 to 4 channels, 0 to 255, to three."""
    colour_HWC, alpha_HW1 = samples_HWC.astype(float), np.ones(1)
    if samples_HWC.shape[2] in (2, 4):
        colour_HWC, alpha_HW1 = colour_HWC[..., :-1], colour_HWC[..., -1:] / 255
    composed_HWC = colour_HWC * alpha_HW1 + 255 * (1 - alpha_HW1)
    return np.repeat(composed_HWC, 3, axis=-1) if composed_HWC.shape[2] == 1 else composed_HWC


TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    3: lambda stored: stored[::-1, ::-1],
    6: lambda stored: np.rot90(stored, -1),
    8: lambda stored: np.rot90(stored, 1),
}
JUDGES = (opencv, opencv_samples, gdal, gdal_premultiplied)


def least_distance(found_HWC: NDArray[np.uint8], data: bytes, *, orientation: int) -> float:
    """To the judge that is nearest; infinity where none reads the file, or all find another size."""
    return min(
        (distance(found_HWC, each) for each in verdicts(data, orientation) if each.shape == found_HWC.shape),
        default=np.inf,
    )


def verdicts(data: bytes, orientation: int) -> Iterator[Pixels]:
    """Each judge's pixels, also turned by hand where the file has an orientation: not every judge turns."""
    for judge in JUDGES:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            pixels_HWC = judge(data)
        if pixels_HWC is not None:
            yield pixels_HWC
            if orientation in TURNED:
                yield TURNED[orientation](pixels_HWC)


@tolerates_pillows_warnings
@pytest.mark.parametrize("each", EXAMPLES)
def test_an_independent_decoder_agrees_on_every_example(each: Example) -> None:
    """Within one level: 16 bits are rounded or cut off, alpha is rounded once or twice."""
    assert least_distance(decode_image(each.data), each.data, orientation=each.orientation) <= 1


@tolerates_pillows_warnings
@pytest.mark.parametrize("name", [name for name, outcome in ODD_IMAGES.items() if not isinstance(outcome, int)])
def test_an_independent_decoder_agrees_on_every_odd_image(name: str, shared_data: Path) -> None:
    """Within one level again; the file with a wrong checksum, which no judge takes, is judged with a right one."""
    data = (shared_data / "odd_images/files" / name).read_bytes()
    judged = with_checksums(data) if name == "pngsuite_xcsn0g01.png" else data
    orientation = manifest_orientations(shared_data)[name]
    assert least_distance(decode_image(data), judged, orientation=orientation) <= 1


def manifest_orientations(shared_data: Path) -> dict[str, int]:
    entries = json.loads((shared_data / "odd_images/manifest.json").read_text())["files"]
    return {entry["file"]: entry["pillow"].get("exif_orientation") or 1 for entry in entries}
