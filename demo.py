"""The whole path on a small built-in data set: `make demo`.

Makes the data, trains a ResNet50-UNet and a ResNet18 classifier, packages both, starts the service, sends images over
HTTP and writes the answers under runs/demo/. Each step is the command a person would type, printed as it runs.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from handlers.local_service import LocalService, local_service
from segserve.artifact import load_artifact
from segserve.codec import decode_image
from segserve.engines.torch_engine import TorchEngine
from segserve.png import overlay
from segserve.prediction import Query
from segserve.predictor import SegmentationPredictor
from training.synthetic import write_classification_set, write_segmentation_set

ROOT = Path("runs/demo")
DATA, ARTIFACTS, STORE = ROOT / "data", ROOT / "artifacts", ROOT / "model_store"
SEGMENTATION, CLASSIFICATION = "demo-segmentation", "demo-classification"
RECIPES = Path("training/recipes")


def main() -> int:
    """Run every step; returns the exit code."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    for name in (SEGMENTATION, CLASSIFICATION):
        shutil.rmtree(Path("runs") / name, ignore_errors=True)
    with _step("data", seconds):
        write_segmentation_set(DATA / "segmentation", seed=0, num_train=240, num_val=40)
        write_classification_set(DATA / "classification", seed=0, num_train=240, num_val=80)
    for name in (SEGMENTATION, CLASSIFICATION):
        with _step(f"train {name}", seconds):
            _segserve("train", str(RECIPES / f"{name}.toml"))
        with _step(f"package {name}", seconds):
            _segserve("export", f"runs/{name}", "--out", str(ARTIFACTS / name))
            _segserve("package", str(ARTIFACTS / name), "--store", str(STORE))
    with _step("serve and ask", seconds):
        addresses = _serve_and_ask()
    _draw_picture()
    report = {
        "scores": {name: _scores(name) for name in (SEGMENTATION, CLASSIFICATION)},
        "addresses": addresses,
        "seconds": {**seconds, "total": round(time.monotonic() - started, 1)},
    }
    (ROOT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    _summary(report)
    return 0


def _scores(name: str) -> dict[str, float]:
    scores: dict[str, float] = json.loads(Path(f"runs/{name}/scores.json").read_text())["scores"]
    return scores


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n=== {name}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def _segserve(*arguments: str) -> None:
    print(f"$ segserve {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "cli", *arguments], check=False).returncode
    if code:
        sys.exit(f"demo: expected `segserve {arguments[0]}` to succeed, but it ended with exit code {code}")


def _serve_and_ask() -> list[str]:
    print(f"$ segserve serve --store {STORE}", flush=True)
    with local_service(STORE) as service:
        return _ask(service)


def _ask(service: LocalService) -> list[str]:
    """Send the first held-out images, write the answers; returns the addresses that were tried."""
    image = min((DATA / "segmentation/images/val").iterdir()).read_bytes()
    one_object = min((DATA / "classification/val").rglob("*.png")).read_bytes()
    (ROOT / "input.png").write_bytes(image)
    segmentation, classification = service.predictions(SEGMENTATION), service.predictions(CLASSIFICATION)
    answers: list[tuple[str, str, bytes | None, Mapping[str, str]]] = [
        ("mask.png", segmentation, image, {}),
        ("overlay.png", segmentation, image, {"X-Segserve-Render": "overlay"}),
        ("mask.json", segmentation, image, {"Accept": "application/json", "X-Segserve-TTA": "flips"}),
        ("labels.json", classification, one_object, {}),
        ("metrics.txt", f"{service.ops}/metrics", None, {}),
    ]
    for file, address, body, headers in answers:
        request = urllib.request.Request(address, data=body, headers={"Content-Type": "image/png", **headers})
        with urllib.request.urlopen(request, timeout=60) as response:
            (ROOT / file).write_bytes(response.read())
    return [address for _, address, _, _ in answers]


def _draw_picture() -> None:
    """Six held-out images over their masks, as the README shows them."""
    artifact = load_artifact(ARTIFACTS / SEGMENTATION)
    paths = sorted((DATA / "segmentation/images/val").iterdir())[:6]
    images = [decode_image(path.read_bytes()) for path in paths]
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network))
    predictions = predictor.predict([Query(image_HWC=image_HWC) for image_HWC in images])
    palette_K3 = np.array([entry.color for entry in artifact.spec.classes], dtype=np.uint8)
    columns = [
        np.vstack([image_HWC, palette_K3[answer.mask_HW], overlay(image_HWC, answer.mask_HW, artifact.spec.classes)])
        for image_HWC, answer in zip(images, predictions, strict=True)
    ]
    Image.fromarray(np.hstack(columns)).save(ROOT / "picture.jpg", quality=90)


def _summary(report: Mapping[str, object]) -> None:
    answers = ", ".join(sorted(path.name for path in ROOT.glob("*.*")))
    print(f"\n=== done\n{json.dumps(report, indent=1)}\n{ROOT}/ holds {answers}")


if __name__ == "__main__":
    sys.exit(main())
