"""What an engine answers differently from torch in float32, measured on held-out images; and when that is too much."""

import statistics
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from segserve.engines.openvino_engine import core
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import Network
from segserve.prediction import SegmentationPrediction
from segserve.predictor import Engine, build_predictor
from segserve.spec import Certificate, EngineName, ModelSpec, Task
from training.evaluate import Outcome, outcomes
from training.layouts import Dataset
from training.metrics import HEADLINE, Confusion, merge, scores

SPLIT = "val"
MAX_LOSS = 0.005
"""Of mean IoU or accuracy, 0 to 1."""
MIN_AGREEMENT = 0.99


class EngineRefused(RuntimeError):
    """The engine loses too much. The text is one sentence with the figures."""


@dataclass
class Timed:
    """An engine, and how many images a second each of its calls came to."""

    engine: Engine
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.device = self.engine.name, self.engine.device

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        start = time.perf_counter()
        logits = self.engine(images_BCHW)
        self.rates.append(len(images_BCHW) / (time.perf_counter() - start))
        return logits


@dataclass
class Comparison:
    """What is added up of two engines' outcomes, image by image."""

    confusions: tuple[list[Confusion], list[Confusion]] = field(default_factory=lambda: ([], []))
    same: int = 0
    """Pixels, or labelled images, with the same class; out of `count`."""
    count: int = 0
    shift: float = 0.0
    """Largest difference of a probability."""

    def add(self, plain: Outcome, exported: Outcome) -> None:
        """Count one image; the outcomes have their probabilities."""
        for matrices, outcome in zip(self.confusions, (plain, exported), strict=True):
            matrices.append(outcome.confusion_KK)
        self.same += int((plain.predicted == exported.predicted).sum())
        self.count += plain.predicted.size
        difference = probabilities(plain) - probabilities(exported)
        self.shift = max(self.shift, float(np.abs(difference).max()))

    def scores(self, task: Task) -> tuple[float, float]:
        """Mean IoU or accuracy of both, 0 to 1."""
        plain, exported = (
            scores(merge(matrices, num_classes=len(matrices[0])), task=task)[HEADLINE[task]]
            for matrices in self.confusions
        )
        return plain, exported


def probabilities(outcome: Outcome) -> NDArray[np.float32]:
    """Those of all classes, (K, H, W) or (K,)."""
    if isinstance(outcome.prediction, SegmentationPrediction):
        assert outcome.prediction.probs_KHW is not None
        return outcome.prediction.probs_KHW.astype(np.float32)
    return outcome.prediction.probs_K


def certify(spec: ModelSpec, network: Network, engine: Engine, dataset: Dataset) -> Certificate:
    """Compare an engine with torch in float32 on the CPU, by the predictor's own path without test-time augmentation.

    Args:
        spec: of the model.
        network: with its weights.
        engine: built from them.
        dataset: whose `val` split is looked at.

    Raises:
        ValueError: the split is empty or cannot be read.
    """
    engines = Timed(TorchEngine(network, precision="float32")), Timed(engine)
    samples = dataset.split(SPLIT)
    both = (
        outcomes(build_predictor(spec, timed), samples, ignore_index=dataset.ignore_index, probabilities=True)
        for timed in engines
    )
    comparison = Comparison()
    for plain, exported in tqdm(zip(*both, strict=True), total=len(samples), unit="image", disable=None):
        comparison.add(plain, exported)
    plain_score, exported_score = comparison.scores(spec.task)
    plain_rate, exported_rate = (round(statistics.median(timed.rates), 2) for timed in engines)
    return Certificate(
        split=SPLIT,
        num_images=len(samples),
        score=HEADLINE[spec.task],
        torch_score=plain_score,
        engine_score=exported_score,
        agreement=comparison.same / comparison.count,
        max_probability_shift=comparison.shift,
        torch_images_per_second=plain_rate,
        engine_images_per_second=exported_rate,
        machine=machine(),
        date=date.today().isoformat(),
    )


def refuse_losses(certificate: Certificate, *, name: EngineName) -> None:
    """Raise `EngineRefused` for an engine that loses more than `MAX_LOSS` or agrees less than `MIN_AGREEMENT`."""
    loss = certificate.torch_score - certificate.engine_score
    if loss <= MAX_LOSS and certificate.agreement >= MIN_AGREEMENT:
        return
    other = "openvino, in float32, or " if name == "openvino-int8" else ""
    raise EngineRefused(
        f"expected {name} to lose at most {100 * MAX_LOSS:.1f} points of {certificate.score} and to agree with torch "
        f"on {MIN_AGREEMENT:.0%}, but on {certificate.num_images} images of {certificate.split} it loses "
        f"{100 * loss:.2f} points ({certificate.torch_score:.4f} to {certificate.engine_score:.4f}) and agrees on "
        f"{certificate.agreement:.2%}: take --engine {other}torch"
    )


def machine() -> str:
    """Processor, threads and versions."""
    processor = core().get_property("CPU", "FULL_DEVICE_NAME")
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "openvino"))
    return f"{processor}, {torch.get_num_threads()} thread(s), {packages}"
