"""The contract over HTTP: every carrier, both tasks, hostile files, batches, metrics."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as coco

from handlers.local_service import LocalService
from tests.system.conftest import Demo

pytestmark = pytest.mark.system

SEGMENTATION, CLASSIFICATION = "demo-segmentation", "demo-classification"
PNG_BODY = {"Content-Type": "image/png"}
Send = Callable[[LocalService, bytes], httpx.Response]


@pytest.fixture(scope="session")
def image(demo: Demo) -> bytes:
    return (demo.folder / "input.png").read_bytes()


def mask_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def post(service: LocalService, model: str, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(service.predictions(model), content=body, headers={**PNG_BODY, **named}, timeout=60)


def raw_with_headers(service: LocalService, image: bytes) -> httpx.Response:
    return post(service, SEGMENTATION, image, X_Segserve_Render="overlay", X_Segserve_TTA="hflip")


def form(service: LocalService, image: bytes) -> httpx.Response:
    fields = {"render": "overlay", "tta": "hflip"}
    return httpx.post(service.predictions(SEGMENTATION), files={"image": image}, data=fields, timeout=60)


def json_body(service: LocalService, image: bytes) -> httpx.Response:
    document = {"image": base64.b64encode(image).decode(), "render": "overlay", "tta": "hflip"}
    return httpx.post(service.predictions(SEGMENTATION), json=document, headers={"Accept": "image/png"}, timeout=60)


def query(service: LocalService, image: bytes) -> httpx.Response:
    address = f"{service.inference}/models/{SEGMENTATION}/invoke?render=overlay&tta=hflip"
    return httpx.post(address, content=image, headers=PNG_BODY, timeout=60)


@pytest.mark.parametrize("send", [raw_with_headers, form, json_body, query])
def test_every_carrier_gives_the_same_overlay(service: LocalService, image: bytes, send: Send) -> None:
    overlay = mask_of(send(service, image))
    assert overlay.shape == (128, 128, 3)
    assert np.array_equal(overlay, mask_of(raw_with_headers(service, image)))


def test_index_png_and_its_headers(service: LocalService, image: bytes) -> None:
    answer = post(service, SEGMENTATION, image)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-segserve-model"] == SEGMENTATION
    assert answer.headers["x-segserve-version"] == "1.0"
    assert "forward;dur=" in answer.headers["server-timing"]
    assert Image.open(io.BytesIO(answer.content)).mode == "P"


def test_rle_and_png_in_json_are_the_png_mask(service: LocalService, image: bytes) -> None:
    mask_HW = mask_of(post(service, SEGMENTATION, image))
    rle = post(service, SEGMENTATION, image, Accept="application/json").json()
    decoded_HW = np.full_like(mask_HW, 255)
    for entry in rle["classes"]:
        decoded_HW[coco.decode(entry["mask"]).astype(bool)] = entry["id"]
    assert np.array_equal(decoded_HW, mask_HW)
    png = post(service, SEGMENTATION, image, X_Segserve_Format="json", X_Segserve_Masks="png").json()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png["mask"]["data"])))), mask_HW)


def test_labels(service: LocalService, image: bytes) -> None:
    answer = post(service, CLASSIFICATION, image, X_Segserve_Top_K="2", X_Segserve_TTA="d4").json()
    first, second = (label["probability"] for label in answer["labels"])
    assert first >= second
    assert answer["tta"] == {"plan": "d4", "views": 8, "aggregate": "mean"}


@pytest.mark.parametrize(
    ("status", "words", "headers", "body"),
    [
        (400, "expected 'tta' to be 'none'", {"X-Segserve-TTA": "twice"}, None),
        (400, "'colour' is not a known key", {"X-Segserve-Colour": "red"}, None),
        (400, "the body is empty", {}, b""),
        (415, "expected one of JPEG", {}, b"hello, this is text"),
        (400, "it cannot be parsed", {"Content-Type": "multipart/form-data"}, None),
        (400, "expected a file field 'image'", {"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        (415, "--data-binary @FILE", {"Content-Type": "application/x-www-form-urlencoded"}, None),
        (422, "expected a whole", {}, b"\x89PNG\r\n\x1a\nbroken"),
    ],
)
def test_problems(
    service: LocalService, image: bytes, status: int, words: str, headers: dict[str, str], body: bytes | None
) -> None:
    content = image if body is None else body
    sent = {**PNG_BODY, "X-Request-ID": "req-1", **headers}
    answer = httpx.post(service.predictions(SEGMENTATION), content=content, headers=sent)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert (problem["status"], problem["request_id"]) == (status, "req-1")
    assert {"type", "title"} < set(problem)


def test_poison_headers_change_nothing(service: LocalService, image: bytes) -> None:
    expected = post(service, SEGMENTATION, image).content
    poison = {"describe": "True", "explain": "True", "ts_stream_next": "true"}
    assert post(service, SEGMENTATION, image, **poison).content == expected


def _worker_pids(service: LocalService) -> set[int]:
    """Process ids of the Python workers below the service's own process."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return {child.pid for child in children if "model_service_worker" in " ".join(child.cmdline())}


def test_broken_files_hurt_nobody(service: LocalService, image: bytes, shared_data: Path) -> None:
    manifest = json.loads((shared_data / "odd_images/manifest.json").read_text())["files"]
    odd = [(shared_data / "odd_images/files" / entry["file"]).read_bytes() for entry in manifest]
    alone = [post(service, SEGMENTATION, body) for body in odd]
    good_HW = mask_of(post(service, SEGMENTATION, image))
    workers = _worker_pids(service)

    mixed = [body for pair in zip(odd, [image] * len(odd), strict=True) for body in pair]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: post(service, SEGMENTATION, body), mixed))

    for entry, single, answer in zip(manifest, alone, together[::2], strict=True):
        assert answer.status_code == single.status_code, entry["file"]
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, entry["file"]
        if answer.status_code == 200:
            assert (mask_of(answer) == mask_of(single)).mean() >= 0.999, entry["file"]
    for answer in together[1::2]:
        assert (mask_of(answer) == good_HW).mean() >= 0.999
    assert len(workers) == 2
    assert _worker_pids(service) == workers


def _samples(service: LocalService, name: str) -> dict[str, float]:
    """Values of the segmentation model's samples of one name, by their remaining labels."""
    text = httpx.get(f"{service.ops}/metrics").text
    return {
        json.dumps({key: label for key, label in sample.labels.items() if key != "model"}): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("model") == SEGMENTATION
    }


def test_requests_of_all_kinds_share_batches(service: LocalService, image: bytes) -> None:
    sizes = [(128, 128), (90, 200), (33, 47), (300, 240)]
    bodies = []
    for size in sizes:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(image)).resize(size).save(buffer, format="PNG")
        bodies.append(buffer.getvalue())
    wishes = [{}, {"X_Segserve_TTA": "d4"}, {"Accept": "application/json"}, {"X_Segserve_Render": "overlay"}]
    before = _samples(service, "segserve_batch_images_bucket")
    jobs = [(bodies[i % 4], wishes[i // 4 % 4]) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda job: post(service, SEGMENTATION, job[0], **job[1]), jobs))
    after = _samples(service, "segserve_batch_images_bucket")
    assert {answer.status_code for answer in together} == {200}
    in_batches = {le: after[le] - before.get(le, 0) for le in after}
    assert in_batches['{"le": "+Inf"}'] > in_batches['{"le": "1.0"}'], in_batches
    for (body, wish), answer in zip(jobs[:16], together[:16], strict=True):
        if answer.headers["content-type"] == "image/png":
            assert (mask_of(answer) == mask_of(post(service, SEGMENTATION, body, **wish))).mean() >= 0.999


METRICS = [
    "segserve_requests_total",
    "segserve_rejected_total",
    "segserve_request_seconds_bucket",
    "segserve_stage_seconds_bucket",
    "segserve_batch_images_bucket",
    "segserve_image_megapixels_bucket",
    "segserve_class_pixels_total",
    "segserve_confidence_bucket",
    "segserve_queue_depth",
    "segserve_in_flight",
    "segserve_workers",
    "segserve_model_info",
]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_the_contract_are_exposed(service: LocalService, image: bytes, name: str) -> None:
    post(service, SEGMENTATION, image)
    post(service, SEGMENTATION, b"text")
    assert _samples(service, name)


def test_promtool_accepts_the_metrics(service: LocalService) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not os.environ.get("CI"), "CI must install promtool (Debian's package prometheus)"
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    text = httpx.get(f"{service.ops}/metrics").content
    judged = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (judged.returncode, judged.stdout + judged.stderr) == (0, b"")
