"""Two versions of a model before the same images: how far their masks, or labels, agree, and which is slower."""

import contextlib
import http.client
import io
import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError

from segserve.api import ProblemAnswer
from segserve.sample import Views
from segserve.settings import Settings
from segserve.spec import ModelSpec, Task

_DURATION = re.compile(r"dur=([0-9.]+)")


class Limits(Settings):
    """How far a new version may be from the one that is served."""

    min_agreement: float = Field(default=0.8, ge=0, le=1)
    max_share_change: float = Field(default=0.1, ge=0, le=1)
    max_slowdown: float = Field(default=1.5, gt=0)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found on the same images."""

    images: int
    agreement: float
    """Of masks: mean IoU of the two over the classes that either shows, 0 to 1. Of labels: share of equal ones."""
    share_change: float
    """Largest change of a class's share: of the pixels, each image counting the same, or of the images."""
    changed_class: str
    slowdown: float
    """Median time in the worker, without the queue, in units of the served version's."""

    def within(self, limits: Limits) -> bool:
        """Whether all three are."""
        return (
            self.agreement >= limits.min_agreement
            and self.share_change <= limits.max_share_change
            and self.slowdown <= limits.max_slowdown
        )

    def sentence(self, limits: Limits) -> str:
        """The figures and their limits."""
        return (
            f"on {self.images} images agreement {self.agreement:.3f} (at least {limits.min_agreement:g}), share of "
            f"{self.changed_class} changed by {self.share_change:.3f} (at most {limits.max_share_change:g}), "
            f"{self.slowdown:.2f} times the time (at most {limits.max_slowdown:g})"
        )


class Replayer:
    """Asks single versions of a model, by TorchServe's own port.

    Args:
        host: of that port.
        port: likewise.
        name: of the model.
        spec: of either version; their classes are the same.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, host: str, port: int, *, name: str, spec: ModelSpec, timeout: float) -> None:
        self.host, self.port = host, port
        self.name = name
        self.spec = spec
        self.timeout = timeout

    def compare(self, images: Iterable[tuple[bytes, Views]], *, served: str, new: str) -> Figures:
        """Send each image to both versions, one after the other and in turns.

        Raises:
            RuntimeError: a version answered an image with an error, or there is no image.
        """
        seconds: dict[str, list[float]] = {served: [], new: []}
        counts_KK = np.zeros((self.spec.num_classes, self.spec.num_classes))
        for number, (image, views) in enumerate(images):
            answers = {}
            for version in (served, new) if number % 2 == 0 else (new, served):
                answers[version], duration = self._ask(version, image, views)
                seconds[version].append(duration)
            counts_KK += confusion(answers[served], answers[new], num_classes=self.spec.num_classes)
        return figures(counts_KK, seconds[served], seconds[new], spec=self.spec)

    def _ask(self, version: str, image: bytes, views: Views) -> tuple[NDArray[np.integer], float]:
        """Class indices, of each pixel or in a single one, and the seconds that the worker needed."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        with contextlib.closing(connection):
            path = f"/predictions/{quote(self.name, safe='')}/{quote(version, safe='')}"
            connection.request("POST", path, body=image, headers=_headers(views, task=self.spec.task))
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise RuntimeError(
                f"expected {self.name} {version} to answer every image, but it said {answer.status} to one of "
                f"{len(image)} bytes ({_reason(body)}): leave that image out"
            )
        durations = _DURATION.findall(answer.headers["Server-Timing"])
        return _indices(body, task=self.spec.task), sum(float(duration) for duration in durations) / 1000


def _reason(body: bytes) -> str:
    try:
        return ProblemAnswer.model_validate_json(body).detail
    except ValidationError:
        return body.decode(errors="replace")


def confusion(served: NDArray[np.integer], new: NDArray[np.integer], *, num_classes: int) -> NDArray[np.float64]:
    """Shares of the pixels by the class in the one and in the other, (K, K); they sum to 1."""
    pairs = served.astype(np.int64).ravel() * num_classes + new.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes) / pairs.size


def figures(
    counts_KK: NDArray[np.float64], served_seconds: list[float], new_seconds: list[float], *, spec: ModelSpec
) -> Figures:
    """What the sums over all images say.

    Args:
        counts_KK: of `confusion`, summed.
        served_seconds: of each image.
        new_seconds: likewise.
        spec: whose classes they are.
    """
    if not served_seconds:
        raise RuntimeError("expected images to compare the versions on, but there is none")
    images = len(served_seconds)
    both_K, served_K, new_K = counts_KK.diagonal(), counts_KK.sum(axis=1), counts_KK.sum(axis=0)
    either_K = served_K + new_K - both_K
    shown_K = either_K > 0
    iou = float((both_K[shown_K] / either_K[shown_K]).mean())
    change_K = np.abs(new_K - served_K) / images
    return Figures(
        images=images,
        agreement=iou if spec.task == "segmentation" else float(both_K.sum()) / images,
        share_change=float(change_K.max()),
        changed_class=spec.class_names[int(change_K.argmax())],
        slowdown=statistics.median(new_seconds) / statistics.median(served_seconds),
    )


def _headers(views: Views, *, task: Task) -> Mapping[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "X-Segserve-Format": "png" if task == "segmentation" else "json",
        "X-Segserve-TTA": views.tta,
        "X-Segserve-Aggregate": views.aggregate,
    }


def _indices(body: bytes, *, task: Task) -> NDArray[np.integer]:
    if task == "classification":
        return np.array([json.loads(body)["labels"][0]["id"]])
    with Image.open(io.BytesIO(body)) as mask:
        return np.asarray(mask)
