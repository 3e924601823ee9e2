"""A network as an OpenVINO model, in float32 or quantised to int8 by NNCF, for `segserve.engines.openvino_engine`.

Post-training quantisation with NNCF (Kozlov et al. 2020, https://arxiv.org/abs/2002.08679): ranges of the activations
are taken from training images as the predictor hands them to the network, and the biases corrected (Nagel et al. 2019,
https://arxiv.org/abs/1906.04721). Needs the packages `openvino` and, for int8, `nncf`; import this module only where
they are installed.

Dimensions: B batch, C channels, H, W.
"""

import copy
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from segserve.engines.openvino_engine import OpenVINOEngine
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import Network
from segserve.prediction import Query
from segserve.predictor import build_predictor
from segserve.spec import EngineName, ModelSpec
from training.data import read_for
from training.layouts import Dataset

CALIBRATION_IMAGES = 300
TRACED = (2, 3, 128, 160)
"""Larger than the least side of any network, so that what these do to smaller images is no part of the model."""
SIZES = ((1, 1, 1), (2, 33, 47), (3, 96, 64), (1, 225, 130))
"""Batch, height, width at which the model must compute what the network does."""
TOLERANCE = 1e-3
"""Of the largest logit."""


class Images(Sized, Iterable[NDArray[np.float32]], Protocol):
    """Arrays (1, 3, H, W) that can be gone through several times."""


class CalibrationImages:
    """What the network gets to see of training images: float32 arrays (1, 3, H, W), by the predictor's own path.

    Args:
        dataset: at most `CALIBRATION_IMAGES` of its `train` split are taken, drawn by the model's seed.
        spec: of the model. Where it sees large images in windows, one window of each is taken.
    """

    def __init__(self, dataset: Dataset, spec: ModelSpec) -> None:
        samples = dataset.split("train")
        order = np.random.default_rng(spec.provenance.seed).permutation(len(samples))[:CALIBRATION_IMAGES]
        self.files = [samples[index].image for index in order]
        self.spec = spec

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        recorder = _Recorder(self.spec)
        predictor = build_predictor(self.spec, recorder)
        draw = np.random.default_rng(self.spec.provenance.seed)
        for file in self.files:
            image_HWC = read_for(self.spec.preprocess, file).image_HWC
            predictor.predict([Query(image_HWC=self._window(image_HWC, draw))])
            yield recorder.images_BCHW.numpy()

    def _window(self, image_HWC: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
        if self.spec.preprocess.resize != "never":
            return image_HWC
        side = self.spec.preprocess.working_side
        top, left = (int(draw.integers(max(0, length - side) + 1)) for length in image_HWC.shape[:2])
        return image_HWC[top : top + side, left : left + side]


class _Recorder:
    """An engine that keeps what it was given and answers zeros."""

    name = "recorder"
    device = torch.device("cpu")

    def __init__(self, spec: ModelSpec) -> None:
        self.num_classes, self.is_dense = spec.num_classes, spec.task == "segmentation"
        self.images_BCHW = torch.empty(0)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        self.images_BCHW = images_BCHW
        size = images_BCHW.shape[-2:] if self.is_dense else ()
        return torch.zeros(len(images_BCHW), self.num_classes, *size)


def write_model(file: Path, network: Network, name: EngineName, images: Images) -> int:
    """Write the model for an engine: `file`, which ends in `.xml`, and a `.bin` beside it.

    Args:
        file: what to write.
        network: with its weights; it is left as it is.
        name: of the engine.
        images: for the ranges of int8; at least one.

    Returns:
        The least side that the engine must fill images up to.

    Raises:
        ValueError: the network does something else at other sizes once it is converted.
    """
    network = copy.deepcopy(network).eval()
    least_side = int(getattr(network, "least_side", 1))
    with _quiet():
        model = _converted(network)
        openvino.save_model(model, file, compress_to_fp16=False)
        _check_sizes(network, OpenVINOEngine(file, least_side=least_side, precision="float32"))
        if name == "openvino-int8":
            openvino.save_model(quantised(model, images), file, compress_to_fp16=False)
    return least_side


def _converted(network: Network) -> openvino.Model:
    with warnings.catch_warnings():
        # OpenVINO traces with torch.jit, which torch deprecates; `_check_sizes` finds what a tracer may get wrong.
        warnings.simplefilter("ignore")
        dynamic = openvino.PartialShape([-1, 3, -1, -1])
        return openvino.convert_model(network, example_input=torch.zeros(TRACED), input=[dynamic])


def _check_sizes(network: Network, engine: OpenVINOEngine) -> None:
    torch_engine = TorchEngine(network, precision="float32")
    draw = torch.Generator().manual_seed(0)
    for batch, height, width in SIZES:
        images_BCHW = torch.randn(batch, 3, height, width, generator=draw)
        expected, found = torch_engine(images_BCHW), engine(images_BCHW)
        if expected.shape != found.shape or (expected - found).abs().max() > TOLERANCE * expected.abs().max():
            raise ValueError(
                "expected the network to compute the same at every image size as an OpenVINO model, but it does not "
                f"at {batch}x3x{height}x{width}: export it with --engine torch"
            )


def quantised(model: openvino.Model, images: Images) -> openvino.Model:
    """The model with int8 weights and activations, whose ranges are those that the images bring about."""
    import nncf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the libraries it uses
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
        )


@contextmanager
def _quiet() -> Iterator[Any]:
    """Progress goes to stderr; and neither package reports to its maker, as both would unless they run in CI."""
    marks = {"CI": "true", "NNCF_CI": "1"}
    before = {name: os.environ.get(name) for name in marks}
    os.environ.update(marks)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
