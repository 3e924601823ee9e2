import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.comparison import Figures, Limits, Replayer, confusion, figures
from segserve.api import Request
from segserve.artifact import Artifact, save_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.predictor import build_predictor
from segserve.sample import Views
from segserve.service import Service
from segserve.spec import ModelSpec
from tests.conftest import random_image


def test_confusion_counts_each_pair_of_classes() -> None:
    served = np.array([[0, 0, 1], [1, 2, 2]], dtype=np.uint8)
    new = np.array([[0, 1, 1], [1, 2, 0]], dtype=np.uint8)
    expected = np.array([[1, 1, 0], [0, 2, 0], [1, 0, 1]]) / 6
    np.testing.assert_allclose(confusion(served, new, num_classes=3), expected)


def test_figures_of_masks_by_hand(spec: ModelSpec) -> None:
    """Two images. Of the first, half is sky for both; the other half is road, for the new version tree."""
    served = [np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])]
    new = [np.array([0, 0, 2, 2]), np.array([0, 0, 0, 0])]
    counts = sum(confusion(a, b, num_classes=4) for a, b in zip(served, new, strict=True))
    found = figures(np.asarray(counts), [0.1, 0.2], [0.3, 0.3], spec=spec)
    assert found.images == 2
    assert found.agreement == pytest.approx((1 + 0 + 0) / 3)
    assert found.share_change == pytest.approx(0.25)
    assert found.changed_class == "road"
    assert found.slowdown == pytest.approx(0.3 / 0.15)


def test_agreement_is_the_mean_iou_over_random_masks(spec: ModelSpec) -> None:
    generator = np.random.default_rng(0)
    served, new = generator.integers(0, 3, (2, 5, 30, 20))
    counts = sum(confusion(a, b, num_classes=4) for a, b in zip(served, new, strict=True))
    found = figures(np.asarray(counts), [1.0] * 5, [1.0] * 5, spec=spec)
    ious = [((served == k) & (new == k)).sum() / ((served == k) | (new == k)).sum() for k in range(3)]
    shares = [abs((served == k).mean() - (new == k).mean()) for k in range(3)]
    assert found.agreement == pytest.approx(np.mean(ious))
    assert found.share_change == pytest.approx(max(shares))


def test_figures_of_labels_by_hand(labels_spec: ModelSpec) -> None:
    pairs = [(0, 0), (1, 1), (1, 2), (3, 3)]
    counts = sum(confusion(np.array([a]), np.array([b]), num_classes=4) for a, b in pairs)
    found = figures(np.asarray(counts), [1.0] * 4, [1.0] * 4, spec=labels_spec)
    assert (found.agreement, found.share_change) == (0.75, 0.25)


def test_without_images_there_is_nothing_to_conclude(spec: ModelSpec) -> None:
    with pytest.raises(RuntimeError, match="expected images to compare the versions on, but there is none"):
        figures(np.zeros((4, 4)), [], [], spec=spec)


FOUND = Figures(images=20, agreement=0.9, share_change=0.05, changed_class="road", slowdown=1.2)


@pytest.mark.parametrize(
    ("limits", "within"),
    [
        ({}, True),
        ({"min_agreement": 0.9, "max_share_change": 0.05, "max_slowdown": 1.2}, True),
        ({"min_agreement": 0.91}, False),
        ({"max_share_change": 0.04}, False),
        ({"max_slowdown": 1.1}, False),
    ],
)
def test_each_limit_counts(limits: dict[str, float], within: bool) -> None:
    assert FOUND.within(Limits(**limits)) is within


def test_the_sentence_has_figures_and_limits() -> None:
    assert FOUND.sentence(Limits()) == (
        "on 20 images agreement 0.900 (at least 0.8), share of road changed by 0.050 (at most 0.1), "
        "1.20 times the time (at most 1.5)"
    )


@contextmanager
def answering(services: dict[str, Service]) -> Iterator[int]:
    """What TorchServe does with a request for a version; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            version = self.path.rpartition("/")[2]
            assert self.path == f"/predictions/a%20model/{version}"
            [answer] = services[version].handle([Request(headers=headers, fields={"body": body})])
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def service_of(artifact: Artifact, version: str) -> Service:
    engine = TorchEngine(artifact.network, device=torch.device("cpu"))
    return Service(artifact, build_predictor(artifact.spec, engine), name="a model", version=version)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(40, 50, seed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("which", ["artifact", "labels_artifact"])
def test_a_version_agrees_with_itself_and_less_with_another(
    request: pytest.FixtureRequest, which: str, tmp_path: Path
) -> None:
    artifact: Artifact = request.getfixturevalue(which)
    spec = artifact.spec
    torch.manual_seed(9)
    network = build_network(spec.network, task=spec.task, num_classes=spec.num_classes).eval()
    other = save_artifact(tmp_path / "other", spec, network, example_HWC=random_image(40, 50, 0))
    services = {"1.0": service_of(artifact, "1.0"), "1.1": service_of(artifact, "1.1"), "2.0": service_of(other, "2.0")}
    images = [(png(seed), Views(tta="hflip")) for seed in range(3)]
    with answering(services) as port:
        replayer = Replayer("127.0.0.1", port, name="a model", spec=spec, timeout=30)
        same = replayer.compare(images, served="1.0", new="1.1")
        less = replayer.compare(images, served="1.0", new="2.0")
        with pytest.raises(RuntimeError, match=r"a model \d\.\d to answer every image, but it said 415 to one of "):
            replayer.compare([(b"no image", Views())], served="1.0", new="1.1")
    assert (same.images, same.agreement, same.share_change) == (3, 1.0, 0.0)
    assert less.agreement < 0.9
    assert less.share_change > 0
    assert same.slowdown > 0
