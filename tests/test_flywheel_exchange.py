"""Out to CVAT and Label Studio and back, pixel for pixel."""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cli import main
from tests.rounds import CLASSES, files_of, made_round
from training.data import IGNORE
from training.flywheel import label_studio
from training.flywheel.decisions import VERDICTS, apply_review
from training.flywheel.exchange import Tool, export_labels, import_labels
from training.flywheel.joined import with_round
from training.flywheel.review import review_page
from training.flywheel.round import Round
from training.flywheel.soft import SoftMask
from training.flywheel.task import Task
from training.layouts import open_dataset
from training.synthetic import write_segmentation_set

TOOLS: list[Tool] = ["cvat", "label-studio"]


@pytest.fixture
def found(tmp_path: Path) -> Round:
    """Eight images: three need work, one is to be labelled anew, four are accepted."""
    found, _ = made_round(tmp_path / "round", count=8, side=48)
    wanted = ["work", "work", "work", "reject", *["accept"] * 4]
    entries = found.entries().values()
    found.rewrite(
        entry.model_copy(update={"verdict": VERDICTS[decision]})
        for entry, decision in zip(entries, wanted, strict=True)  # type: ignore[index]
    )
    return found


def slow_rle(rle: Sequence[int]) -> list[int]:
    """Label Studio's encoding by its description: bit by bit, without any of our code."""
    bits = [(byte >> place) & 1 for byte in rle for place in range(7, -1, -1)]

    def number(width: int) -> int:
        taken, bits[:] = bits[:width], bits[width:]
        return sum(bit << place for place, bit in enumerate(reversed(taken)))

    count, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run, size = number(1), sizes[number(2)]
        length = number(size) + 1
        values += [number(word)] * length if is_run else [number(word) for _ in range(length)]
    return values


def test_label_studios_regions_are_the_mask(found: Round) -> None:
    tasks = json.loads(export_labels(found, "label-studio"))
    assert [task["data"]["file"] for task in tasks] == [f"drawing-{index:03d}.png" for index in range(4)]
    assert [len(task["predictions"]) for task in tasks] == [1, 1, 1, 0], "what is to be labelled anew starts empty"
    task = tasks[0]
    mask_HW = np.full((48, 48), IGNORE, dtype=np.uint8)
    for result in task["predictions"][0]["result"]:
        layers_HW4 = np.array(slow_rle(result["value"]["rle"])).reshape(48, 48, 4)
        (label,) = result["value"]["brushlabels"]
        mask_HW[layers_HW4[..., 3] == 255] = [entry.name for entry in CLASSES].index(label)
    assert (mask_HW == SoftMask.read(found.soft("drawing-000")).mask_HW).all()


@pytest.mark.parametrize("name", ["cell 1.png", "a+b.png", "a#1.png", "a&b.png", "100%25.png", "ä.png"])
def test_label_studio_finds_an_image_whatever_its_name(name: str) -> None:
    task = Task(file=name, size=(2, 3), mask_HW=None, score=0.5)
    (told,) = json.loads(label_studio.write([task], CLASSES, "drawings"))
    address = urlparse(told["data"]["image"])
    assert (address.path, address.fragment) == ("/data/local-files/", "")
    assert parse_qs(address.query) == {"d": [f"waiting/{name}"]}, "as its web server reads it"


def edited(found: Round, name: str) -> NDArray[np.uint8]:
    """The guess with a square of another class, and some pixels that nobody labelled."""
    mask_HW = SoftMask.read(found.soft(name)).mask_HW.copy()
    mask_HW[10:20, 5:15] = 3
    mask_HW[40:, :3] = IGNORE
    return mask_HW


def draw_in_cvat(body: bytes, edits: dict[str, NDArray[np.uint8]]) -> bytes:
    """A person cuts the shapes, and draws a polygon on top."""
    root = ElementTree.fromstring(body)
    for image in root.iter("image"):
        mask_HW = edits.get(Path(image.attrib["name"]).stem)
        if mask_HW is None:
            continue
        for shape in list(image):
            class_id = [entry.name for entry in CLASSES].index(shape.attrib["label"])
            inside_HW = mask_HW == class_id
            inside_HW[10:20, 5:15] = class_id == 0
            image.remove(shape)
            if inside_HW.any():
                image.append(cvat_mask(shape.attrib["label"], inside_HW))
        points = "5,10;15,10;15,20;5,20"
        image.insert(
            0, ElementTree.Element("polygon", label=CLASSES[3].name, points=points, z_order="1", source="manual")
        )
    return ElementTree.tostring(root)


def cvat_mask(label: str, inside_HW: NDArray[np.bool_]) -> ElementTree.Element:
    counts, value = [0], False
    for pixel in inside_HW.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    box = {"left": "0", "top": "0", "width": str(inside_HW.shape[1]), "height": str(inside_HW.shape[0])}
    return ElementTree.Element("mask", label=label, rle=", ".join(map(str, counts)), z_order="0", **box)


def draw_in_label_studio(body: bytes, edits: dict[str, NDArray[np.uint8]]) -> bytes:
    """A person's annotations, in the other kind of packet: values one by one, not as runs."""
    tasks: list[dict[str, Any]] = json.loads(body)
    for task in tasks:
        mask_HW = edits.get(Path(task["data"]["file"]).stem)
        results = []
        for entry in CLASSES if mask_HW is not None else ():
            inside_HW = mask_HW == entry.id
            value = {"format": "rle", "rle": by_ones(inside_HW), "brushlabels": [entry.name]}
            results.append({"type": "brushlabels", "original_width": 48, "original_height": 48, "value": value})
        cancelled = {"was_cancelled": True, "result": [{"type": "rectanglelabels"}]}
        task["annotations"] = [{"result": results}, cancelled] if results else []
    return json.dumps(tasks).encode()


def by_ones(inside_HW: NDArray[np.bool_]) -> list[int]:
    values = np.repeat(np.where(inside_HW.ravel(), 255, 0), 4).tolist()
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for start in range(0, len(values), 256):
        piece = values[start : start + 256]
        text += f"010{len(piece) - 1:08b}" + "".join(f"{value:08b}" for value in piece)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_person_drew_comes_back_as_labelled(found: Round, tool: Tool, tmp_path: Path) -> None:
    edits = {name: edited(found, name) for name in ("drawing-000", "drawing-003")}
    path = tmp_path / "labels"
    path.write_bytes((draw_in_cvat if tool == "cvat" else draw_in_label_studio)(export_labels(found, tool), edits))
    if tool == "label-studio":
        expected = edits
    else:  # what was rejected had no shapes to cut: of it there is the polygon alone
        only_HW = np.full((48, 48), IGNORE, dtype=np.uint8)
        only_HW[10:20, 5:15] = 3
        unchanged = {name: SoftMask.read(found.soft(name)).mask_HW for name in ("drawing-001", "drawing-002")}
        expected = {**edits, **unchanged, "drawing-003": only_HW}
    assert import_labels(path, found.path, by="Ada") == len(expected)
    entries = found.entries()
    for name, mask_HW in expected.items():
        assert (np.asarray(Image.open(found.mask(name))) == mask_HW).all()
        entry, guess_HW = entries[name], SoftMask.read(found.soft(name)).mask_HW
        assert (entry.verdict, entry.source, entry.decided_by) == ("accept", "person", "Ada")
        assert entry.edited == pytest.approx((mask_HW != guess_HW).mean(), abs=1e-6)
        assert found.image(entry).is_file() and not (found.path / "waiting" / entry.file).exists()
    decisions = {"round": 1, "artifact": "a" * 64, "decisions": dict.fromkeys(expected, "reject")}
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    apply_review(found, tmp_path / "decisions.json")
    assert found.entries() == entries, "decisions are about the model's masks"
    assert not any(name in review_page(found) for name in expected)
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=48)
    samples = with_round(open_dataset(tmp_path / "set", "segmentation"), found.path).split("train")
    labelled = {sample.image.stem for sample in samples if not sample.is_pseudo}
    assert labelled == {"0000", *expected}


@pytest.mark.parametrize("tool", TOOLS)
def test_unchanged_masks_come_back_the_same_into_a_data_set(found: Round, tool: Tool, tmp_path: Path) -> None:
    root, file = tmp_path / "set", tmp_path / "labels"
    write_segmentation_set(root, seed=0, num_train=1, num_val=1, side=48)
    guesses = {f"drawing-{index:03d}": SoftMask.read(found.soft(f"drawing-{index:03d}")).mask_HW for index in range(3)}
    assert main(["export-labels", str(found.path), "--to", tool, "--out", str(file)]) == 0
    if tool == "label-studio":
        file.write_bytes(draw_in_label_studio(file.read_bytes(), guesses))
    else:
        with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
            archive.writestr("annotations.xml", file.read_bytes())
        file = tmp_path / "task.zip"
    waiting = found.path / "waiting"
    assert main(["import-labels", str(file), "--into", str(root), "--images", str(waiting)]) == 0
    dataset = open_dataset(root, "segmentation")
    assert dataset.complaints == ()
    assert [sample.image.stem for sample in dataset.split("train")] == ["0000", *guesses]
    for name, mask_HW in guesses.items():
        assert (np.asarray(Image.open(root / f"masks/train/{name}.png")) == mask_HW).all()


def test_the_command_says_what_the_tool_wants(found: Round, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tool, sign in (("cvat", '"name": "background"'), ("label-studio", '<Label value="background"')):
        assert main(["export-labels", str(found.path), "--to", tool, "--out", str(tmp_path / "f")]) == 0
        told = capsys.readouterr().out
        assert sign in told and "4 images" in told and str(found.path / "waiting") in told


def label_studio_file(*, brushes: Sequence[tuple[int, int]]) -> bytes:
    """One image, with a brush that covers all of each size (height, width)."""
    results = []
    for height, width in brushes:
        value = {"format": "rle", "rle": by_ones(np.ones((height, width), dtype=bool)), "brushlabels": ["cell"]}
        results.append({"type": "brushlabels", "original_width": width, "original_height": height, "value": value})
    return json.dumps([{"data": {"file": "drawing-000.png"}, "annotations": [{"result": results}]}]).encode()


def damaged_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    return buffer.getvalue().replace(b"<annotations/>", b"<annotation5/>")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<annotations><image", "expected CVAT's XML, but it is broken"),
        (b"<coco/>", "expected CVAT's annotations, but got coco"),
        (
            b'<annotations><image name="drawing-000.png"><box/></image></annotations>',
            "shapes of kind mask or polygon, but",
        ),
        (b"[{]", "expected Label Studio's JSON, but it is broken"),
        (b"{}", "expected Label Studio's list of tasks"),
        (
            b'[{"data": {"image": "/data/upload/1/a.png"}, "annotations": [{"result": [{"type": "polygonlabels"}]}]}]',
            "expected regions of type brushlabels, but a.png has polygonlabels",
        ),
        (
            b'<annotations><image name="drawing-000.png" width="48" height="48"><polygon label="dog" '
            b'points="0,0;9,0;9,9"/></image></annotations>',
            "expected the classes background, .* but drawing-000.png has dog",
        ),
        (
            b'<annotations><image name="drawing-000.png" width="9" height="8"><polygon label="cell" '
            b'points="0,0;9,0;9,9"/></image></annotations>',
            "expected a mask of the size of drawing-000, 48 x 48, but got 9 x 8",
        ),
        (
            b'<annotations><image name="who.png" width="9" height="8"><polygon label="cell" '
            b'points="0,0;9,0;9,9"/></image></annotations>',
            "expected images that are in .*, but got who: name them as in .*waiting",
        ),
        (
            b'<annotations><image name="drawing-000.png" width="48" height="48"><polygon label="cell" '
            b'points="60,60;70,60;70,70"/></image></annotations>',
            "expected shapes that cover a pixel, but those of drawing-000.png do not: redraw them",
        ),
        (
            label_studio_file(brushes=[(48, 48), (8, 9)]),
            r"drawing-000.png: expected shapes of one size, but got \(48, 48\) and \(8, 9\)",
        ),
        (
            b"<annotations>%s</annotations>"
            % (
                b'<image name="drawing-000.png" width="48" height="48">'
                b'<polygon label="cell" points="0,0;9,0;9,9"/></image>' * 2
            ),
            "expected images with different names, but got drawing-000 twice",
        ),
        (
            b'<annotations><image width="48" height="48"><polygon label="cell" points="0,0;9,0;9,9"/></image>'
            b"</annotations>",
            "labels: expected images, each with its shapes and their labels, but one is not whole .*'name'",
        ),
        (
            b'[{"data": {"image": "a.png"}, "annotations": [{"result": [{"type": "brushlabels", "original_width": 48, '
            b'"original_height": 48, "value": {"format": "rle", "rle": [0]}}]}]}]',
            "labels: expected images, each with its shapes and their labels, but one is not whole .*'brushlabels'",
        ),
        (b'[{"data": "a.png"}]', "expected images, each with its shapes"),
        (damaged_zip(), "labels: Bad CRC-32 for file 'annotations.xml'"),
    ],
)
def test_what_does_not_fit_is_refused(
    found: Round, content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels").write_bytes(content)
    before = found.entries()
    assert main(["import-labels", str(tmp_path / "labels"), "--into", str(found.path)]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert found.entries() == before


@pytest.mark.parametrize(
    "content",
    [
        b'<annotations><track id="0" label="cell"><polygon frame="0" points="0,0;9,0;9,9"/></track></annotations>',
        b'[{"data": {"image": "drawing-000.png"}, "annotations": [], "predictions": [{"result": []}]}]',
    ],
    ids=["of a video", "nothing confirmed"],
)
def test_a_file_with_nothing_that_a_person_drew_is_refused(
    found: Round, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels").write_bytes(content)
    assert main(["import-labels", str(tmp_path / "labels"), "--into", str(found.path)]) == 2
    assert "expected images with shapes that a person drew or confirmed, but there are" in capsys.readouterr().err


def rectangle(label: str, box: tuple[int, int, int, int], *, layer: int = 0, group: int | None = None) -> str:
    left, top, right, bottom = box
    grouped = "" if group is None else f'group_id="{group}"'
    points = f"{left},{top};{right},{top};{right},{bottom};{left},{bottom}"
    return f'<polygon label="{label}" z_order="{layer}" {grouped} points="{points}"/>'


def cvat_file(path: Path, shapes: dict[str, list[str]], *, sides: Sequence[int]) -> Path:
    images = [
        f'<image name="{name}.png" width="{side}" height="{side}">{"".join(each)}</image>'
        for (name, each), side in zip(shapes.items(), sides, strict=True)
    ]
    path.write_text(f"<annotations>{''.join(images)}</annotations>")
    return path


def test_a_group_in_cvat_says_nothing_of_classes_and_layers(found: Round, tmp_path: Path) -> None:
    lowest, middle, topmost = CLASSES[1], CLASSES[2], CLASSES[1]
    shapes = [
        rectangle(lowest.name, (0, 0, 20, 48), layer=0, group=7),
        rectangle(middle.name, (10, 0, 48, 48), layer=1, group=7),
        rectangle(topmost.name, (40, 0, 48, 48), layer=2, group=7),
    ]
    import_labels(cvat_file(tmp_path / "labels", {"drawing-000": shapes}, sides=[48]), found.path)
    row = np.asarray(Image.open(found.mask("drawing-000")))[0].tolist()
    assert row == [lowest.id] * 10 + [middle.id] * 30 + [topmost.id] * 8


def test_what_a_person_corrected_is_not_replaced_by_what_the_model_drew(found: Round, tmp_path: Path) -> None:
    """An older export, or a colleague's, in which the same image was not touched."""
    written = tmp_path / "old.xml"
    written.write_bytes(export_labels(found, "cvat"))
    name = next(entry.name for entry in found.entries().values() if entry.verdict == "review")
    drawn = cvat_file(tmp_path / "new.xml", {name: [rectangle("cell", (0, 0, 20, 48))]}, sides=[48])
    assert import_labels(drawn, found.path, by="Ada") == 1
    before, mask = found.entries()[name], found.mask(name).read_bytes()
    asked = sum(entry.verdict == "review" for entry in found.entries().values())
    assert import_labels(written, found.path, by="Bob") == asked
    assert (found.entries()[name], found.mask(name).read_bytes()) == (before, mask)
    assert {entry.decided_by for entry in found.entries().values() if entry.source == "person"} == {"Ada", "Bob"}


def test_of_a_file_that_is_refused_nothing_is_taken(
    found: Round, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its second image is of another size; before it come one that waits for a person, and one that is accepted."""
    for name in ("drawing-000", "drawing-004"):
        shapes = {each: [rectangle("cell", (0, 0, 20, 20))] for each in (name, "drawing-001")}
        file = cvat_file(tmp_path / "labels", shapes, sides=[48, 24])
        before = files_of(found.path)
        assert main(["import-labels", str(file), "--into", str(found.path)]) == 2
        assert "expected a mask of the size of drawing-001, 48 x 48, but got 24 x 24" in capsys.readouterr().err
        assert files_of(found.path) == before


def test_of_a_file_that_is_refused_a_data_set_takes_nothing(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=2, num_val=1, side=48)
    before = files_of(tmp_path / "set")
    whole, part = [rectangle("cell", (0, 0, 48, 48))], [rectangle("cell", (0, 0, 20, 20))]
    file = tmp_path / "labels"
    for second, side, sentence in ((whole, 24, "a mask of the size of 0001"), (part, 48, "a class for every pixel of")):
        with pytest.raises(ValueError, match=sentence):
            import_labels(cvat_file(file, {"0000": whole, "0001": second}, sides=[48, side]), tmp_path / "set")
        assert files_of(tmp_path / "set") == before


def test_a_data_set_keeps_its_own_image_of_the_same_name(found: Round, tmp_path: Path) -> None:
    """The image that is imported is taken a second time, too; another one of its name is not put in its place."""
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=48)
    own = {kind: tmp_path / f"set/{kind}/train/drawing-000.png" for kind in ("images", "masks")}
    for kind, path in own.items():
        (tmp_path / f"set/{kind}/train/0000.png").rename(path)
    shapes = {name: [rectangle("cell", (0, 0, 48, 48))] for name in ("drawing-001", "drawing-000")}
    file = cvat_file(tmp_path / "labels", shapes, sides=[48, 48])
    before = files_of(tmp_path / "set")
    with pytest.raises(ValueError, match=r"expected no other image of the name of .*waiting/drawing-000.png in the"):
        import_labels(file, tmp_path / "set", images=found.path / "waiting")
    assert files_of(tmp_path / "set") == before
    for path in own.values():
        path.rename(path.with_stem("0000"))
    for _ in range(2):
        assert import_labels(file, tmp_path / "set", images=found.path / "waiting") == 2
    assert len(open_dataset(tmp_path / "set", "segmentation").split("train")) == 3


def test_a_round_takes_no_other_images(found: Round, tmp_path: Path) -> None:
    """They would not be looked at."""
    with pytest.raises(ValueError, match=r"expected --images only for a data set, but .* is a round"):
        import_labels(tmp_path / "labels.xml", found.path, images=tmp_path)


def test_a_data_set_without_void_takes_whole_masks_only(found: Round, tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=48)
    edits = {"drawing-000": edited(found, "drawing-000")}
    (tmp_path / "f").write_bytes(draw_in_label_studio(export_labels(found, "label-studio"), edits))
    with pytest.raises(ValueError, match=r"expected a class for every pixel of drawing-000"):
        import_labels(tmp_path / "f", tmp_path / "set", images=found.path / "waiting")


def test_pixels_that_nobody_labelled_are_the_void_of_a_data_set(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=48)
    table = json.loads((tmp_path / "set/classes.json").read_text())
    (tmp_path / "set/classes.json").write_text(json.dumps({**table, "ignore_index": 99}))
    shapes = {"0000": [rectangle("cell", (0, 0, 20, 48))]}
    import_labels(cvat_file(tmp_path / "labels", shapes, sides=[48]), tmp_path / "set")
    row = np.asarray(Image.open(tmp_path / "set/masks/train/0000.png"))[0].tolist()
    cell = next(entry.id for entry in CLASSES if entry.name == "cell")
    assert row == [cell] * 20 + [99] * 28
