"""What ends a worker from inside, and a long queue, at the real TorchServe behind the real nginx.

Two things are prepared. The environment's Pillow has a broken GIF decoder, which aborts the process. The archive's
handler loses its GPU when a request says so: from then on it computes on one that this machine does not have.
"""

import io
import os
import signal
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from handlers.archive import package
from segserve.artifact import Artifact
from tests.conftest import random_image
from tests.system.test_gateway import assert_problem
from tests.system.toy_service import Service, is_gone, nginx_or_skip, serving, short_folder, until

pytestmark = pytest.mark.system

BROWNOUT_SECONDS = 0.4
OLD = "0.5000-0123456789abcdef.png"
BROKEN_GIF = """
import os
from PIL import Image
Image.register_decoder("gif", lambda *_: os.abort())
"""
LOSING_HANDLER = """
import torch
from handlers.adapter import Adapter

class SegmentationHandler(Adapter):
    task = "segmentation"

    def handle(self, rows, context):
        if any("X-Lose-GPU" in context.get_all_request_header(index) for index in range(len(rows))):
            self.service.predictor.engine.device = torch.device("cuda", 99)
        return super().handle(rows, context)
"""
TWO_WORKERS = (
    "minWorkers: 2\nmaxWorkers: 2\nbatchSize: 8\nmaxBatchDelay: 100\nresponseTimeout: 60\nstartupTimeout: 120\n"
)


def python_with_a_broken_decoder(folder: Path) -> Path:
    """An environment of this one's packages, and one more."""
    venv.create(folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "broken_gif.py").write_text(BROKEN_GIF)
    (packages / "a.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (packages / "b.pth").write_text("import broken_gif\n")
    return folder / "bin" / "python"


def write_archive(artifact: Artifact, store: Path, *, workshop: Path) -> None:
    """As packaged, but for the handler and the number of workers."""
    replaced = {"segmentation_handler.py": LOSING_HANDLER, "model-config.yaml": TWO_WORKERS}
    store.mkdir()
    packaged = package(artifact.path, name="cells", store=workshop)
    with zipfile.ZipFile(packaged) as before, zipfile.ZipFile(store / packaged.name, "w") as after:
        for entry in before.namelist():
            after.writestr(entry, replaced.get(entry) or before.read(entry))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> Iterator[Service]:
    nginx_or_skip()
    folder = tmp_path_factory.mktemp("bad-day")
    write_archive(artifact, folder / "store", workshop=folder / "workshop")
    python = python_with_a_broken_decoder(folder / "python")
    old = folder / "doubtful/cells/images" / OLD
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (0, 0))
    with (
        short_folder() as temporary,
        serving(
            folder / "store",
            temporary=temporary,
            environment={"OMP_NUM_THREADS": "1"},
            gateway={"brownout_ms": int(BROWNOUT_SECONDS * 1000)},
            doubtful={"folder": folder / "doubtful"},
            within=["sh", "-c", 'shift; exec "$0" "$@"', str(python)],
        ) as s,
    ):
        s.wait_ready()
        until(lambda: ask(s, picture("PNG")).status_code == 200, 30, s.text)
        yield s


def picture(form: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(40, 60, seed=seed)).save(buffer, form)
    return buffer.getvalue()


def ask(service: Service, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{service.url}/v1/segment{query}", content=body, headers=named, timeout=150)


def metric(service: Service, line: str) -> float:
    """Its value over all workers, dead ones too; 0 if there is none."""
    lines = httpx.get(f"{service.ops}/metrics").text.splitlines()
    return sum(float(found.split()[-1]) for found in lines if found.startswith(line))


def workers(service: Service) -> set[int]:
    return set(service.torchserve()[1:])


def test_a_long_queue_costs_tta_and_the_answer_says_so(service: Service) -> None:
    query = "?tta=d4&format=json"
    before = ask(service, picture("PNG"), query)
    assert (before.json()["tta"]["views"], "x-segserve-degraded" in before.headers) == (8, False)
    for pid in workers(service):
        os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, service, picture("PNG"), wish) for wish in (query, "")]
            time.sleep(BROWNOUT_SECONDS + 0.3)
            for pid in workers(service):
                os.kill(pid, signal.SIGCONT)
            late, plain = (one.result() for one in asked)
    finally:
        for pid in workers(service):
            os.kill(pid, signal.SIGCONT)
    assert late.headers["x-segserve-degraded"] == "tta"
    assert late.json()["tta"] == {"plan": "none", "views": 1, "aggregate": "mean"}
    assert (plain.status_code, "x-segserve-degraded" in plain.headers) == (200, False)
    assert metric(service, 'segserve_degraded_total{model="cells",what="tta"}') == 1


def test_an_image_that_ended_two_workers_is_refused(service: Service) -> None:
    """It comes with the same neighbours each time, as clients do that send again what got no answer."""
    poison, neighbours = picture("GIF"), [picture("PNG", seed) for seed in range(3)]

    def together() -> list[httpx.Response]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda body: ask(service, body), [poison, *neighbours]))

    began = workers(service)
    for crash in range(2):
        for answer in together():
            assert answer.status_code in (200, 503), answer.text
            assert answer.status_code == 200 or answer.headers["retry-after"]
        until(lambda: sum(map(is_gone, began)) > crash, 10)  # noqa: B023
    crashed = time.monotonic()
    until(lambda: [answer.status_code for answer in together()] == [422, 200, 200, 200], 150, service.text, pause=0.5)
    print(f"\nrefused, {time.monotonic() - crashed:.1f} s after the second crash")
    service.wait_ready()  # those waited in TorchServe's queue; nginx admits new ones when the next look finds a worker
    assert_problem(ask(service, poison), 422, "quarantined")
    assert ask(service, picture("PNG", 9)).status_code == 200
    assert metric(service, "segserve_decoder_crashes_total") == 2
    assert metric(service, 'segserve_rejected_total{model="cells",reason="quarantined"}') >= 2
    assert '"message": "a worker ended while it decoded images"' in service.text()
    assert "Fatal Python error: Aborted" in service.text()


def test_a_lost_gpu_ends_its_worker_after_an_answer(service: Service) -> None:
    until(lambda: len(workers(service)) == 2, 60)
    until(lambda: ask(service, picture("PNG")).status_code == 200, 150, pause=0.2)
    began = workers(service)
    answer = ask(service, picture("PNG"), X_Lose_GPU="1")
    assert_problem(answer, 503, "not-ready")
    assert "is being replaced: send the request again" in answer.json()["detail"]
    until(lambda: any(map(is_gone, began)), 10)
    assert '"message": "the device is lost"' in service.text()
    until(lambda: ask(service, picture("PNG")).status_code == 200, 150, pause=0.2)


def test_what_the_model_was_not_sure_of_is_kept_and_what_is_old_deleted(service: Service) -> None:
    assert service.settings.doubtful is not None
    images = service.settings.doubtful.folder / "cells/images"
    assert not (images / OLD).exists()
    sent_HWC = random_image(40, 60, seed=77)
    assert ask(service, picture("PNG", seed=77)).status_code == 200
    until(lambda: any(np.array_equal(Image.open(path), sent_HWC) for path in images.glob("*.png")), 10)
