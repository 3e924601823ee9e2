import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.lint.findings import Report
from training.lint.inspection import inspect
from training.lint.page import HEIGHT, WIDTH, page, write_page
from training.synthetic import write_segmentation_set

VOID_TAGS = {"meta", "img", "br", "td", "th", "li"}
"""Without an end, or with one that may be left out."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a set with a strange value, a coloured mask, a copy across the splits and a void mask."""
    root = tmp_path_factory.mktemp("lint") / "<set> & more"
    write_segmentation_set(root, seed=0, num_train=6, num_val=2, side=64)
    table = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(json.dumps(table | {"ignore_index": 255}))
    masks = [root / f"masks/train/000{index}.png" for index in range(6)]
    strange_HW = np.asarray(Image.open(masks[0])).copy()
    strange_HW[:20] = 77
    Image.fromarray(strange_HW).save(masks[0])
    Image.open(masks[1]).convert("RGB").save(masks[1])
    Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)).save(masks[2])
    (root / "images/val/0000.png").write_bytes((root / "images/train/0003.png").read_bytes())
    (root / "images/train/0004.png").write_bytes(b"broken")
    return inspect(root, "segmentation")


class _Tags(HTMLParser):
    """Refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def tags(report: Report) -> _Tags:
    parser = _Tags()
    parser.feed(page(report))
    return parser


def test_it_is_whole_and_says_all_there_is(report: Report, tags: _Tags) -> None:
    assert tags.open == []
    text = " ".join(tags.text)
    assert {finding.kind for finding in report.findings} >= {"unreadable", "color_mask", "value", "duplicate", "void"}
    for finding in report.findings:
        assert finding.sentence in text
        assert finding.kind.replace("_", " ") in text
        assert finding.command is None or finding.command in text
    assert f"{report.dataset}" in text and "a training is refused" in text
    for entry in report.classes:
        assert entry.name in text


def test_it_needs_no_other_file(tags: _Tags, report: Report) -> None:
    assert tags.sources
    assert all(source.startswith("data:image/") for source in tags.sources)
    assert "<script" not in page(report) and "http" not in page(report)


def test_its_pictures_are_small_and_can_be_decoded(tags: _Tags) -> None:
    for source in tags.sources:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()  # type: ignore[union-attr]
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        image.load()
        assert image.format == kind.upper()
        assert image.width <= WIDTH and image.height <= HEIGHT


def test_strange_values_are_magenta_and_void_is_pale(tags: _Tags) -> None:
    colors = [
        {color for _, color in Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).getcolors(9999)}
        for source in tags.sources
        if "image/png" in source
    ]
    assert any((255, 0, 200) in found for found in colors)
    assert any(found == {(235, 236, 240)} for found in colors)


def test_it_is_written_whole(report: Report, tmp_path: Path) -> None:
    (tmp_path / "lint.html").write_text("old")
    write_page(report, tmp_path / "lint.html")
    assert (tmp_path / "lint.html").read_text() == page(report)
    assert [path.name for path in tmp_path.iterdir()] == ["lint.html"]


def test_beside_a_mask_is_the_image_of_its_name(tmp_path: Path) -> None:
    """Whatever is in the name, and whichever others begin like it."""
    write_segmentation_set(tmp_path, seed=0, num_train=2, num_val=2, side=32)
    for kind in ("images", "masks"):
        (tmp_path / kind / "train/0000.png").rename(tmp_path / kind / "train/cell [1].png")
        (tmp_path / kind / "train/0001.png").rename(tmp_path / kind / "train/cell [1].2.png")
    Image.fromarray(np.full((32, 32), 77, dtype=np.uint8)).save(tmp_path / "masks/train/cell [1].png")
    assert "images/train/cell [1].png · masks/train/cell [1].png" in page(inspect(tmp_path, "segmentation"))
