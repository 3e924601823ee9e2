import numpy as np
import pytest

from segserve.spec import ClassSpec, Color
from training.lint.encoding import Encoding, distances, is_gray, name_of, palette_contradicts, recognise
from training.lint.survey import MaskFacts, pack

GRAYS: tuple[Color, ...] = ((0, 0, 0), (128, 128, 128), (255, 255, 255))
BRIGHT: tuple[Color, ...] = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def _recognised(
    *masks: dict[int, int],
    colors: tuple[Color, ...] = BRIGHT,
    mode: str = "L",
    kind: str = "PNG",
    has_labels: bool = False,
    ignore_index: int | None = None,
) -> Encoding:
    """Of masks given as pixels by value."""
    facts = [
        MaskFacts(
            name=str(index),
            format=kind,
            mode=mode,
            size=(1, sum(mask.values())),
            has_colors=mode == "RGB",
            values_V=np.array(sorted(mask)),
            counts_V=np.array([mask[value] for value in sorted(mask)]),
            colors_V=np.array(sorted(mask)) if mode == "RGB" else None,
        )
        for index, mask in enumerate(masks)
    ]
    classes = tuple(ClassSpec(id=index, name=f"c{index}", color=color) for index, color in enumerate(colors))
    return recognise(facts, classes=classes, ignore_index=ignore_index, has_labels=has_labels)


def test_distances_are_the_largest_difference_of_a_channel() -> None:
    colors_N3 = np.random.default_rng(0).integers(0, 256, (6, 3))
    found = distances(pack(colors_N3[:4]), pack(colors_N3[4:]), packed=True)
    expected = [
        [max(abs(int(a) - int(b)) for a, b in zip(x, y, strict=True)) for y in colors_N3[4:]] for x in colors_N3[:4]
    ]
    assert found.tolist() == expected
    assert distances(np.array([0, 10]), np.array([4, 255]), packed=False).tolist() == [[4, 255], [6, 245]]


def test_gray_colours_and_names() -> None:
    assert is_gray(np.array([0x000000, 0x7F7F7F])) and not is_gray(np.array([0x000000, 0x7F7F80]))
    assert (name_of(0x0A00FF, packed=True), name_of(12, packed=False)) == ("#0a00ff", "12")


def test_indices_are_indices() -> None:
    found = _recognised({0: 90, 1: 5}, {2: 9, 255: 4}, ignore_index=255)
    assert found.coding == {"0": "index", "1": "index"}


@pytest.mark.parametrize(
    ("mask", "colors", "has_labels", "options"),
    [
        ({0: 900, 128: 50, 255: 40}, GRAYS, False, "--map 0=0,128=1,255=2"),
        ({0: 900, 7: 2, 128: 500, 255: 400}, GRAYS, False, "--map 0=0,128=1,255=2 --tolerance 7"),
        ({0: 900, 128: 50, 255: 40}, BRIGHT, False, "--map 0=0,128=1,255=2"),
        ({0: 900, 85: 9, 170: 9, 255: 9}, (*BRIGHT, (0, 255, 0)), False, "--map 0=0,85=1,170=2,255=3"),
        ({0: 900, 255: 40}, BRIGHT[:2], False, "--threshold 128"),
        ({0: 900, 255: 40}, ((255, 255, 255), (0, 0, 0)), False, "--map 255=0,0=1"),
        ({0: 900, 2: 3, 100: 2, 253: 9, 255: 40}, BRIGHT[:2], False, "--threshold 128"),
        ({0: 900, 100: 2, 255: 40}, BRIGHT, True, "--threshold 128 --class-from labels.csv"),
        ({0: 900, 255: 40}, BRIGHT, False, None),
        ({0: 900, 50: 90, 60: 70, 255: 40}, BRIGHT, False, None),
        ({0: 900, 1: 90, 2: 70, 255: 40}, GRAYS, False, None),
    ],
)
def test_gray_levels(mask: dict[int, int], colors: tuple[Color, ...], has_labels: bool, options: str | None) -> None:
    found = _recognised(mask, {0: 10}, colors=colors, has_labels=has_labels)
    assert found.coding == {"0": "value" if options is None else "gray", "1": "index"}
    assert found.options["gray"] == options


def test_no_command_takes_indices_for_nearly_black() -> None:
    """One rule reads all masks: with a threshold, the 1 of the second one would be background."""
    found = _recognised({0: 900, 255: 40}, {0: 70, 1: 30}, colors=BRIGHT[:2])
    assert found.coding == {"0": "gray", "1": "index"}
    assert found.options["gray"] is None
    assert _recognised({0: 900, 255: 40}, {0: 70}, colors=BRIGHT[:2]).options["gray"] == "--threshold 128"


@pytest.mark.parametrize(
    ("values", "colors", "expected"),
    [
        ([0, 1, 2], [0x000000, 0xFF0000, 0x0000FF], False),
        ([0, 1, 2], [0x000000, 0x0000FF, 0xFF0000], True),
        ([1], [0x0000FF], True),
        ([0, 1, 2], [0x000000, 0x0000FF, 0x123456], False),
        ([0, 1, 255], [0x000000, 0xFF0000, 0x0000FF], False),
        ([0, 1, 2], [0x000000, 0x010101, 0x020202], False),
    ],
    ids=["the same", "exchanged", "one alone", "another colour", "void of a class's colour", "gray"],
)
def test_a_palette_that_says_other_classes(values: list[int], colors: list[int], expected: bool) -> None:
    index_of = {int(pack(np.array(color))): index for index, color in enumerate(BRIGHT)}
    assert palette_contradicts(np.array(values), np.array(colors), index_of) is expected


def test_gray_as_jpeg_reaches_as_far_as_its_pixels_need() -> None:
    found = _recognised({0: 500, 3: 200, 60: 2, 126: 300, 250: 90}, colors=GRAYS, kind="JPEG")
    assert found.coding == {"0": "jpeg"}
    assert found.options["jpeg"] == "--map 0=0,128=1,255=2 --tolerance 60"


def test_indices_as_jpeg_cannot_be_told_apart() -> None:
    assert _recognised({0: 500, 1: 200, 2: 90, 3: 9}, colors=GRAYS, kind="JPEG").options["jpeg"] is None


@pytest.mark.parametrize(
    ("mask", "options", "strange"),
    [
        ({0x000000: 90, 0xFF0000: 9}, "--colors classes.json", ()),
        ({0x000000: 9000, 0xFF0000: 900, 0xFE0200: 1}, "--colors classes.json --tolerance 2", ()),
        ({0x000000: 90, 0xFF0000: 9, 0x00FF00: 1}, None, ("#00ff00",)),
        ({0x000000: 9000, 0xFF0000: 900, 0xFE0200: 30}, None, ("#fe0200",)),
    ],
)
def test_colours(mask: dict[int, int], options: str | None, strange: tuple[str, ...]) -> None:
    found = _recognised(mask, {0: 5}, mode="RGB")
    assert found.coding == {"0": "color", "1": "color"}
    assert found.options["color"] == options
    assert found.strange["color"] == strange
    assert found.seen["color"][:2] == ("#000000", "#ff0000")


def test_colours_as_jpeg() -> None:
    mask = {0x000000: 9000, 0x020100: 500, 0xFE0103: 900, 0x800000: 8}
    found = _recognised(mask, mode="RGB", kind="JPEG")
    assert found.options["jpeg"] == "--colors classes.json --tolerance 127"
    unknown = _recognised({**mask, 0x00F000: 700}, mode="RGB", kind="JPEG")
    assert (unknown.options["jpeg"], unknown.strange["jpeg"]) == (None, ("#00f000",))


def test_no_masks_have_no_coding() -> None:
    assert _recognised().coding == {}
