"""The client asks the real service: every form, both tasks, and the page that explains it."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from handlers.local_service import LocalService
from segserve.answers import index_mask
from segserve.client import Client, ProblemError, UnexpectedAnswer
from tests.system.conftest import ROOT, Demo

pytestmark = pytest.mark.system

PAGE = (ROOT / "docs/client.md").read_text()
FENCES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def path(demo: Demo) -> Path:
    return demo.folder / "input.png"


@pytest.fixture(scope="session")
def client(service: LocalService) -> Iterator[Client]:
    with Client(service.inference, model="demo-segmentation") as client:
        yield client


@pytest.fixture(scope="session")
def labels_client(service: LocalService) -> Iterator[Client]:
    with Client(service.inference, model="demo-classification") as client:
        yield client


@pytest.fixture(scope="session")
def mask_HW(client: Client, path: Path) -> np.ndarray:
    mask = client.segment(path)
    assert len(mask.palette_K3) >= 5
    return mask.mask_HW


@pytest.fixture(scope="session")
def ids(client: Client, path: Path) -> dict[str, int]:
    probabilities = client.probabilities(path)
    return dict(zip(probabilities.names, probabilities.ids, strict=True))


def test_files_bytes_and_arrays_give_the_same_mask(client: Client, path: Path, mask_HW: np.ndarray) -> None:
    pixels_HWC = np.asarray(Image.open(path).convert("RGB"))
    assert mask_HW.shape == pixels_HWC.shape[:2]
    assert len(np.unique(mask_HW)) > 1
    assert np.array_equal(client.segment(path.read_bytes()).mask_HW, mask_HW)
    assert np.array_equal(client.segment(pixels_HWC).mask_HW, mask_HW)


@pytest.mark.parametrize("masks", ["rle", "polygons", "png"])
def test_json_holds_the_mask(
    client: Client, path: Path, mask_HW: np.ndarray, masks: Literal["rle", "polygons", "png"]
) -> None:
    assert np.array_equal(client.describe(path, masks=masks).mask_HW, mask_HW)


@pytest.mark.parametrize("form", ["coco", "cvat", "labelstudio", "hf"])
def test_forms_of_other_tools_hold_the_mask(
    client: Client,
    path: Path,
    mask_HW: np.ndarray,
    ids: dict[str, int],
    form: Literal["coco", "cvat", "labelstudio", "hf"],
) -> None:
    assert np.array_equal(index_mask(client.regions(path, form=form), ids), mask_HW)


@pytest.mark.parametrize("precision", ["uint8", "float16"])
def test_the_likeliest_class_is_the_mask(
    client: Client, path: Path, mask_HW: np.ndarray, precision: Literal["uint8", "float16"]
) -> None:
    probabilities = client.probabilities(path, precision=precision, tta="none")
    assert np.array_equal(probabilities.probs_KHW.argmax(axis=0), mask_HW)
    assert np.array_equal(probabilities.mask_HW, mask_HW)


def test_pictures(client: Client, path: Path, mask_HW: np.ndarray) -> None:
    assert client.picture(path, render="overlay").shape == (*mask_HW.shape, 3)
    assert client.picture(path, render="confidence").mean() > 128
    assert client.picture(path, render="uncertainty", measure="disagreement", tta="flips").shape == mask_HW.shape


def test_parts_come_from_one_request(client: Client, path: Path, mask_HW: np.ndarray) -> None:
    parts = client.parts(path, format=["png", "json", "npz"], render=["index", "overlay"])
    assert list(parts) == ["index", "overlay", "json", "npz"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(parts["index"].body))), mask_HW)


def test_a_reply_names_the_model_and_its_times(client: Client, path: Path) -> None:
    reply = client.ask(path, format="labelstudio", request_id="req-1")
    assert (reply.content_type, reply.model, reply.version) == ("application/json", "demo-segmentation", "1.0")
    assert reply.request_id == "req-1"
    assert {"decode", "forward", "encode"} <= set(reply.timings_ms)
    assert b'"image":"input.png"' in reply.body


def test_labels(labels_client: Client, path: Path) -> None:
    answer = labels_client.classify(path, top_k=2, tta="hflip")
    first, second = answer.labels
    assert first.probability >= second.probability
    assert answer.tta.views == 2
    regions = labels_client.regions(path, form="hf", tta="hflip")
    assert (regions[0].label, regions[0].score) == (first.name, first.probability)


def test_a_model_of_the_other_task_is_told_apart(client: Client, labels_client: Client, path: Path) -> None:
    with pytest.raises(UnexpectedAnswer, match="expected image/png from demo-classification, but got application/json"):
        labels_client.segment(path)
    with pytest.raises(UnexpectedAnswer, match="expected another answer from demo-segmentation"):
        client.classify(path)


def test_problems_are_raised(client: Client, service: LocalService, path: Path) -> None:
    with pytest.raises(ProblemError, match=r"^Not an image type we take \(415\): expected one of JPEG") as caught:
        client.segment(b"text")
    assert caught.value.type == "urn:segserve:problem:unsupported-type"
    assert caught.value.request_id
    with (
        Client(service.inference, model="nobody") as nobody,
        pytest.raises(ProblemError, match="Model not found: nobody"),
    ):
        nobody.segment(path)


@pytest.mark.parametrize("fence", FENCES)
def test_the_page_s_examples_run(
    service: LocalService, fence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(fence.replace("http://127.0.0.1:8080", service.inference), "docs/client.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_three_examples() -> None:
    assert len(FENCES) == 3
