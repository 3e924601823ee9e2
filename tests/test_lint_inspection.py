import csv
import functools
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cli import main
from segserve.png import encode_index_png
from training.layouts import open_dataset
from training.lint.findings import Finding, Report
from training.lint.inspection import MOST_COMPLAINTS, check_dataset, checked_dataset, inspect
from training.synthetic import write_classification_set, write_segmentation_set

COLORS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
Break = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound segmentation set."""
    write_segmentation_set(tmp_path / "set", seed=0, num_train=3, num_val=2, side=32)
    return tmp_path / "set"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Noise, in three classes with strong colours and void, 12 x 12."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            image_HWC = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            _save(tmp_path / f"images/{split}/{index}.png", image_HWC)
            mask_HW = np.repeat(np.repeat(rng.integers(0, 3, (3, 3), dtype=np.uint8), 4, axis=0), 4, axis=1)
            mask_HW[:4, :4], mask_HW[4:8, :4], mask_HW[8:, :4] = 0, 1, 2
            _save(tmp_path / f"masks/{split}/{index}.png", mask_HW)
    classes = [{"id": i, "name": f"c{i}", "color": color} for i, color in enumerate(COLORS)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
    return tmp_path


def _save(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _masks(root: Path, *splits: str) -> list[Path]:
    return [path for split in splits or ("train", "val") for path in sorted((root / "masks" / split).iterdir())]


def _load(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path)).copy()


def _of(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


# --- sound sets ---


def test_sound_sets_pass(root: Path, three: Path, tmp_path: Path) -> None:
    write_classification_set(tmp_path / "labels", seed=0, num_train=4, num_val=4, side=32)
    assert check_dataset(root, "segmentation") == check_dataset(three, "segmentation") == []
    assert check_dataset(tmp_path / "labels", "classification") == []
    assert checked_dataset(root, "segmentation") == open_dataset(root, "segmentation")
    assert inspect(three, "segmentation").findings == ()
    assert inspect(tmp_path / "labels", "classification").findings == ()


# --- errors ---


def test_a_mask_of_another_size(root: Path) -> None:
    _save(root / "masks/train/0000.png", np.zeros((30, 40), dtype=np.uint8))
    assert check_dataset(root, "segmentation") == [
        "masks/train/0000.png: expected the size of its image, 32 x 32, but got 40 x 30"
    ]


def test_values_that_are_no_class(root: Path) -> None:
    mask_HW = np.zeros((32, 32), dtype=np.uint8)
    mask_HW[0, :3] = 9, 200, 255
    _save(root / "masks/val/0001.png", mask_HW)
    sentence = "masks/val/0001.png: expected the class indices 0 to 4{}, but got [{}]: relabel those pixels"
    assert check_dataset(root, "segmentation") == [sentence.format("", "9, 200, 255")]
    table = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(json.dumps(table | {"ignore_index": 255}))
    assert check_dataset(root, "segmentation") == [sentence.format(" and the ignore_index 255", "9, 200")]


def test_files_that_are_broken(root: Path) -> None:
    (root / "images/train/0002.png").write_bytes((root / "images/train/0002.png").read_bytes()[:200])
    (root / "masks/train/0001.png").write_bytes(b"no image")
    first, second = _of(inspect(root, "segmentation"), "unreadable")
    assert (first.files, second.files) == (("masks/train/0001.png",), ("images/train/0002.png",))
    assert first.sentence == "expected a mask, but it is no image: restore it"
    assert second.sentence.startswith("expected a whole PNG image")


def test_a_split_of_which_no_image_can_be_read(root: Path) -> None:
    """As where files of a Git LFS repository are only pointers; scenes are counted of the images that there are."""
    for path in (root / "images/val").iterdir():
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (root / "images/train/0000.png").write_bytes(b"")
    (root / "images/train/0001.png").write_bytes(b"")
    report = inspect(root, "segmentation")
    assert sum(len(finding.files) for finding in _of(report, "unreadable")) == 4
    assert [split.scenes for split in report.splits] == [1, 0]
    assert not _of(report, "scenes")


def test_an_image_without_a_mask_and_a_mask_without_an_image(three: Path) -> None:
    (three / "images/train/0.png").unlink()
    (three / "masks/val/1.png").unlink()
    assert check_dataset(three, "segmentation") == [
        "masks/train/0.png: expected an image images/train/0.*, but there is none",
        "images/val/1.png: expected a mask masks/val/1.png, but there is none",
    ]


def test_an_image_in_two_splits_however_it_is_stored(three: Path) -> None:
    Image.open(three / "images/train/2.png").save(three / "images/val/0.bmp")
    (three / "images/val/0.png").unlink()
    assert check_dataset(three, "segmentation") == [
        "images/val/0.bmp: expected an image that is in no other split, but it is a copy of images/train/2.png: "
        "remove one"
    ]


def test_a_copy_within_a_split_is_a_warning(three: Path) -> None:
    shutil.copyfile(three / "images/train/2.png", three / "images/train/3.png")
    (finding,) = inspect(three, "segmentation").findings
    assert (finding.kind, finding.severity, finding.split) == ("duplicate", "warning", "train")
    assert check_dataset(three, "segmentation") == []


def test_an_empty_split(root: Path) -> None:
    for path in (*root.glob("images/val/*"), *root.glob("masks/val/*")):
        path.unlink()
    assert check_dataset(root, "segmentation") == [
        "split val: expected at least one image with its truth, but there is none"
    ]
    assert inspect(root, "segmentation").splits[1].images == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_nothing_but_void(three: Path, split: str) -> None:
    """No score can be had of it; a training wrote nan, which no later command could read."""
    for path in _masks(three, split):
        _save(path, np.full_like(_load(path), 255))
    (error,) = inspect(three, "segmentation").of("error")
    assert (error.kind, error.split) == ("empty_split", split)
    assert error.sentence == "expected pixels of a class, but all of its masks are void: draw them"
    with pytest.raises(ValueError, match=rf"1 fault\(s\), correct them:\n  split {split}: expected pixels of a class"):
        checked_dataset(three, "segmentation")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (fault,) = check_dataset(tmp_path, "segmentation")
    assert "classes.json, which names the classes, but it is missing" in fault


def test_one_class_is_nothing_to_learn(three: Path) -> None:
    for path in _masks(three, "train"):
        _save(path, np.ones((12, 12), dtype=np.uint8))
    (fault,) = check_dataset(three, "segmentation")
    assert fault == (
        "split train: expected at least two classes to learn, but all of it is c1: add images of the others"
    )


def test_void_that_may_be_meant_as_a_class(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black and white masks, where 255 is void: most tools mean the second class."""
    expected = {}
    for path in _masks(three):
        expected[path.parent.name + path.stem] = (_load(path) == 1).astype(np.uint8)
        _save(path, np.where(_load(path) == 1, 255, 0).astype(np.uint8))
    table = json.loads((three / "classes.json").read_text())
    (three / "classes.json").write_text(json.dumps(table | {"classes": table["classes"][:2]}))
    (finding,) = _of(inspect(three, "segmentation"), "one_class")
    assert finding.sentence == (
        "expected at least two classes to learn, but all of it is c0 or void: add images of c1, or, if 255 is to mean "
        "c1, convert it:"
    )
    assert finding.command is not None
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(finding.command)[1:]) == 0
    converted = tmp_path / f"{three.name}-converted"
    assert inspect(converted, "segmentation").findings == ()
    assert all((_load(path) == expected[path.parent.name + path.stem]).all() for path in _masks(converted))


def test_a_faulty_set_is_refused_with_the_first_faults_and_their_number(root: Path) -> None:
    for index in range(25):
        (root / f"masks/train/x{index:02d}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it has 25 fault\(s\), correct them:\n  masks/train/x00.png: .*") as error:
        checked_dataset(root, "segmentation")
    assert len(str(error.value).splitlines()) == MOST_COMPLAINTS + 2
    assert str(error.value).endswith("and 5 more")


# --- masks that are coded otherwise, and the command that mends them ---


def _in_colors(root: Path) -> None:
    for path in _masks(root):
        _save(path, np.array(COLORS, dtype=np.uint8)[_load(path)])


def _in_palette_colors(root: Path) -> None:
    """Indices that mean nothing, with the classes' colours as their palette."""
    for path in _masks(root):
        mask = Image.fromarray(_load(path) + 7)
        mask.putpalette([0] * 21 + [channel for color in COLORS for channel in color])
        mask.save(path)


def _in_palettes_of_another_order(root: Path) -> None:
    """As tools write that make palettes of colour images: each file's indices are the classes', in another order."""
    for number, path in enumerate(_masks(root)):
        order = np.roll(np.arange(3), 1 + number % 2)
        mask = Image.fromarray(np.argsort(order).astype(np.uint8)[_load(path)])
        mask.putpalette(np.array(COLORS, dtype=np.uint8)[order].tobytes())
        mask.save(path)


def _as_color_jpeg(root: Path) -> None:
    for path in _masks(root):
        colors_HWC = np.array(COLORS, dtype=np.uint8)[_load(path)].repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(colors_HWC).save(path.with_suffix(".jpg"), quality=95, subsampling=0)
        path.unlink()
    for path in (root / "images").glob("*/*"):
        _save(path, _load(path).repeat(16, axis=0).repeat(16, axis=1))


def _evenly_spaced(root: Path) -> None:
    for path in _masks(root):
        _save(path, np.array([0, 128, 255], dtype=np.uint8)[_load(path)])


def _gray_in_rgb(root: Path) -> None:
    for path in _masks(root):
        _save(path, np.repeat(_load(path)[..., None], 3, axis=-1))


def _in_16_bits(root: Path) -> None:
    for path in _masks(root):
        Image.fromarray(_load(path).astype(np.uint16)).save(path)


@pytest.mark.parametrize(
    ("change", "kind", "told", "options"),
    [
        (_in_colors, "color_mask", "(mode L or P), but its mode is RGB with the colours #", "--colors classes.json"),
        (_in_palette_colors, "color_mask", "but its mode is P with the colours #", "--colors classes.json"),
        (_in_palettes_of_another_order, "color_mask", "its mode is P with the colours #", "--colors classes.json"),
        (_as_color_jpeg, "jpeg_mask", "expected a PNG mask, but got a JPEG of", "--colors classes.json --tolerance "),
        (_evenly_spaced, "gray_mask", "but got the gray levels ", "--map 0=0,128=1,255=2"),
        (_gray_in_rgb, "gray_mask", "(mode L or P), but got the gray levels", ""),
        (_in_16_bits, "gray_mask", "(mode L or P), but got the gray levels", ""),
    ],
)
def test_the_command_of_a_coding_brings_the_indices_back(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Break, kind: str, told: str, options: str
) -> None:
    expected = {path.stem + path.parent.name: _load(path) for path in _masks(three)}
    change(three)
    (finding,) = inspect(three, "segmentation").findings
    assert (finding.kind, finding.severity, len(finding.files)) == (kind, "error", 6)
    assert told in finding.sentence
    monkeypatch.chdir(tmp_path)
    out = f"{three.name}-converted"
    assert finding.command is not None
    assert finding.command.startswith(f"segserve convert {three} {out} {options}".rstrip())
    assert main(shlex.split(finding.command)[1:]) == 0
    assert inspect(tmp_path / out, "segmentation").findings == ()
    for path in _masks(tmp_path / out):
        mask_HW = _load(path)
        scale = len(mask_HW) // 12
        assert np.array_equal(mask_HW[scale // 2 :: scale, scale // 2 :: scale], expected[path.stem + path.parent.name])


def test_classes_that_share_a_colour_are_told_apart_by_their_indices(three: Path) -> None:
    """As where more classes have no colour than the palette has: what we write ourselves has those palettes."""
    table = json.loads((three / "classes.json").read_text())
    table["classes"][2]["color"] = table["classes"][0]["color"]
    (three / "classes.json").write_text(json.dumps(table))
    for path in _masks(three):
        path.write_bytes(encode_index_png(_load(path), open_dataset(three, "segmentation").classes))
    assert inspect(three, "segmentation").findings == ()


def test_colours_that_are_no_class_are_named_instead_of_guessed(three: Path) -> None:
    _in_colors(three)
    path = _masks(three)[0]
    colors_HWC = _load(path)
    colors_HWC[0, 0] = 7, 8, 9
    _save(path, colors_HWC)
    (finding,) = inspect(three, "segmentation").findings
    assert finding.command is None
    assert "#070809 is no class of classes.json: write lines `R G B name` for it into a file" in finding.sentence


def test_black_and_white_of_two_classes(three: Path) -> None:
    table = json.loads((three / "classes.json").read_text())
    (three / "classes.json").write_text(json.dumps(table | {"classes": table["classes"][:2], "ignore_index": None}))
    for path in _masks(three):
        _save(path, np.where(_load(path) > 0, 255, 0).astype(np.uint8))
    (finding,) = inspect(three, "segmentation").findings
    assert finding.command is not None and finding.command.endswith("--threshold 128")


def test_gray_levels_that_fit_nothing_have_no_command(three: Path) -> None:
    for path in _masks(three):
        _save(path, np.array([60, 90, 200], dtype=np.uint8)[_load(path)])
    (first, *_) = inspect(three, "segmentation").findings
    assert (first.kind, first.command) == ("value", None)


# --- warnings ---


def test_classes_that_a_split_lacks(three: Path) -> None:
    for path in _masks(three, "val"):
        _save(path, np.minimum(_load(path), 1))
    (finding,) = inspect(three, "segmentation").findings
    assert (finding.kind, finding.severity, finding.values) == ("absent_class", "warning", ("c2",))
    assert finding.sentence == "expected every class, but c2 is not there: no score says anything of it"


def test_large_voids(three: Path) -> None:
    mask_HW = _load(three / "masks/train/0.png")
    mask_HW[:, 4:] = 255
    _save(three / "masks/train/0.png", mask_HW)
    report = inspect(three, "segmentation")
    (finding,) = report.findings
    assert (finding.kind, finding.files) == ("void", ("masks/train/0.png",))
    assert finding.sentence == "expected most pixels to be of a class, but 67% are void: little is learnt from it"
    assert report.splits[0].void == pytest.approx(96 / (4 * 144))
    _save(three / "masks/train/1.png", mask_HW)
    assert [finding.files for finding in _of(inspect(three, "segmentation"), "void")] == [
        ("masks/train/0.png", "masks/train/1.png"),
        (),
    ]


def test_masks_of_one_class(three: Path) -> None:
    _save(three / "masks/train/3.png", np.zeros((12, 12), dtype=np.uint8))
    (finding,) = inspect(three, "segmentation").findings
    assert (finding.kind, finding.files) == ("single_class_masks", ("masks/train/3.png",))
    assert finding.sentence == "expected several classes, but all pixels are c0: is that so, or was it not drawn?"


def test_masks_that_contradict_the_pictures_labels(three: Path) -> None:
    _save(three / "masks/train/3.png", np.zeros((12, 12), dtype=np.uint8))
    rows = ["train,0,c1", "train,1,free", "train,2,c2", "train,3,c1", "val,0,c1", "val,1,c2"]
    (three / "labels.csv").write_text("\n".join(["split,stem,label", *rows]))
    assert [(each.files, each.sentence) for each in inspect(three, "segmentation").findings] == [
        (
            ("masks/train/1.png",),
            "expected none of c1, c2, since labels.csv says free, but the mask has pixels of it: correct one",
        ),
        (
            ("masks/train/3.png",),
            "expected pixels of c1, as labels.csv says, but the mask has none: draw them or correct the label",
        ),
    ]


def test_a_smaller_copy_in_another_split_looks_alike(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=3, num_val=2, side=96)
    for folder, method in (("images", Image.Resampling.BICUBIC), ("masks", Image.Resampling.NEAREST)):
        picture = Image.open(tmp_path / "set" / folder / "train/0001.png")
        picture.resize((72, 80), method).save(tmp_path / "set" / folder / "val/0000.png")
    report = inspect(tmp_path / "set", "segmentation")
    (finding,) = _of(report, "near_duplicate")
    assert (finding.severity, finding.files, finding.values) == (
        "warning",
        ("images/val/0000.png",),
        ("images/train/0001.png",),
    )
    assert finding.sentence.startswith(
        "1 pair(s) of images in different splits look alike, the closest images/val/0000.png and images/train/0001.png"
    )
    (pair,) = report.pairs
    assert pair.distance <= 4 and pair.correlation > 0.97


def test_a_class_that_is_the_sets_void_has_no_share(three: Path) -> None:
    table = json.loads((three / "classes.json").read_text())
    (three / "classes.json").write_text(json.dumps({**table, "ignore_index": 0}))
    report = inspect(three, "segmentation")
    zeros = np.mean([_load(path) == 0 for path in _masks(three, "train")])
    assert report.splits[0].void == pytest.approx(zeros) and report.classes[0].splits["train"].pixels == 0
    assert sum(entry.splits["train"].share for entry in report.classes) == pytest.approx(1)
    absent = [finding for finding in report.findings if finding.kind == "absent_class"]
    assert [(finding.split, finding.values) for finding in absent] == [("train", ("c0",)), ("val", ("c0",))]


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_set_without_training_images_is_told_so(tmp_path: Path, has_folder: bool) -> None:
    for number in range(2):
        _save(tmp_path / f"images/val/{number}.png", np.full((40, 40, 3), 90 * number, dtype=np.uint8))
        _save(tmp_path / f"masks/val/{number}.png", np.full((40, 40), number, dtype=np.uint8))
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}')
    if has_folder:
        (tmp_path / "images/train").mkdir()
    (error,) = inspect(tmp_path, "segmentation").of("error")
    assert error.sentence == "expected at least one image with its truth, but there is none"


def test_a_clip_between_train_frames_of_the_same_drive(tmp_path: Path) -> None:
    """A window slides over a wide picture: slowly in val, in leaps in train."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 25, 3), dtype=np.uint8)
    wide = Image.fromarray(coarse).resize((1000, 160), Image.Resampling.BICUBIC)
    mask_HW = np.zeros((160, 200), dtype=np.uint8)
    mask_HW[80:] = 1
    for split, starts in (("train", [*range(0, 300, 30), *range(390, 690, 30)]), ("val", range(320, 340, 2))):
        for start in starts:
            frame = wide.crop((start, 0, start + 200, 160))
            _save(tmp_path / f"images/{split}/drive_{start:04d}.png", np.asarray(frame))
            _save(tmp_path / f"masks/{split}/drive_{start:04d}.png", mask_HW)
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}')
    report = inspect(tmp_path, "segmentation")
    assert {split.name: split.scenes for split in report.splits} == {"train": 20, "val": 1}
    scenes, recording = report.findings
    assert (scenes.kind, recording.kind) == ("scenes", "same_recording")
    assert scenes.sentence.startswith("10 images hold about 1 independent scene(s), the largest of 10 frames")
    assert recording.sentence.startswith(
        "drive_0320 to drive_0338 are of a series that train has, too (drive_*, beside them drive_0270 and drive_0390)"
    )


def test_classification_sets(tmp_path: Path) -> None:
    root = tmp_path / "labels"
    write_classification_set(root, seed=0, num_train=9, num_val=4, side=32)
    shutil.copyfile(root / "train/cell/0000.png", root / "val/cell/0000.png")
    (root / "val/star/0003.png").unlink()
    report = inspect(root, "classification")
    assert [(each.kind, each.severity) for each in report.findings] == [
        ("duplicate", "error"),
        ("absent_class", "warning"),
    ]
    cell = report.classes[0]
    assert cell.splits["train"].images == 3 and cell.splits["train"].pixels is None
    assert cell.splits["train"].share == pytest.approx(1 / 3)
    assert [entry.weight for entry in report.classes] == [pytest.approx(2 / 3), 1.0, 1.0, 1.0]


def test_masks_beside_the_masks(three: Path) -> None:
    shutil.copytree(three / "masks", three / "masks_drawn")
    for path in (three / "masks_drawn").glob("*/*"):
        _save(path, np.array(COLORS, dtype=np.uint8)[_load(path)])
    (three / "masks_drawn/val/0.png").write_bytes(b"")
    (three / "masks_drawn/val/.DS_Store").write_bytes(b"of the Finder's, as ._0.png is")
    (three / "masks_drawn/val/._0.png").write_bytes(b"")
    unreadable, other = inspect(three, "segmentation").findings
    assert (unreadable.severity, unreadable.files) == ("warning", ("masks_drawn/val/0.png",))
    assert (other.kind, other.severity, len(other.files)) == ("other_masks", "warning", 5)
    assert other.command is not None and other.command.endswith("--masks masks_drawn --colors classes.json")
    assert check_dataset(three, "segmentation") == []


def test_a_foreign_table_of_labels_says_nothing_of_masks(three: Path) -> None:
    (three / "labels.csv").write_text("image,diagnosis\n0.png,well\n")
    assert inspect(three, "segmentation").findings == ()


def test_masks_that_a_layout_makes(tmp_path: Path) -> None:
    """COCO's squares are painted by their reader; the finding names the image."""
    (tmp_path / "annotations").mkdir()
    for split, count in (("train", 2), ("val", 1)):
        images, instances = [], []
        for index in range(count):
            name = f"{split}{index}.png"
            _save(tmp_path / split / name, np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8))
            images.append({"id": index, "file_name": name, "height": 20, "width": 30})
            square = {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]], "iscrowd": 0, "category_id": 5}
            instances.append({"id": index + 1, "image_id": index, **square})
        table = {"images": images, "annotations": instances, "categories": [{"id": 5, "name": "square"}]}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(table))
    report = inspect(tmp_path, "segmentation", layout="coco")
    (finding,) = report.findings
    assert (finding.kind, finding.files, finding.values) == ("duplicate", ("val/val0.png",), ("train/train0.png",))
    assert [entry.splits["train"].pixels for entry in report.classes] == [2 * 500, 2 * 100]


# --- the command ---


def test_lint_prints_a_summary_and_its_code_says_whether_there_are_errors(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(three / "masks/train/3.png", np.zeros((12, 12), dtype=np.uint8))
    assert main(["lint", str(three), "--json", str(tmp_path / "lint.json"), "--html", str(tmp_path / "lint.html")]) == 0
    printed = capsys.readouterr().out
    assert "train      4 images, about 4 independent scene(s), void 0.0%" in printed
    assert "1 warning(s)\n  masks/train/3.png: expected several classes" in printed
    assert Report.model_validate_json((tmp_path / "lint.json").read_text()) == inspect(three, "segmentation")
    assert "single class masks" in (tmp_path / "lint.html").read_text()
    _in_colors(three)
    assert main(["lint", str(three)]) == 1
    assert "1 error(s)\n  masks/train/0.png and 5 more: expected a mask" in capsys.readouterr().out


# --- the real sets: what their README files admit, and what they do not ---


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Callable[[str], Report]:
    """The inspection of a shared set, once."""
    return functools.cache(lambda name: inspect(shared_data / name, "segmentation"))


def test_camvids_val_is_one_clip_of_a_drive_of_train(real: Callable[[str], Report]) -> None:
    report = real("camvid")
    assert report.of("error") == []
    assert {split.name: (split.images, split.scenes) for split in report.splits}["val"] == (101, 1)
    scenes, recording = report.findings
    assert (scenes.kind, scenes.split, len(scenes.files)) == ("scenes", "val", 101)
    assert (recording.kind, recording.values) == ("same_recording", ("0016E5_07959", "0016E5_08159"))
    assert "beside them 0016E5_07920 and 0016E5_08190" in recording.sentence


def test_camvids_shares_and_weights_are_those_of_its_data_card(real: Callable[[str], Report]) -> None:
    report = real("camvid")
    weights = (0.279, 0.202, 4.787, 0.149, 1.000, 0.422, 3.847, 1.974, 0.789, 6.375, 8.859)
    assert [round(entry.weight or 0, 3) for entry in report.classes] == list(weights)
    val = (9.3, 26.4, 0.57, 29.5, 8.87, 16.6, 0.91, 3.13, 1.78, 0.66, 2.26)
    for entry, share in zip(report.classes, val, strict=True):
        assert entry.splits["val"].share * 100 == pytest.approx(share, abs=0.05)
    assert [round((split.void or 0) * 100, 2) for split in report.splits] == [3.95, 1.70]


def test_magnetic_tiles_four_uneven_pictures_without_a_defect(real: Callable[[str], Report], shared_data: Path) -> None:
    report = real("magnetic_tile")
    assert report.of("error") == []
    with (shared_data / "magnetic_tile/labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] != "free" and row["mask_has_defect"] == "0"]
    empty = {f"masks/{row['split']}/{row['stem']}.png" for row in rows}
    assert {name for finding in _of(report, "label_mismatch") for name in finding.files} == empty
    assert len(empty) == 4
    assert not _of(report, "near_duplicate")  # its tiles were kept in one split


def test_wbc_has_a_picture_twice_and_nearly_one_of_val_in_train(real: Callable[[str], Report]) -> None:
    report = real("wbc")
    assert [finding.files for finding in _of(report, "duplicate")] == [("images/train/d1_139.png",)]
    assert [(pair.first, pair.second) for pair in report.pairs] == [
        ("images/train/d1_171.png", "images/val/d1_166.png")
    ]
    assert report.of("error") == []


def test_isbi2012s_val_is_of_the_same_stack(real: Callable[[str], Report]) -> None:
    (finding,) = _of(real("isbi2012"), "same_recording")
    assert (finding.values, finding.files[0]) == (("18", "21"), "images/train/17.png")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wbc", "--map 0=0,128=1,255=2 --tolerance 45"),
        ("isbi2012", "--map 255=0,0=1"),
        ("magnetic_tile", "--threshold 128 --class-from labels.csv"),
    ],
)
def test_the_origins_masks_and_the_command_that_converts_them(
    real: Callable[[str], Report],
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: str,
) -> None:
    """It makes the set's own masks of them, pixel by pixel."""
    (finding,) = _of(real(name), "other_masks")
    root = shared_data / name
    assert finding.command == f"segserve convert {root} {name}-converted --masks masks_original {options}"
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(finding.command)[1:]) == 0
    made = {path.relative_to(f"{name}-converted") for path in Path(f"{name}-converted/masks").glob("*/*")}
    assert made == {path.relative_to(root) for path in _masks(root)}
    for path in made:
        assert np.array_equal(_load(f"{name}-converted" / path), _load(root / path))


def test_in_place_of_the_masks_they_are_refused(shared_data: Path, tmp_path: Path) -> None:
    for name, target in (("images", "images"), ("masks", "masks_original"), ("classes.json", "classes.json")):
        (tmp_path / name).symlink_to((shared_data / "isbi2012" / target).resolve())
    (fault,) = check_dataset(tmp_path, "segmentation")
    assert fault.startswith("masks/train/00.png and 21 more: expected a mask whose pixels are class indices")
    assert fault.endswith(f"segserve convert {tmp_path} {tmp_path.name}-converted --map 255=0,0=1")


def test_clothing_has_no_finding(shared_data: Path, tmp_path: Path) -> None:
    """The first twelve pictures of each class and split; all of it takes as many seconds as all the other sets."""
    root = shared_data.resolve() / "clothing"
    for folder in [path for split in ("train", "val") for path in (root / split).iterdir()]:
        ours = tmp_path / folder.relative_to(root)
        ours.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:12]:
            (ours / path.name).symlink_to(path)
    (tmp_path / "classes.json").symlink_to(root / "classes.json")
    report = inspect(tmp_path, "classification")
    assert report.findings == ()
    assert {entry.splits["train"].images for entry in report.classes} == {12}
