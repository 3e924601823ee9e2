"""Both tasks under load: segmentation as PNG and as JSON, labels as JSON, some of each with test-time augmentation.

Images are made here from a fixed seed. Every answer's content is checked, because a fast wrong answer is no answer.
The exit code is 1 when any request failed, when none was sent, or when the 95th percentile of all answer times is
above SEGSERVE_SLO_P95_MS. Each user sends its next request at once: the number of users is the number in flight.
"""

import io
import itertools
import json
import math
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
import numpy as np
from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import FastResponse
from locust.env import Environment
from PIL import Image, ImageDraw

SEED = 20240917
SIZES = ((320, 240), (333, 251), (640, 480), (768, 1024))
"""Width and height in pixels; one is odd, one is upright."""
SEGMENTATION_MODEL = os.environ.get("SEGSERVE_SEGMENTATION_MODEL", "demo-segmentation")
CLASSIFICATION_MODEL = os.environ.get("SEGSERVE_CLASSIFICATION_MODEL", "demo-classification")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
SEGMENTATION_KEYS = {"model", "image", "classes", "uncertainty", "tta", "timings_ms"}
LABELS_KEYS = {"model", "image", "labels", "tta", "timings_ms"}


Check = Callable[[bytes, "Upload"], None]


class WrongAnswer(Exception):
    """An answer that is not what the contract promises; the text says what was expected and what arrived."""


@dataclass(frozen=True)
class Upload:
    """An encoded image and what is known about it."""

    width: int
    height: int
    content_type: str
    body: bytes


def make_uploads(seed: int = SEED) -> list[Upload]:
    """One JPEG and one PNG of every size, the same bytes for the same seed and Pillow."""
    rng = np.random.default_rng(seed)
    kinds = itertools.product(SIZES, ("JPEG", "PNG"))
    return [_encode(_draw(width, height, rng), kind) for (width, height), kind in kinds]


def _draw(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Noise over a plain colour, and shapes on it."""
    noise_HWC = rng.normal(rng.integers(60, 196, 3), 12, (height, width, 3))
    image = Image.fromarray(noise_HWC.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(6):
        left, top = int(rng.integers(0, width * 3 // 4)), int(rng.integers(0, height * 3 // 4))
        box = (left, top, left + int(rng.integers(8, width // 2)), top + int(rng.integers(8, height // 2)))
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape(box, fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return image


def _encode(image: Image.Image, kind: str) -> Upload:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return Upload(image.width, image.height, f"image/{kind.lower()}", buffer.getvalue())


def check_png(body: bytes, upload: Upload) -> None:
    """The answer is a PNG of the upload's size.

    Raises:
        WrongAnswer: it is not.
    """
    if len(body) < 24 or not body.startswith(PNG_MAGIC):
        raise WrongAnswer(f"expected a PNG, but got {body[:16]!r}")
    _check_size(struct.unpack(">II", body[16:24]), upload)


def check_segmentation(body: bytes, upload: Upload) -> None:
    """The answer is a JSON object of the upload's size whose classes share out every pixel.

    Raises:
        WrongAnswer: it is not.
    """
    answer = _read_answer(body, upload, keys=SEGMENTATION_KEYS)
    pixels, present = upload.width * upload.height, sum(entry["pixels"] for entry in answer["classes"])
    if present != pixels:
        raise WrongAnswer(f"expected the classes to share out {pixels} pixels, but got {present}")


def check_labels(body: bytes, upload: Upload) -> None:
    """The answer is a JSON object of the upload's size with probabilities, the largest first.

    Raises:
        WrongAnswer: it is not.
    """
    probabilities = [label["probability"] for label in _read_answer(body, upload, keys=LABELS_KEYS)["labels"]]
    is_sorted = probabilities == sorted(probabilities, reverse=True)
    if not probabilities or not is_sorted or not 0 < sum(probabilities) <= 1.001:
        raise WrongAnswer(f"expected probabilities, the largest first, but got {probabilities}")


def _read_answer(body: bytes, upload: Upload, *, keys: set[str]) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise WrongAnswer(f"expected JSON, but got {body[:16]!r}") from error
    if not isinstance(answer, dict) or not keys <= answer.keys():
        raise WrongAnswer(f"expected the keys {sorted(keys)}, but got {str(answer)[:100]}")
    _check_size((answer["image"]["width"], answer["image"]["height"]), upload)
    return answer


def _check_size(size: tuple[int, int], upload: Upload) -> None:
    if size != (upload.width, upload.height):
        raise WrongAnswer(f"expected the upload's size {upload.width}x{upload.height}, but got {size[0]}x{size[1]}")


def read_slo_ms(environment: Mapping[str, str]) -> float:
    """The limit for the 95th percentile in milliseconds; infinite where none is set.

    Raises:
        SystemExit: it is not a number above 0.
    """
    text = environment.get("SEGSERVE_SLO_P95_MS", "")
    try:
        slo_ms = float(text or "inf")
    except ValueError:
        slo_ms = math.nan
    if not slo_ms > 0:
        raise SystemExit(f"expected SEGSERVE_SLO_P95_MS to be above 0 ms, but got {text!r}: correct or unset it")
    return slo_ms


UPLOADS = make_uploads()
SLO_MS = read_slo_ms(os.environ)


class Client(FastHttpUser):
    """Sends images to both models, one request after the other."""

    host = "http://127.0.0.1:8080"
    connection_timeout = 5.0
    network_timeout = 60.0

    @task(5)
    def segmentation_png(self) -> None:
        """The most common call: an image for an image."""
        self._send("segmentation png", SEGMENTATION_MODEL, check_png, accept="image/png")

    @task(1)
    def segmentation_png_hflip(self) -> None:
        """Two views per image."""
        self._send("segmentation png tta=hflip", SEGMENTATION_MODEL, check_png, accept="image/png", tta="hflip")

    @task(2)
    def segmentation_json(self) -> None:
        """The mask of each class as RLE."""
        self._send("segmentation json", SEGMENTATION_MODEL, check_segmentation, accept="application/json")

    @task(3)
    def labels(self) -> None:
        """The image's likeliest labels."""
        self._send("labels json", CLASSIFICATION_MODEL, check_labels, accept="application/json")

    @task(1)
    def labels_hflip(self) -> None:
        """Two views per image."""
        self._send("labels json tta=hflip", CLASSIFICATION_MODEL, check_labels, accept="application/json", tta="hflip")

    def _send(self, name: str, model: str, check: Check, *, accept: str, tta: str = "none") -> None:
        """Post one image and mark the request as failed unless the answer is right."""
        upload = random.choice(UPLOADS)
        headers = {"Content-Type": upload.content_type, "Accept": accept, "X-Segserve-Tta": tta}
        path = f"/predictions/{model}"
        with self.client.post(path, data=upload.body, headers=headers, name=name, catch_response=True) as response:
            try:
                _check_head(response, accept)
                check(response.content, upload)
            except WrongAnswer as error:
                response.failure(str(error))
            except (KeyError, TypeError) as error:
                response.failure(f"expected the contract's fields, but got {type(error).__name__}: {error}")


def _check_head(response: FastResponse, accept: str) -> None:
    if not response.status_code:
        raise WrongAnswer(f"expected an answer, but got {response.error}")
    if response.status_code != 200:
        raise WrongAnswer(f"expected status 200, but got {response.status_code}: {response.text!s:.200}")
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if content_type != accept:
        raise WrongAnswer(f"expected {accept}, but got {content_type or 'no Content-Type'}")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Let the run time begin now, and let what is in flight at its end be answered and judged, too.

    Timers count from gevent's own clock, which stood still during the imports. Without a stop timeout, locust drops
    the requests that are still waiting: those a hanging service never answers would not count as failures.
    """
    gevent.get_hub().loop.update_now()
    environment.stop_timeout = environment.stop_timeout or Client.connection_timeout + Client.network_timeout


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Set the exit code, and say why it is not 0."""
    findings = list(find_faults(environment))
    for finding in findings:
        print(f"loadtest: {finding}")
    environment.process_exit_code = 1 if findings else 0


def find_faults(environment: Environment) -> Iterator[str]:
    """What speaks against this run, one sentence each."""
    total = environment.stats.total
    if not total.num_requests:
        yield "expected answers, but no request was sent"
    if total.num_failures:
        yield f"expected no failure, but {total.num_failures} of {total.num_requests} requests failed"
    if environment.runner is not None and environment.runner.exceptions:
        yield "expected no exception in the load test itself, but there was one: see above"
    p95_ms = total.get_response_time_percentile(0.95) or 0
    if p95_ms > SLO_MS:
        yield f"expected 95 % of the answers within {SLO_MS:g} ms, but it took {p95_ms:g} ms"
