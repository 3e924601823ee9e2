"""What Label Studio's converter and datumaro's CVAT reader make of our answers is the identical index mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.png import NO_CLASS
from segserve.spec import ModelSpec
from tests.judges.conftest import Decoded, Judge
from tests.masks import CASES, answer, blobs, prediction_of

pytestmark = pytest.mark.system

NAME = "picture <&\"'> \u65e5\u672c.png"
Case = tuple[NDArray[np.uint8], dict[str, Any]]
"""A mask, and what is asked about it."""


def contact_sheet() -> NDArray[np.uint8]:
    """All cases that are small enough, side by side with a column of class 0 between them."""
    small = [mask_HW for mask_HW in CASES.values() if max(mask_HW.shape) < 100]
    height = max(mask_HW.shape[0] for mask_HW in small)
    padded = [np.pad(mask_HW, ((0, height - mask_HW.shape[0]), (0, 1))) for mask_HW in small]
    return np.concatenate(padded, axis=1)


def put_together(decoded: Decoded, spec: ModelSpec, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The index mask; fails where two regions overlap."""
    mask_HW = np.full(size, NO_CLASS, dtype=np.uint8)
    for name, inside_HW in decoded:
        assert inside_HW.shape == size
        assert (mask_HW[inside_HW] == NO_CLASS).all()
        mask_HW[inside_HW] = spec.class_names.index(name)
    return mask_HW


def expected(mask_HW: NDArray[np.uint8], spec: ModelSpec, classes: str) -> NDArray[np.uint8]:
    ids = [spec.class_names.index(name) for name in classes.split(",")]
    return np.where(np.isin(mask_HW, ids), mask_HW, NO_CLASS).astype(np.uint8)


def check(judge: Judge, form: str, cases: Sequence[Case], spec: ModelSpec) -> None:
    bodies = [answer(prediction_of(mask_HW), spec, format=form, name=NAME, **asked)[1] for mask_HW, asked in cases]
    for (mask_HW, asked), decoded in zip(cases, judge(bodies), strict=True):
        expected_HW = expected(mask_HW, spec, asked.get("classes", ",".join(spec.class_names)))
        assert (put_together(decoded, spec, mask_HW.shape) == expected_HW).all(), asked


SHEET_HW = contact_sheet()
CLASSES: list[Case] = [(mask_HW, {}) for mask_HW in [SHEET_HW, *CASES.values()]]
OBJECTS: list[Case] = [(SHEET_HW, {"objects": True}), (SHEET_HW, {"objects": True, "split": "watershed"})]
SOME: list[Case] = [(SHEET_HW, {"classes": "car,sky"})]
POLYGONS: list[Case] = [(mask_HW, {**asked, "masks": "polygons"}) for mask_HW, asked in [*CLASSES, *OBJECTS]]


def test_label_studio_sees_the_mask(label_studio: Judge, spec: ModelSpec) -> None:
    check(label_studio, "labelstudio", CLASSES + OBJECTS + SOME, spec)


def test_datumaro_sees_the_mask_in_the_cvat_file(datumaro: Judge, spec: ModelSpec) -> None:
    check(datumaro, "cvat", CLASSES + OBJECTS + SOME, spec)


def test_datumaro_sees_the_mask_in_the_polygons_of_the_cvat_file(datumaro: Judge, spec: ModelSpec) -> None:
    check(datumaro, "cvat", POLYGONS, spec)


@pytest.mark.parametrize(("form", "judge"), [("labelstudio", "label_studio"), ("cvat", "datumaro")])
def test_45_megapixels_come_through(form: str, judge: str, request: pytest.FixtureRequest, spec: ModelSpec) -> None:
    large_HW = np.kron(blobs(100, 125), np.ones((60, 60), dtype=np.uint8))
    check(request.getfixturevalue(judge), form, [(large_HW, {})], spec)
