"""SIGTERM under load: nothing that was sent before it is lost."""

import io
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from handlers.local_service import LocalService, local_service
from tests.system.conftest import Demo

pytestmark = pytest.mark.system

CLIENTS = 16


class Client(threading.Thread):
    """Sends one request after another until it is refused; remembers when each was sent and what came back."""

    def __init__(self, service: LocalService, body: bytes) -> None:
        super().__init__()
        self.address = service.predictions("demo-segmentation")
        self.body = body
        self.outcomes: list[tuple[float, int, bytes, bool]] = []

    def run(self) -> None:
        with httpx.Client(timeout=60, headers={"Content-Type": "image/png"}) as client:
            while not self.outcomes or self.outcomes[-1][1] == 200:
                sent = time.monotonic()
                try:
                    answer = client.post(self.address, content=self.body)
                except httpx.TransportError:
                    self.outcomes.append((sent, 0, b"", False))
                else:
                    retry = "retry-after" in answer.headers
                    self.outcomes.append((sent, answer.status_code, answer.content, retry))


def test_sigterm_under_load_loses_nothing(demo: Demo, tmp_path: Path) -> None:
    body = (demo.folder / "input.png").read_bytes()
    with local_service(demo.folder / "model_store") as service:
        clients = [Client(service, body) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(5)
        signalled = time.monotonic()
        assert service.stop() == 0
        for client in clients:
            client.join(timeout=60)

    outcomes = [outcome for client in clients for outcome in client.outcomes]
    before = [outcome for outcome in outcomes if outcome[0] < signalled]
    after = [outcome for outcome in outcomes if outcome[0] >= signalled]
    print(f"{len(before)} sent before the signal, {len(after)} after it")
    assert len(before) > CLIENTS
    for _, status, content, _ in before:
        assert status == 200
        assert np.asarray(Image.open(io.BytesIO(content))).shape == (128, 128)
    assert all(status in (0, 200) or (status == 503 and retry) for _, status, _, retry in after)
