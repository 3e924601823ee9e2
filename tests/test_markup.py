import base64
import io
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.markup import MOST_PIXELS_WIDE, document, heat_cell, heat_map, jpeg, png, row, scrolling


def _opened(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))


def _noise(*size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_small_picture_stays_as_it_is() -> None:
    picture_HWC = _noise(20, 31)
    source = png(picture_HWC)
    assert source.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(_opened(source)), picture_HWC)
    assert _opened(jpeg(picture_HWC)).size == (31, 20)


@pytest.mark.parametrize(("height", "width"), [(1000, 2000), (2000, 1), (421, 400)])
def test_a_large_picture_is_made_smaller_and_keeps_its_shape(height: int, width: int) -> None:
    image = _opened(jpeg(_noise(height, width)))
    assert max(image.size) == MOST_PIXELS_WIDE
    assert image.width == max(1, round(width * MOST_PIXELS_WIDE / max(height, width)))


def test_masks_get_no_new_colours_when_they_are_made_smaller() -> None:
    mask_HWC = np.where(_noise(900, 900)[..., :1] > 99, 255, 7).astype(np.uint8).repeat(3, axis=2)
    assert set(np.unique(np.asarray(_opened(png(mask_HWC))))) == {7, 255}


def test_more_uncertainty_is_brighter() -> None:
    brightness_L = heat_map(np.arange(256, dtype=np.uint8)[None]).sum(axis=2)[0].astype(int)
    assert (np.diff(brightness_L[::16]) > 0).all()


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.01, 0.3, 0.5, 0.565, 0.575, 0.7, 1.0])
def test_the_number_in_a_cell_can_be_read(share: float) -> None:
    cell = heat_cell(share, "12 pixels")
    background = [int(value) / 255 for value in re.findall(r"rgb\((\d+),(\d+),(\d+)\)", cell)[0]]
    ink = [1.0] * 3 if "color:#fff" in cell else [0.0] * 3
    lights = sorted(_luminance(color) for color in (background, ink))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5
    assert 'title="12 pixels"' in cell


def _luminance(color: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_tables_are_for_the_keyboard_and_the_ear_too() -> None:
    assert row(["1", "2"], first="a") == '<tr><th scope="row">a</th><td>1</td><td>2</td></tr>'
    assert row(["x"], first="a", tag="th", scope="col") == '<tr><th scope="col">a</th><th scope="col">x</th></tr>'
    assert scrolling("<table></table>", label="scores").startswith('<div class="scroll" tabindex="0" role="region"')


def test_a_document_shows_only_sections_with_content() -> None:
    page = document("<1 & 2>", head="<p>head</p>", sections={"First part": "<p>one</p>", "Empty": ""})
    assert "<title>&lt;1 &amp; 2&gt;</title>" in page
    assert "<h1>&lt;1 &amp; 2&gt;</h1><p>head</p>" in page
    assert '<a href="#first-part">First part</a>' in page
    assert '<section id="first-part"><h2>First part</h2><p>one</p></section>' in page
    assert "Empty" not in page
    assert not re.search(r"""(src|href)="(?!#|data:)""", page)
