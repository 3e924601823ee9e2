"""The same archive on a GPU: batches there, masks as on the CPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from handlers.archive import package
from handlers.local_service import local_service
from tests.system.conftest import Demo
from tests.system.test_parity import CLIENTS, ask, offline_masks

pytestmark = [
    pytest.mark.system,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_masks_agree_with_the_cpu(demo: Demo, tmp_path: Path) -> None:
    artifact = demo.folder / "artifacts/demo-segmentation"
    package(artifact, name="parity", store=tmp_path)
    images = sorted((demo.folder / "data/segmentation/images/val").iterdir())
    bodies = [path.read_bytes() for path in images]
    with local_service(tmp_path) as service:
        with ThreadPoolExecutor(CLIENTS) as pool:
            masks = list(pool.map(lambda body: ask(service, body, "image/png"), bodies))
        text = httpx.get(f"{service.ops}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert [sample.labels["device"] for sample in samples if sample.name == "segserve_model_info"] == ["cuda:0"]
    sums = {sample.name: sample.value for sample in samples if sample.name.startswith("segserve_batch_images_")}
    assert sums["segserve_batch_images_sum"] > sums["segserve_batch_images_count"]
    agreement = [(a == b).mean() for a, b in zip(offline_masks(artifact, bodies), masks, strict=True)]
    assert np.mean(agreement) >= 0.995
