"""Another version takes over in the real service, behind the real gateway, while clients go on asking.

The models are toys that load at once; with `-m chaos` all is done once more with segserve's own.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from handlers import landlock
from handlers.archive import package
from segserve.artifact import Artifact, save_artifact
from segserve.networks import build_network
from tests.conftest import random_image, tiny_spec
from tests.system.toy_service import ROOT, Service, nginx_or_skip, serving, short_folder, until

pytestmark = pytest.mark.system

PAGE = (ROOT / "docs/deploy.md").read_text()
DEPLOY, ROLLBACK, DEPLOY_ON_IMAGES = re.findall(r"^\.venv/bin/segserve (.+)$", PAGE, re.M)
LIMITS = ("--requests", "8", "--max-slowdown", "20")
"""Of a busy machine's clock nothing can be concluded."""
HANDLER = '''
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from segserve.api import Request, Response
from segserve.sample import keep


class Toy:
    """Bright pixels are road; version 3.0 says the opposite, and 4.0 does not load."""

    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]
        if self.version == "4.0":
            raise ValueError("the example did not reproduce")
        try:
            open(os.environ["STORE"] + "/cells.mar", "ab").close()
            self.store = "open"
        except PermissionError:
            self.store = "closed"

    def handle(self, rows, context):
        return [self._answer(index, bytes(row["body"]), context) for index, row in enumerate(rows)]

    def _answer(self, index, image, context):
        if image == b"x":
            return b"the drain's marker"
        bright_HW = np.asarray(Image.open(io.BytesIO(image)).convert("L")) >= 128
        buffer = io.BytesIO()
        Image.fromarray((bright_HW != (self.version == "3.0")).astype(np.uint8)).save(buffer, "PNG")
        headers = {"X-Segserve-Model": "cells", "X-Segserve-Version": self.version, "Server-Timing": "forward;dur=2.5",
                   "Store": self.store}
        for name, value in headers.items():
            context.set_response_header(index, name, value)
        answer = Response(status=200, content_type="image/png", headers=headers, body=buffer.getvalue())
        keep(Path(os.environ["SEGSERVE_SAMPLE_FOLDER"]), [Request(headers={}, fields={"body": image})], [answer])
        return answer.body
'''


def write_toy(folder: Path, version: str) -> Path:
    """An archive with a spec, as `segserve package` makes it, and a handler that loads at once."""
    folder.mkdir()
    model = {
        "modelName": "cells",
        "modelVersion": version,
        "handler": "segmentation_handler.py",
        "configFile": "model-config.yaml",
    }
    manifest = {"createdOn": "01/01/2026 00:00:00", "archiverVersion": "0.12.0", "runtime": "python", "model": model}
    with zipfile.ZipFile(folder / "cells.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("segmentation_handler.py", HANDLER)
        batch = 4 if version == "1.0" else 8
        archive.writestr("model-config.yaml", f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {batch}\nmaxBatchDelay: 5\n")
        archive.writestr("artifact/spec.json", tiny_spec("segmentation").model_dump_json())
    return folder / "cells.mar"


def write_real(folder: Path, version: str, artifact: Artifact) -> Path:
    """With segserve's own handler; the weights of 3.0 are others, those of 4.0 are broken."""
    if version == "3.0":
        torch.manual_seed(7)
        network = build_network(artifact.spec.network, task="segmentation", num_classes=artifact.spec.num_classes)
        artifact = save_artifact(folder / "artifact", artifact.spec, network, example_HWC=random_image(48, 64))
    archive = package(artifact.path, name="cells", version=version, store=folder)
    if version == "4.0":
        with zipfile.ZipFile(archive) as whole:
            entries = {name: whole.read(name) for name in whole.namelist()}
        entries["artifact/weights.safetensors"] = b"broken"
        with zipfile.ZipFile(archive, "w") as broken:
            for name, content in entries.items():
                broken.writestr(name, content)
    return archive


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the service is, and archives that could come next."""

    folder: Path
    temporary: Path
    kind: str
    """Of the models: toy or real."""

    @property
    def store(self) -> Path:
        return self.folder / "1.0"

    def archive(self, version: str) -> Path:
        return self.folder / version / "cells.mar"

    def serve(self) -> AbstractContextManager[Service]:
        environment = {"OMP_NUM_THREADS": "1", "STORE": str(self.store)}
        return serving(self.store, temporary=self.temporary, environment=environment, gateway={})

    def run(self, command: str, *more: str, version: str = "") -> subprocess.CompletedProcess[str]:
        """A command of the page, with the names of this place for the page's."""
        names = {
            "new/cells.mar": self.archive(version),
            "model_store": self.store,
            "some/images": self.folder / "images",
        }
        words = [str(names.get(word, word)) for word in command.split()]
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words, *more],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        print(done.stdout + done.stderr)
        return done


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=pytest.mark.chaos)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, artifact: Artifact
) -> Iterator[Place]:
    nginx_or_skip()
    folder = tmp_path_factory.mktemp("deployment")
    for version in ("1.0", "2.0", "3.0", "4.0"):
        if request.param == "toy":
            write_toy(folder / version, version)
        else:
            write_real(folder / version, version, artifact)
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(png(seed=number))
    with short_folder() as temporary:
        yield Place(folder=folder, temporary=temporary, kind=request.param)


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    with place.serve() as running:
        running.wait_ready()
        until(lambda: ask(running).status_code == 200, 30)
        yield running


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(40, 60, seed)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(service: Service) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/segment", content=png(), headers={"Content-Type": "image/png"}, timeout=60)


def version(service: Service) -> str:
    answer = ask(service)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["X-Segserve-Version"])


def loaded(service: Service) -> set[str]:
    """The versions that TorchServe has, as /ready says, which also says that the service is ready."""
    answer = httpx.get(f"{service.ops}/ready")
    assert answer.status_code == 200, answer.text
    return set(answer.json()["models"]["cells"])


def listed(service: Service) -> str:
    return str(httpx.get(f"{service.url}/v1/models").json()["models"][0]["version"])


@dataclass
class Clients:
    """Four that ask one request after the other, each for itself."""

    service: Service
    answers: list[tuple[int | str, str]] = field(default_factory=list)
    """Status, or what went wrong, and version."""
    readiness: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Clients":
        targets = [*[self._ask] * 4, self._probe]
        self.threads = [threading.Thread(target=target) for target in targets]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stop.wait(0.05):  # four of them stay below the rate that one address may have
                try:
                    answer = client.post(
                        f"{self.service.url}/v1/segment", content=png(), headers={"Content-Type": "image/png"}
                    )
                    self.answers.append((answer.status_code, answer.headers.get("X-Segserve-Version", "")))
                except httpx.TransportError as error:
                    self.answers.append((type(error).__name__, ""))

    def _probe(self) -> None:
        while not self.stop.wait(0.1):
            self.readiness.append(httpx.get(f"{self.service.ops}/ready").status_code)


def test_update_and_rollback_under_load_lose_nothing(place: Place, service: Service) -> None:
    with Clients(service) as clients:
        deployed = place.run(DEPLOY, *LIMITS, version="2.0")
        assert deployed.returncode == 0
        assert version(service) == "2.0"
        until(lambda: listed(service) == "2.0", 10)
        assert place.run(ROLLBACK).returncode == 0
        assert version(service) == "1.0"
        assert place.run(ROLLBACK).returncode == 0
        assert version(service) == "2.0"
        if place.kind == "toy":
            until(lambda: "the gateway has taken its tokens, certificate and places anew" in service.text(), 20)
    assert re.search(r"^cells 2\.0 is served: on 8 images agreement 1\.000 \(at least 0\.8\), ", deployed.stdout, re.M)
    assert loaded(service) == {"1.0", "2.0"}
    counts = Counter(clients.answers)
    print(f"\nanswers: {dict(counts)}; /ready: {dict(Counter(clients.readiness))}")
    assert set(counts) == {(200, "1.0"), (200, "2.0")}
    assert set(clients.readiness) == {200}
    assert not list(place.temporary.glob("segserve-*/sample"))


def test_a_version_whose_masks_differ_is_refused_with_the_figures(place: Place, service: Service) -> None:
    with Clients(service) as clients:
        refused = place.run(DEPLOY_ON_IMAGES, version="3.0")
    assert refused.returncode == 1
    words = (
        r"segserve: cells 3\.0 was refused, 2\.0 is served as before: "
        r"on 3 images agreement 0\.\d{3} \(at least 0\.8\), "
        r"share of \w+ changed by 0\.\d{3} \(at most 0\.1\), \d+\.\d\d times the time \(at most 3\)\n"
    )
    assert re.fullmatch(words, refused.stderr)
    assert set(clients.answers) == {(200, "2.0")}
    until(lambda: loaded(service) == {"2.0"}, 10)


def test_a_version_that_does_not_load_is_refused(place: Place, service: Service) -> None:
    refused = place.run(DEPLOY, version="4.0")
    assert refused.returncode == 1
    assert "segserve: expected cells 4.0 to load, but its worker ended: the service's log says why" in refused.stderr
    until(lambda: loaded(service) == {"2.0"}, 10)
    assert version(service) == "2.0"


@pytest.mark.parametrize(
    "url", ["cells.mar", "next.mar", "{folder}", "file://{folder}/cells.mar", "http://127.0.0.1/x"]
)
def test_nobody_else_can_have_anything_loaded(place: Place, service: Service, url: str) -> None:
    """No archive of the store, no folder of the machine, nothing from the network."""
    unpacked = place.folder / "unpacked"
    zipfile.ZipFile(place.archive("3.0")).extractall(unpacked)
    management = f"http://127.0.0.1:{service.settings.management_port}/models"
    answer = httpx.post(management, params={"url": url.format(folder=unpacked), "model_name": "evil"}, timeout=60)
    assert answer.status_code == 404, answer.text
    assert {model["modelName"] for model in httpx.get(management).json()["models"]} == {"cells"}


def test_workers_cannot_write_to_the_store(place: Place, service: Service) -> None:
    if place.kind == "real":
        pytest.skip("segserve's own models do not try")
    if landlock.protect(Path("/tmp")) is None:
        pytest.skip("this system has no Landlock")
    assert ask(service).headers["Store"] == "closed"


def test_after_a_restart_the_deployed_version_answers_and_rollback_loads_the_other(
    place: Place, service: Service
) -> None:
    service.process.send_signal(signal.SIGTERM)
    assert service.end()[0] == 0
    with place.serve() as again:
        again.wait_ready()
        until(lambda: ask(again).status_code == 200, 30)
        assert (version(again), loaded(again)) == ("2.0", {"2.0"})
        assert place.run(ROLLBACK).returncode == 0
        assert version(again) == "1.0"
        until(lambda: loaded(again) == {"1.0", "2.0"}, 10)
        until(lambda: listed(again) == "1.0", 10)
