"""Label Studio: tasks with predictions (https://labelstud.io/guide/predictions), one brush region a class."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlparse

import numpy as np

from segserve.answers import Region, read_label_studio
from segserve.regions import find_classes
from segserve.rle import label_studio_rle
from segserve.spec import ClassSpec
from training.flywheel.task import Task

FROM, TO, KIND = "tag", "image", "brushlabels"
"""The names in Label Studio's template for semantic segmentation with masks."""


def write(tasks: Sequence[Task], classes: Sequence[ClassSpec], model: str) -> bytes:
    """The file for "Import". Its images are named as files are served from local storage; `file` is their own name."""
    return json.dumps([_task(task, classes, model) for task in tasks], separators=(",", ":")).encode() + b"\n"


def _task(task: Task, classes: Sequence[ClassSpec], model: str) -> dict[str, Any]:
    height, width = task.size
    regions = () if task.mask_HW is None else find_classes(task.mask_HW, np.zeros_like(task.mask_HW))
    results = [
        {
            "id": f"region-{region.class_id}",
            "type": KIND,
            "from_name": FROM,
            "to_name": TO,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": list(label_studio_rle(region)), KIND: [classes[region.class_id].name]},
        }
        for region in regions
    ]
    predictions = [{"model_version": model, "score": task.score, "result": results}] if results else []
    return {
        "data": {TO: f"/data/local-files/?d=waiting/{quote(task.file)}", "file": task.file},
        "predictions": predictions,
    }


def labels_for(classes: Sequence[ClassSpec]) -> str:
    """The labelling interface that the tasks belong to."""
    labels = "".join(
        '<Label value="{}" background="#{:02x}{:02x}{:02x}"/>'.format(escape(entry.name), *entry.color)
        for entry in classes
    )
    return (
        f'<View><Image name="{TO}" value="${TO}" zoom="true"/>'
        f'<BrushLabels name="{FROM}" toName="{TO}">{labels}</BrushLabels></View>'
    )


def read(body: bytes) -> Iterator[tuple[str, Sequence[Region]]]:
    """File names and regions of an export as JSON: each task's last annotation that was not cancelled."""
    try:
        tasks = json.loads(body)
    except ValueError as error:
        raise ValueError(f"expected Label Studio's JSON, but it is broken: {error}; export it again") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise ValueError("expected Label Studio's list of tasks, but got something else: export as JSON")
    for task in tasks:
        done = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
        results = done[-1]["result"] if done else []
        strange = sorted({str(result.get("type")) for result in results} - {KIND})
        if strange:
            raise ValueError(
                f"expected regions of type {KIND}, but {_file(task)} has {', '.join(strange)}: draw them with the brush"
            )
        yield _file(task), read_label_studio(json.dumps([{"predictions": [{"result": results}]}]).encode())


def _file(task: dict[str, Any]) -> str:
    """The image's own name: as we wrote it, or the last part of its address."""
    data = task["data"]
    if "file" in data:
        return str(data["file"])
    address = urlparse(str(data.get(TO, "")))
    path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    return PurePosixPath(path).name
