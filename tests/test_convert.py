import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image
from pydantic import ValidationError

from cli import main
from training.convert import FileChange, Rule, color_table, convert, parse_map

NAMES = ("sky", "road", "tree car")
COLORS = ((0, 0, 255), (128, 128, 128), (0, 200, 0))
INDICES = {**{name: index for index, name in enumerate(NAMES)}, "void": 9}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a set of one mask (and image) into `tmp_path / "set"`."""

    def _write(mask: ArrayLike, *, name: str = "masks/train/a.png", ignore_index: int | None = 9) -> Path:
        root = tmp_path / "set"
        pixels = np.asarray(mask, dtype=np.uint8)
        for path, content in ((root / name, pixels), (root / "images/train/a.jpg", np.zeros((*pixels.shape[:2], 3)))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content.astype(np.uint8)).save(path)
        classes = [{"id": i, "name": name, "color": COLORS[i]} for i, name in enumerate(NAMES)]
        (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": ignore_index}))
        return root

    return _write


def _converted(root: Path, **rule: object) -> tuple[list[list[int]], FileChange]:
    out = root.parent / "out"
    (change,) = convert(root, out, Rule.model_validate(rule))
    return np.asarray(Image.open(out / change.file)).tolist(), change


def test_colours_become_indices(write: Write) -> None:
    found, change = _converted(write([[COLORS[2], COLORS[0], COLORS[1]]]), colors="classes.json")
    assert found == [[2, 0, 1]]
    assert change.pixels == {"sky": 1, "road": 1, "tree car": 1}
    assert (change.rounded, change.farthest) == (0, 0)


def test_colours_of_a_file_stand_beside_those_of_the_classes(write: Write, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("0 0 0 void\n10 20 30 tree car\n")
    found, change = _converted(write([[(0, 0, 0), (10, 20, 30), COLORS[0]]]), colors=tmp_path / "more.txt")
    assert found == [[9, 2, 0]]
    assert change.pixels == {"sky": 1, "tree car": 1, "void": 1}


def test_a_class_without_a_colour_takes_no_pixels_by_one_that_was_made_up(write: Write, tmp_path: Path) -> None:
    near_the_palettes_second = (240, 130, 30)
    root = write([[near_the_palettes_second, COLORS[2]]])
    classes = [{"id": 0, "name": "sky"}, {"id": 1, "name": "road"}, {"id": 2, "name": "tree car", "color": COLORS[2]}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    (tmp_path / "more.txt").write_text("235 125 40 sky\n")
    found, change = _converted(root, colors=tmp_path / "more.txt", tolerance=12)
    assert found == [[0, 2]]
    assert (change.rounded, change.farthest) == (1, 10)


def test_the_nearest_within_the_tolerance(write: Write) -> None:
    found, change = _converted(write([[(10, 190, 9), (120, 128, 138)]]), colors="classes.json", tolerance=10)
    assert found == [[2, 1]]
    assert (change.rounded, change.farthest) == (2, 10)
    assert change.line() == (
        "masks/train/a.png -> masks/train/a.png: road 1, tree car 1; 2 pixels took the nearest value, up to 10 away"
    )


def test_a_pixel_too_far_from_all_is_refused_and_named(write: Write) -> None:
    with pytest.raises(
        ValueError, match=r"^masks/train/a.png: .* farther than 9 from a colour of a class, but got"
    ) as error:
        _converted(write([[(10, 190, 9), (10, 190, 9), COLORS[0]]]), colors="classes.json", tolerance=9)
    assert str(error.value).endswith(
        "but got #0abe09 (2 pixels): give them a class by --colors FILE, or raise --tolerance to 10"
    )


def test_an_index_mask_among_coloured_ones_stays_as_it_is(write: Write) -> None:
    assert _converted(write([[0, 2, 9]]), colors="classes.json")[0] == [[0, 2, 9]]


def test_a_palettes_colours_count_where_its_indices_are_no_classes(write: Write) -> None:
    root = write([[7, 8]])
    mask = Image.open(root / "masks/train/a.png").convert("L")
    mask.putpalette([0] * 21 + [*COLORS[2], *COLORS[1]])
    mask.save(root / "masks/train/a.png")
    assert _converted(root, colors="classes.json")[0] == [[2, 1]]


def test_gray_levels_become_indices(write: Write) -> None:
    found, change = _converted(write([[0, 128, 255, 7, 140, 64]]), map=parse_map("0=2,128=0,255=9"), tolerance=64)
    assert found == [[2, 0, 9, 2, 0, 2]]  # 64 is as near to 0 as to 128: the first of the two
    assert (change.rounded, change.farthest) == (3, 64)


def test_a_gray_level_of_no_class_is_refused(write: Write) -> None:
    with pytest.raises(
        ValueError, match=r"from a level of a class, but got 7 \(1 pixels\): give them a class by --map"
    ):
        _converted(write([[0, 7]]), map={0: 0, 128: 1})


def test_a_threshold(write: Write) -> None:
    assert _converted(write([[0, 127, 128, 255]]), threshold=128)[0] == [[0, 0, 1, 1]]


def test_a_threshold_takes_the_class_from_the_pictures_label(write: Write) -> None:
    root = write([[0, 127, 128, 255]])
    (root / "labels.csv").write_text("split,stem,label\ntrain,a,tree car\n")
    assert _converted(root, threshold=128, class_from="labels.csv")[0] == [[0, 0, 2, 2]]
    (root / "labels.csv").write_text("split,stem,label\ntrain,a,free\n")
    with pytest.raises(ValueError, match=r"a.png: expected labels.csv to give it a class \(sky, .*\), but got free"):
        convert(root, root.parent / "again", Rule(threshold=128, class_from=Path("labels.csv")))


def test_without_a_rule_pixels_are_indices_however_they_are_stored(write: Write) -> None:
    gray_HW3 = np.repeat(np.array([[0, 1, 2, 9]])[..., None], 3, axis=2)
    assert _converted(write(gray_HW3))[0] == [[0, 1, 2, 9]]
    with pytest.raises(
        ValueError, match=r"expected class indices \(0 sky, 1 road, 2 tree car, 9 void\), but got \[3\]"
    ):
        convert(write([[3]]), Path("nowhere"), Rule())


def test_colours_where_levels_were_promised(write: Write) -> None:
    with pytest.raises(ValueError, match="but it holds colours: say by --colors what they mean"):
        _converted(write([[(1, 2, 3)]]), threshold=128)


def test_a_jpeg_becomes_a_palette_png_in_the_classes_colours(write: Write) -> None:
    colors_HWC = np.array(COLORS, dtype=np.uint8)[np.repeat(np.repeat([[0, 1], [2, 0]], 16, axis=0), 16, axis=1)]
    root = write(colors_HWC, name="masks/train/a.jpg")
    out = root.parent / "out"
    (change,) = convert(root, out, Rule(colors=Path("classes.json"), tolerance=128))
    assert (change.source, change.file) == ("masks/train/a.jpg", "masks/train/a.png")
    made = Image.open(out / change.file)
    assert made.mode == "P" and made.convert("RGB").getpixel((20, 4)) == COLORS[1]
    assert np.asarray(made)[8::16, 8::16].tolist() == [[0, 1], [2, 0]]


def test_the_rest_is_copied_and_the_source_stays(write: Write) -> None:
    root = write([[COLORS[0]]])
    (root / "labels.csv").write_text("split,stem,label\n")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    convert(root, root.parent / "out", Rule(colors=Path("classes.json")))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    for name in ("images/train/a.jpg", "classes.json", "labels.csv"):
        assert (root.parent / "out" / name).read_bytes() == (root / name).read_bytes()
    (record,) = json.loads((root.parent / "out/conversion.json").read_text())
    assert (record["source"], record["pixels"]) == ("masks/train/a.png", {"sky": 1})


def test_nothing_is_left_of_a_conversion_that_failed(write: Write, tmp_path: Path) -> None:
    root = write([[3]])
    with pytest.raises(ValueError):
        convert(root, tmp_path / "out", Rule())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_there_is_not_written_over(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not to exist, so that nothing is lost, but it does: name another folder"):
        convert(write([[0]]), tmp_path / "set", Rule())
    with pytest.raises(ValueError, match="there are none: name the folder by --masks"):
        convert(write([[0]]), tmp_path / "out", Rule(), masks="labels")


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"threshold": 1, "map": {0: 0}}, "expected one way to read the masks, but got map and threshold: leave one"),
        ({"class_from": "labels.csv"}, "expected class_from together with threshold"),
        ({"tolerance": 3}, "expected tolerance together with colors or map"),
    ],
)
def test_contradicting_options_are_refused(rule: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Rule.model_validate(rule)


@pytest.mark.parametrize("text", ["0", "a=1", "0=1=2", ""])
def test_a_wrong_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected --map to be like 0=0,128=1,255=2, but got"):
        parse_map(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 2 sky", r"expected a line `R G B name` with a class \(sky, .*void\), but got '1 2 sky'"),
        ("1 2 3 moon", "but got '1 2 3 moon': correct it"),
        ("1 2 3 sky\n1 2 3 road", "expected one class a colour, but 1 2 3 has two"),
        ("{}", "expected JSON like classes.json, but it is not"),
        ("\n", "expected colours of classes, but there are none"),
    ],
)
def test_a_wrong_table_of_colours_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "colors.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        color_table(tmp_path / "colors.txt", INDICES)


def test_the_command_says_what_became_of_each_file(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    root = write([[0, 250]])
    out = root.parent / "out"
    assert main(["convert", str(root), str(out), "--map", "0=0,255=1", "--tolerance", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "masks/train/a.png -> masks/train/a.png: sky 1, road 1; 1 pixels took the nearest value, up to 5 away",
        f"{out}: 1 masks, 1 of them rounded; next: segserve lint {out}",
    ]
    assert main(["convert", str(root), str(out), "--map", "0=0"]) == 2
    assert "name another folder" in capsys.readouterr().err


def test_a_level_twice_in_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="expected each level once in --map, but got '0=0,255=1,255=2': leave one"):
        parse_map("0=0,255=1,255=2")
