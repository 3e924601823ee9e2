"""The page as text, and in a browser: does it stand alone, can it be read, is everything there?"""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from segserve.artifact import Artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.predictor import build_predictor
from segserve.spec import Task
from training.evaluate import evaluate
from training.layouts import open_dataset
from training.report import page_of
from training.run import EpochLog

NAMES = ("sky", "road", "tree", "car")
SECTIONS: dict[Task, list[str]] = {
    "segmentation": [
        *("training", "classes", "confusion", "borders", "certainty", "samples", "all-scores", "configuration")
    ],
    "classification": ["training", "classes", "confusion", "certainty", "samples", "all-scores", "configuration"],
}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)
PROBE = """<script>
const faults = [];
addEventListener("error", event => faults.push(String(event.message || event.target.src)), true);
addEventListener("load", () => {
  const box = element => element.getBoundingClientRect();
  const found = {
    faults,
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
    sections: Object.fromEntries([...document.querySelectorAll("section")].map(part => [part.id, box(part).height])),
    charts: [...document.querySelectorAll("svg[role=img]")].map(chart => Math.min(box(chart).width, box(chart).height)),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
  };
  document.body.insertAdjacentHTML("beforeend", "<pre id=probe>" + JSON.stringify(found) + "</pre>");
});
</script>"""


@pytest.fixture
def small_sets(tmp_path: Path) -> dict[Task, Path]:
    """Five noisy val images with masks and void, and with labels."""
    rng = np.random.default_rng(0)
    masks, labels = tmp_path / "masked <set>", tmp_path / "labelled"
    for root in (masks, labels):
        (root / "images/val").mkdir(parents=True)
        for index in range(5):
            image_HWC = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(image_HWC).save(root / "images/val" / f"{index}.png")
    (masks / "masks/val").mkdir(parents=True)
    for index in range(5):
        mask_HW = np.kron(rng.choice([0, 1, 3, 9], (6, 8)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(mask_HW).save(masks / "masks/val" / f"{index}.png")
    classes = [{"id": index, "name": name} for index, name in enumerate(NAMES)]
    (masks / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 9}))
    rows = [f"val,{index},{index % 4},{NAMES[index % 4]}" for index in range(5)]
    (labels / "labels.csv").write_text("\n".join(["split,stem,label_id,label", *rows]) + "\n")
    return {"segmentation": masks, "classification": labels}


def _page(task: Task, root: Path, artifact: Artifact) -> str:
    dataset, evaluation = open_dataset(root, task), evaluate(artifact, root)
    history = [
        EpochLog(epoch=e, loss=1 / e, learning_rate=1e-3, seconds=1, scores=evaluation.scores if e % 5 == 0 else {})
        for e in range(1, 41)
    ]
    page = page_of(build_predictor(artifact.spec, TorchEngine(artifact.network)), dataset, evaluation, history=history)
    configuration = {"optim": {"epochs": 40, "note": "<b>bold</b>"}}
    return dataclasses.replace(page, configuration=configuration).html()


class _Reader(HTMLParser):
    """What the page is made of; fails where tags are not closed in order."""

    VOID = ("meta", "link", "img", "line", "circle", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def artifacts(artifact: Artifact, labels_artifact: Artifact) -> dict[Task, Artifact]:
    return {"segmentation": artifact, "classification": labels_artifact}


@pytest.mark.parametrize("task", SECTIONS)
def test_the_page_stands_alone_and_is_well_formed(
    task: Task, small_sets: dict[Task, Path], artifacts: dict[Task, Artifact]
) -> None:
    text, reader = _page(task, small_sets[task], artifacts[task]), _Reader()
    reader.feed(text)
    assert reader.open == []
    assert [part["id"] for part in reader.all("section")] == SECTIONS[task]
    assert [link["href"] for link in reader.all("a")] == [f"#{name}" for name in SECTIONS[task]]
    assert reader.all("script") == []
    addresses = [part.get("src") or part.get("href") or "" for _, part in reader.elements]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)
    assert "url(" not in text and "@import" not in text
    assert all(picture["alt"] for picture in reader.all("img"))
    assert len(reader.all("img")) == (5 * 5 if task == "segmentation" else 5)
    assert all(chart["aria-label"] for chart in reader.all("svg") if chart.get("role") == "img")
    assert "&lt;b&gt;bold&lt;/b&gt;" in text and "<b>bold" not in text


def test_the_page_shows_every_score(small_sets: dict[Task, Path], artifact: Artifact) -> None:
    evaluation = evaluate(artifact, small_sets["segmentation"])
    text = _page("segmentation", small_sets["segmentation"], artifact)
    table = dict(re.findall(r'<th scope="row"><code>(\w+)</code></th><td>([\d.]+)</td><td>\w', text))
    assert evaluation.certainty is not None
    expected = evaluation.scores | evaluation.certainty.figures()
    assert table == {name: f"{value:.4f}" for name, value in expected.items()}
    assert "masked &lt;set&gt;" in text
    cells = re.findall(r'title="([\d,]+) pixels"', text)
    assert [int(cell.replace(",", "")) for cell in cells] == [count for line in evaluation.confusion for count in line]


def test_a_class_that_is_nowhere_has_no_bar(small_sets: dict[Task, Path], artifact: Artifact) -> None:
    text = _page("segmentation", small_sets["segmentation"], artifact)
    scored = sum(entry.score is not None for entry in evaluate(artifact, small_sets["segmentation"]).classes)
    assert text.count('<span class="bar">') == scored
    assert f"{scored} of 4 classes scored" in text


def test_the_command_writes_the_page(
    small_sets: dict[Task, Path], artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert main(["evaluate", str(artifact.path), str(small_sets["segmentation"]), "--html", str(path)]) == 0
    assert "miou" in capsys.readouterr().out
    assert '<section id="samples">' in path.read_text(encoding="utf-8")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
@pytest.mark.parametrize(("task", "width"), [("segmentation", 1200), ("segmentation", 520), ("classification", 1200)])
def test_a_browser_shows_it(
    task: Task, width: int, small_sets: dict[Task, Path], artifacts: dict[Task, Artifact], tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        _page(task, small_sets[task], artifacts[task]).replace("<head>", "<head>" + PROBE), encoding="utf-8"
    )
    places = (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900")
    command = [str(BROWSER), *FLAGS, *places, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert probe, done.stderr
    found = json.loads(probe[1])
    assert found["faults"] == []
    assert len(found["images"]) == (25 if task == "segmentation" else 5)
    assert min(found["images"]) >= 48
    assert list(found["sections"]) == SECTIONS[task]
    assert min(found["sections"].values()) > 60
    assert len(found["charts"]) == (7 if task == "segmentation" else 5)
    assert min(found["charts"]) > 150
    assert found["overflow"] <= 0, "tables scroll, the page does not"
    assert found["width"] <= width


def test_the_command_of_the_docs_does_what_they_say(
    small_sets: dict[Task, Path], artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    (block,) = re.findall(r"```sh\n\.venv/bin/segserve (.*?)\n```", docs)
    command, _, _, *options = block.split()
    options = [str(tmp_path / option) if "." in option else option for option in options]
    assert main([command, str(artifact.path), str(small_sets["segmentation"]), *options]) == 0
    written = json.loads((tmp_path / "scores.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} >= {"scores.json", "report.html"}
    named = set(re.findall(r"`([a-z0-9_]+)`", docs))
    spelled = {name for name in written["scores"] if not name.startswith(("trimap", "boundary_iou"))}
    assert spelled <= named
