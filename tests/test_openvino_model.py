import json
import os
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segserve.artifact import Artifact
from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import Network
from segserve.predictor import Engine
from segserve.spec import ModelSpec
from tests.conftest import random_image
from training import openvino_model
from training.layouts import Dataset, open_dataset
from training.openvino_model import CalibrationImages, write_model


@pytest.fixture
def dataset(tmp_path: Path, spec: ModelSpec) -> Dataset:
    """Three training images, 48 x 80; masks of zeros."""
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [entry.model_dump() for entry in spec.classes]}))
    for kind, image in (("images", random_image(80, 48)), ("masks", np.zeros((80, 48), dtype=np.uint8))):
        folder = tmp_path / kind / "train"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.roll(image, index, axis=0)).save(folder / f"{index}.png")
    return open_dataset(tmp_path, "segmentation")


def test_calibration_sees_what_the_network_sees(dataset: Dataset, spec: ModelSpec) -> None:
    """80 x 48 at working side 160 is 160 x 96, both multiples of 32; every value is checked by hand at no resize."""
    spec = spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"resize": "larger"})})
    spec = spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"working_side": 80})})
    images = CalibrationImages(dataset, spec)
    found = list(images)
    assert len(images) == len(found) == 3
    assert {image_1CHW.shape for image_1CHW in found} == {(1, 3, 96, 64)}
    mean, std = np.array(spec.preprocess.mean), np.array(spec.preprocess.std)
    for file, image_1CHW in zip(images.files, found, strict=True):
        stored_HWC = np.asarray(Image.open(file)) / 255
        expected_HWC = np.pad((stored_HWC - mean) / std, ((0, 16), (0, 16), (0, 0)), mode="edge")
        np.testing.assert_allclose(image_1CHW[0].transpose(1, 2, 0), expected_HWC, atol=1e-5)


def test_calibration_can_be_gone_through_again_and_is_drawn_by_the_seed(
    dataset: Dataset, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_model, "CALIBRATION_IMAGES", 2)
    images = CalibrationImages(dataset, spec)
    np.testing.assert_array_equal(list(images), list(images))
    drawn = {
        tuple(CalibrationImages(dataset, spec.model_copy(update={"provenance": provenance})).files)
        for provenance in (spec.provenance.model_copy(update={"seed": seed}) for seed in range(20))
    }
    assert {len(files) for files in drawn} == {2}
    assert len(drawn) > 2


def test_where_images_are_seen_in_windows_calibration_sees_one_of_each(dataset: Dataset, spec: ModelSpec) -> None:
    preprocess = spec.preprocess.model_copy(update={"resize": "never", "working_side": 32})
    found = list(CalibrationImages(dataset, spec.model_copy(update={"preprocess": preprocess})))
    assert [image_1CHW.shape for image_1CHW in found] == [(1, 3, 32, 32)] * 3
    assert not np.array_equal(found[0], found[1])


def test_int8_is_near_float32_and_a_quarter_of_its_size(
    labels_artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, file = labels_artifact.network, tmp_path / "model.xml"
    images_BCHW = torch.randn(4, 3, 64, 64)
    environment, state = dict(os.environ), [tensor.clone() for tensor in network.state_dict().values()]
    assert write_model(file, network, "openvino-int8", [image_CHW[None].numpy() for image_CHW in images_BCHW]) == 1
    assert dict(os.environ) == environment
    assert capsys.readouterr().out == ""
    assert all(map(torch.equal, network.state_dict().values(), state))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters < (tmp_path / "model.bin").stat().st_size < 1.2 * num_parameters
    expected_BK = TorchEngine(network, precision="float32")(images_BCHW)
    found_BK = OpenVINOEngine(file, precision="float32")(images_BCHW)
    error = float((found_BK - expected_BK).pow(2).mean().sqrt() / expected_BK.pow(2).mean().sqrt())
    assert 1e-4 < error < 0.2
    large_BCHW = torch.randn(4, 3, 128, 128)
    seconds = [
        min(_processor_seconds(engine, large_BCHW) for _ in range(5))
        for engine in (TorchEngine(network, precision="float32"), OpenVINOEngine(file, precision="float32"))
    ]
    assert seconds[1] < 1.5 * seconds[0]  # a quarter with VNNI; processor time, whatever else runs


def _processor_seconds(engine: Engine, images_BCHW: Tensor) -> float:
    begin = time.process_time()
    engine(images_BCHW)
    return time.process_time() - begin


class Branching(nn.Module):
    """Does something else with small images, as tracing does not see."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW if images_BCHW.shape[-1] > 100 else -images_BCHW


def test_a_network_whose_sizes_do_not_survive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"same at every image size .* but it does not at 1x3x1x1: export it with --e"):
        write_model(tmp_path / "model.xml", cast(Network, Branching()), "openvino", [])
