"""Run lengths, against the same mask encoded or decoded by others. Label Studio's and CVAT's are in tests/judges."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve.regions import find_classes, find_objects
from segserve.rle import coco_rle, cvat_rle, label_studio_rle
from tests.masks import CASES

SMALL_MASKS = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2))


def slow_rle(encoded: dict[str, Any]) -> NDArray[np.bool_]:
    """COCO's counts by its definition: 5 bits a character and a continuation bit, differences to the run two before."""
    counts: list[int] = []
    characters = iter(encoded["counts"])
    for character in characters:
        value, shift, bits = 0, 0, ord(character) - 48
        while True:
            value |= (bits & 0x1F) << shift
            shift += 5
            if not bits & 0x20:
                break
            bits = ord(next(characters)) - 48
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    height, width = encoded["size"]
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


@pytest.mark.parametrize("name", CASES)
def test_coco_is_what_pycocotools_encodes(name: str) -> None:
    mask_HW = CASES[name]
    for region in [*find_classes(mask_HW, mask_HW), *find_objects(mask_HW, mask_HW)[:50]]:
        inside_HW = region.map.labels_HW == region.label
        expected = coco.encode(np.asfortranarray(inside_HW.astype(np.uint8)))
        assert coco_rle(region) == {"size": list(mask_HW.shape), "counts": expected["counts"].decode()}


@settings(deadline=None)
@given(mask_HW=SMALL_MASKS)
def test_coco_decodes_by_the_letter_of_its_format(mask_HW: NDArray[np.uint8]) -> None:
    for region in find_classes(mask_HW, mask_HW):
        assert (slow_rle(coco_rle(region)) == (mask_HW == region.class_id)).all()


@settings(deadline=None)
@given(mask_HW=SMALL_MASKS)
def test_cvat_counts_the_rows_of_the_box(mask_HW: NDArray[np.uint8]) -> None:
    for region in find_objects(mask_HW, mask_HW):
        left, top, width, height = region.box
        counts = cvat_rle(region)
        drawn = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
        inside_HW = (region.map.labels_HW == region.label)[top : top + height, left : left + width]
        assert (drawn == inside_HW).all()
        assert all(counts[1:])


def test_label_studio_bits_of_a_mask_worked_out_by_hand() -> None:
    """Two pixels, the second inside: 4 zeros and 4 times 255, two packets of the first kind."""
    mask_HW = np.array([[0, 1]], dtype=np.uint8)
    (_, inside) = find_classes(mask_HW, mask_HW)
    header = f"{8:032b}" + f"{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}"
    packets = "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111"
    bits = header + packets
    expected = bytes(int(bits.ljust(88, "0")[at : at + 8], 2) for at in range(0, 88, 8))
    assert label_studio_rle(inside) == expected
