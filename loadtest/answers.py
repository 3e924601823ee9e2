"""Is an answer right? A fast wrong answer is no answer."""

import json
import struct
from typing import Any

from loadtest.uploads import PNG_MAGIC, Upload
from segserve.spec import Task

SEGMENTATION_KEYS = {"model", "image", "classes", "uncertainty", "tta", "timings_ms"}
LABELS_KEYS = {"model", "image", "labels", "tta", "timings_ms"}
REFUSALS = (429, 503, 504)
"""Statuses by which a service that has too much to do, or stops, says so."""


class WrongAnswer(Exception):
    """An answer that is not what the contract promises; the text says what was expected and what arrived."""


def check_png(body: bytes, upload: Upload) -> None:
    """The answer is a PNG of the upload's size.

    Raises:
        WrongAnswer: it is not.
    """
    if len(body) < 24 or not body.startswith(PNG_MAGIC):
        raise WrongAnswer(f"expected a PNG, but got {body[:16]!r}")
    _check_size(struct.unpack(">II", body[16:24]), upload)


def check_json(body: bytes, upload: Upload, *, task: Task) -> None:
    """The answer is a JSON object of the upload's size: classes that share out every pixel, or sorted labels.

    Raises:
        WrongAnswer: it is not.
    """
    try:
        if task == "segmentation":
            _check_classes(_read_answer(body, upload, keys=SEGMENTATION_KEYS), upload)
        else:
            _check_labels(_read_answer(body, upload, keys=LABELS_KEYS))
    except (KeyError, TypeError) as error:
        raise WrongAnswer(f"expected the contract's fields, but got {type(error).__name__}: {error}") from error


def problem_of(body: bytes) -> str:
    """The kind of problem that a refusal names.

    Raises:
        WrongAnswer: it is no problem document.
    """
    try:
        return str(json.loads(body)["type"]).rpartition(":")[2]
    except (ValueError, TypeError, KeyError) as error:
        raise WrongAnswer(f"expected a problem document, but got {body[:40]!r}") from error


def _check_classes(answer: dict[str, Any], upload: Upload) -> None:
    pixels, present = upload.width * upload.height, sum(entry["pixels"] for entry in answer["classes"])
    if present != pixels:
        raise WrongAnswer(f"expected the classes to share out {pixels} pixels, but got {present}")


def _check_labels(answer: dict[str, Any]) -> None:
    probabilities = [label["probability"] for label in answer["labels"]]
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
