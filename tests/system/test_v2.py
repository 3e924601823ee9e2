"""The v2 protocol over HTTP, asked by NVIDIA's client and by hand."""

import io
import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from handlers.local_service import LocalService
from tests.system.conftest import ROOT, Demo

pytestmark = pytest.mark.system

SEGMENTATION, CLASSIFICATION = "demo-segmentation", "demo-classification"
PAGE = (ROOT / "docs" / "kserve.md").read_text()


@pytest.fixture(scope="module")
def image_HWC(demo: Demo) -> NDArray[np.uint8]:
    return np.asarray(Image.open(demo.folder / "input.png").convert("RGB"))


@pytest.fixture(scope="module")
def batch_BHWC(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Five different images."""
    return np.stack([np.roll(image_HWC, 16 * shift, axis=1) for shift in range(5)])


@pytest.fixture
def client(service: LocalService) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.inference.removeprefix("http://")) as client:
        yield client


def infer(
    client: triton.InferenceServerClient,
    model: str,
    images_BHWC: NDArray[np.uint8],
    *outputs: str,
    binary: bool = True,
    **parameters: object,
) -> triton.InferResult:
    tensor = triton.InferInput("image", list(images_BHWC.shape), "UINT8")
    tensor.set_data_from_numpy(images_BHWC, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs]
    return client.infer(model, [tensor], outputs=wanted or None, request_id="42", parameters=parameters or None)


def png(image_HWC: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def plain_mask(service: LocalService, image_HWC: NDArray[np.uint8], *, tta: str = "none") -> NDArray[np.uint8]:
    """What `/predictions` answers to the same pixels."""
    sent = {"Content-Type": "image/png", "X-Segserve-TTA": tta}
    answer = httpx.post(service.predictions(SEGMENTATION), content=png(image_HWC), headers=sent, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_masks_are_those_of_plain_requests(
    service: LocalService,
    client: triton.InferenceServerClient,
    batch_BHWC: NDArray[np.uint8],
    binary: bool,
    count: int,
) -> None:
    result = infer(client, SEGMENTATION, batch_BHWC[:count], "mask", "confidence", binary=binary)
    mask_BHW = result.as_numpy("mask")
    assert mask_BHW.shape == result.as_numpy("confidence").shape == batch_BHWC[:count].shape[:3]
    expected_BHW = np.stack([plain_mask(service, image_HWC) for image_HWC in batch_BHWC[:count]])
    assert (mask_BHW == expected_BHW).mean() >= 0.999
    document = result.get_response()
    assert (document["id"], document["model_name"], document["model_version"]) == ("42", SEGMENTATION, "1.0")


def test_probabilities_and_uncertainty(client: triton.InferenceServerClient, batch_BHWC: NDArray[np.uint8]) -> None:
    outputs = ("mask", "probabilities", "uncertainty", "mean_entropy")
    result = infer(client, SEGMENTATION, batch_BHWC, *outputs, tta="flips", precision="float16")
    probs_BKHW = result.as_numpy("probabilities")
    assert probs_BKHW.dtype == np.float16
    np.testing.assert_allclose(probs_BKHW.sum(axis=1, dtype=float), 1, atol=0.01)
    np.testing.assert_array_equal(probs_BKHW.argmax(axis=1), result.as_numpy("mask"))
    assert result.as_numpy("uncertainty").shape == batch_BHWC.shape[:3]
    assert result.as_numpy("mean_entropy").shape == (5,)


@pytest.mark.parametrize("binary", [True, False])
def test_labels_are_those_of_plain_requests(
    service: LocalService, client: triton.InferenceServerClient, batch_BHWC: NDArray[np.uint8], binary: bool
) -> None:
    result = infer(client, CLASSIFICATION, batch_BHWC, "probabilities", "label", binary=binary)
    names = result.get_response()["parameters"]["classes"].split(",")
    for image_HWC, probs_K, label in zip(
        batch_BHWC, result.as_numpy("probabilities"), result.as_numpy("label"), strict=True
    ):
        answer = httpx.post(service.predictions(CLASSIFICATION), content=png(image_HWC), timeout=60).json()
        expected = {entry["name"]: entry["probability"] for entry in answer["labels"]}
        assert dict(zip(names, probs_K.tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)
        assert (label.decode() if binary else label) == answer["labels"][0]["name"]


def test_a_request_by_hand(service: LocalService, image_HWC: NDArray[np.uint8]) -> None:
    """As the binary tensor extension describes it, with the media type that Triton's documents name."""
    tensor = {
        "name": "image",
        "shape": image_HWC.shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": image_HWC.nbytes},
    }
    outputs = [{"name": "mask", "parameters": {"binary_data": True}}, {"name": "mean_entropy"}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    sent = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    url = f"{service.inference}/v2/models/{SEGMENTATION}/infer"
    answer = httpx.post(url, content=head + image_HWC.tobytes(), headers=sent, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert "forward;dur=" in answer.headers["server-timing"]
    length = int(answer.headers["inference-header-content-length"])
    mask, entropy = json.loads(answer.content[:length])["outputs"]
    assert mask["parameters"] == {"binary_data_size": len(answer.content) - length}
    mask_HW = np.frombuffer(answer.content[length:], np.uint8).reshape(mask["shape"])[0]
    assert (mask_HW == plain_mask(service, image_HWC)).mean() >= 0.999
    assert (entropy["datatype"], entropy["shape"]) == ("FP32", [1])


@pytest.mark.parametrize("path", [f"predictions/{SEGMENTATION}/1.0", f"models/{SEGMENTATION}/invoke?tta=flips"])
def test_the_other_addresses_take_v2_bodies(service: LocalService, image_HWC: NDArray[np.uint8], path: str) -> None:
    tensor = {"name": "image", "shape": image_HWC.shape, "datatype": "UINT8", "data": image_HWC.tolist()}
    answer = httpx.post(f"{service.inference}/{path}", json={"inputs": [tensor]}, timeout=60)
    (mask,) = answer.json()["outputs"]
    expected_HW = plain_mask(service, image_HWC, tta="flips" if "flips" in path else "none")
    assert (np.reshape(mask["data"], mask["shape"])[0] == expected_HW).mean() >= 0.999


def test_batches_mix_v2_and_plain_requests(
    service: LocalService, client: triton.InferenceServerClient, batch_BHWC: NDArray[np.uint8]
) -> None:
    alone_BHW = np.stack([plain_mask(service, image_HWC) for image_HWC in batch_BHWC])
    url = f"{service.inference}/v2/models/{SEGMENTATION}/infer"

    def send(index: int) -> tuple[int, NDArray[np.uint8] | None]:
        if index % 3 == 0:
            return 200, plain_mask(service, batch_BHWC[index % 5])
        if index % 3 == 1:
            return httpx.post(url, content=b'{"inputs": []}', timeout=60).status_code, None
        with triton.InferenceServerClient(service.inference.removeprefix("http://")) as own:
            return 200, infer(own, SEGMENTATION, batch_BHWC).as_numpy("mask")

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(send, range(36)))
    assert {status for status, _ in together[1::3]} == {400}
    for index in range(0, 36, 3):
        mask_HW, mask_BHW = together[index][1], together[index + 2][1]
        assert (mask_HW == alone_BHW[index % 5]).mean() >= 0.999
        assert (mask_BHW == alone_BHW).mean() >= 0.999


@pytest.mark.parametrize(
    ("status", "words", "shape", "parameters"),
    [
        ("400", "expected the shape [images, height, width, 3]", (1, 3, 8, 8), {}),
        ("400", "expected 'tta' to be 'none'", (1, 8, 8, 3), {"tta": "twice"}),
        ("400", "expected parameters of v2 requests to be among tta", (1, 8, 8, 3), {"render": "overlay"}),
        ("413", "expected at most 64 images, but got 65: send several requests", (65, 1, 1, 3), {}),
    ],
)
def test_the_client_shows_what_is_wrong(
    client: triton.InferenceServerClient,
    status: str,
    words: str,
    shape: tuple[int, ...],
    parameters: dict[str, object],
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(client, SEGMENTATION, np.zeros(shape, np.uint8), **parameters)
    assert caught.value.status() == status
    assert caught.value.message().startswith(words)


def test_a_problem_is_told_in_both_forms(service: LocalService) -> None:
    url = f"{service.inference}/v2/models/{SEGMENTATION}/infer"
    answer = httpx.post(url, content=b'{"inputs": []}', headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json()["error"] == answer.json()["detail"]
    plain = httpx.post(service.predictions(SEGMENTATION), content=b"?")
    assert "error" not in plain.json()


def test_torchserve_has_no_other_page_of_the_protocol(client: triton.InferenceServerClient) -> None:
    assert not client.is_server_ready()
    assert not client.is_model_ready(SEGMENTATION)
    with pytest.raises(InferenceServerException, match="ResourceNotFoundException"):
        client.get_model_metadata(SEGMENTATION)


def block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(code)


def test_curl_of_the_page(service: LocalService) -> None:
    command = block("sh").replace("http://127.0.0.1:8080", service.inference)
    done = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=60)
    document = json.loads(done.stdout)
    assert {output["name"]: output["shape"] for output in document["outputs"]} == {"mask": [1, 2, 2]}


def test_python_of_the_page(
    service: LocalService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_HWC: NDArray[np.uint8]
) -> None:
    example = tmp_path / "example.py"
    example.write_text(block("python").replace("127.0.0.1:8080", service.inference.removeprefix("http://")))
    monkeypatch.chdir(ROOT)
    found = runpy.run_path(str(example))
    assert (found["masks_BHW"][0] == plain_mask(service, image_HWC, tta="flips")).mean() >= 0.999
    assert found["probs_BKHW"].shape[0] == 2
