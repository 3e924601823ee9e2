"""What is served equals what the offline predictor gives, on real images.

SEGSERVE_ARTIFACT names another artifact than the demo's, SEGSERVE_PARITY_EVERY=1 takes every image of wbc instead of
every eighth.
"""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from handlers.archive import package
from handlers.local_service import LocalService, local_service
from segserve.artifact import load_artifact
from segserve.codec import decode_image
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import SegmentationPredictor
from tests.system.conftest import Demo

pytestmark = pytest.mark.system

CLIENTS = 16
EVERY = int(os.environ.get("SEGSERVE_PARITY_EVERY", "8"))


@pytest.fixture(scope="module")
def artifact(demo: Demo) -> Path:
    return Path(os.environ.get("SEGSERVE_ARTIFACT", demo.folder / "artifacts/demo-segmentation"))


@pytest.fixture(scope="module")
def parity_service(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    store = tmp_path_factory.mktemp("store")
    package(artifact, name="parity", store=store)
    with local_service(store) as running:
        yield running


def ask(service: LocalService, body: bytes, accept: str) -> np.ndarray:
    headers = {"Content-Type": "application/octet-stream", "Accept": accept}
    answer = httpx.post(service.predictions("parity"), content=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    if accept == "image/png":
        return np.asarray(Image.open(io.BytesIO(answer.content)))
    document = answer.json()
    mask_HW = np.full((document["image"]["height"], document["image"]["width"]), 255, dtype=np.uint8)
    for entry in document["classes"]:
        mask_HW[coco.decode(entry["mask"]).astype(bool)] = entry["id"]
    return mask_HW


def offline_masks(artifact: Path, bodies: Sequence[bytes]) -> list[np.ndarray]:
    loaded = load_artifact(artifact)
    predictor = SegmentationPredictor(loaded.spec, TorchEngine(loaded.network))
    return [predictor.predict([Query(image_HWC=decode_image(body))])[0].mask_HW for body in bodies]


@pytest.mark.parametrize(("name", "pattern", "every"), [("wbc", "images/*/*", EVERY), ("camvid", "images/val/*", 5)])
def test_served_masks_equal_offline_masks(
    artifact: Path, parity_service: LocalService, shared_data: Path, name: str, pattern: str, every: int
) -> None:
    bodies = [path.read_bytes() for path in sorted((shared_data / name).glob(pattern))[::every]]
    assert len(bodies) >= 20
    expected = offline_masks(artifact, bodies)
    for accept in ("image/png", "application/json"):
        one_by_one = [ask(parity_service, body, accept) for body in bodies]
        with ThreadPoolExecutor(CLIENTS) as pool:
            together = list(pool.map(lambda body, accept=accept: ask(parity_service, body, accept), bodies))
        for how, masks in (("one by one", one_by_one), (f"{CLIENTS} at a time", together)):
            agreement = [float((a == b).mean()) for a, b in zip(expected, masks, strict=True)]
            print(f"{name} {accept} {how}: least agreement {min(agreement):.6f}, mean {np.mean(agreement):.6f}")
            assert min(agreement) >= 0.999
