"""The one path from images to predictions: training-time evaluation, the offline command and the service all call it.

preprocess -> views -> engine, in batches of one padded size -> inverse views -> aggregate -> undo the geometry.

Dimensions: B batch, V views, C channels, K classes, H, W.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segserve import tta
from segserve.clock import StageClock
from segserve.preprocess import (
    STRIDE,
    Size,
    normalise,
    pad,
    padded_size,
    resize_image,
    to_tensor,
    upright_bands,
    working_size,
)
from segserve.spec import Aggregate, Measure, ModelSpec, Plan
from segserve.tta import PLANS

MAX_FORWARD_PIXELS = 8 * 512 * 512
"""Most pixels in one forward pass; a larger group runs in several."""


class Engine(Protocol):
    """A way to run the network: float32 images (B, 3, H, W) to float32 logits (B, K, H, W) or (B, K)."""

    name: str
    device: torch.device

    def __call__(self, images_BCHW: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Query:
    """One image and what is asked about it."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB, (H, W, 3)."""
    tta: Plan = "none"
    aggregate: Aggregate = "mean"
    maps: tuple[Measure, ...] = ()
    """Uncertainty maps wanted."""
    probabilities: Literal["uint8", "float16"] | None = None
    """Wanted, at this precision."""
    deadline: float | None = None
    """Seconds of `time.perf_counter`; no forward pass is begun after it."""


@dataclass(frozen=True, kw_only=True)
class SegmentationPrediction:
    """The answer in the image's own pixels."""

    mask_HW: NDArray[np.uint8]
    """Class indices."""
    confidence_HW: NDArray[np.uint8]
    """Probability of the chosen class, 255 = 1."""
    uncertainty_HW: Mapping[Measure, NDArray[np.uint8]]
    """The maps asked for, 255 = most uncertain, see `segserve.tta`."""
    probs_KHW: NDArray[np.uint8] | NDArray[np.float16] | None
    """Class probabilities, only if asked for: 255 = 1, or floats. Their first largest class is that of `mask_HW`."""
    mean_entropy: float
    """0 (certain) to 1, at the working size; so are the next two."""
    mutual_information: float
    """0 (the views say the same) to 1."""
    view_agreement: float
    """Share of the views' pixels that agree with the aggregate."""
    windows: int
    """In how many pieces the network saw the image."""


@dataclass(frozen=True, kw_only=True)
class ClassificationPrediction:
    """Probabilities of all classes (they sum to 1), and how sure they are."""

    probs_K: NDArray[np.float32]
    mean_entropy: float
    mutual_information: float
    view_agreement: float


Prediction = SegmentationPrediction | ClassificationPrediction


class SegmentationPredictor:
    """Images to masks. Images of different sizes, plans and aggregators go in one call; answers keep their order."""

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self.spec = spec
        self.engine = engine

    @torch.inference_mode()
    def predict(self, queries: Sequence[Query], *, clock: StageClock | None = None) -> list[SegmentationPrediction]:
        """One prediction a query, in order; `clock` receives the seconds of each stage."""
        clock = clock or StageClock()
        scores = _all_scores(queries, self.spec, self.engine, stride=STRIDE, clock=clock)
        return [self._finish(query, scores_VKHW, clock) for query, scores_VKHW in zip(queries, scores, strict=True)]

    def _finish(self, query: Query, scores_VKHW: Tensor, clock: StageClock) -> SegmentationPrediction:
        with clock("tta"):
            probs_KHW = tta.combine(scores_VKHW, query.aggregate)
            agreement = tta.view_agreement(scores_VKHW, probs_KHW)
        with clock("postprocess"):
            mask_HW, confidence_HW, uncertainty_HW = _upright_maps(probs_KHW, query)
            return SegmentationPrediction(
                mask_HW=mask_HW,
                confidence_HW=confidence_HW,
                uncertainty_HW=uncertainty_HW,
                mean_entropy=tta.entropy(probs_KHW).mean().item(),
                view_agreement=agreement,
            )


class ClassificationPredictor:
    """Images to class probabilities."""

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self.spec = spec
        self.engine = engine

    @torch.inference_mode()
    def predict(self, queries: Sequence[Query], *, clock: StageClock | None = None) -> list[ClassificationPrediction]:
        """One prediction a query, in order; `clock` receives the seconds of each stage."""
        clock = clock or StageClock()
        # Global average pooling would see padding, so that only images of one size share a batch.
        scores = _all_scores(queries, self.spec, self.engine, stride=1, clock=clock)
        with clock("tta"):
            return [_labels(query, scores_VK) for query, scores_VK in zip(queries, scores, strict=True)]


Predictor = SegmentationPredictor | ClassificationPredictor


def build_predictor(spec: ModelSpec, engine: Engine) -> Predictor:
    """The predictor for the spec's task."""
    if spec.task == "segmentation":
        return SegmentationPredictor(spec, engine)
    return ClassificationPredictor(spec, engine)


def _labels(query: Query, scores_VK: Tensor) -> ClassificationPrediction:
    probs_K = tta.combine(scores_VK, query.aggregate)
    return ClassificationPrediction(
        probs_K=probs_K.cpu().numpy(),
        mean_entropy=tta.entropy(probs_K).item(),
        view_agreement=tta.view_agreement(scores_VK, probs_K),
    )


@dataclass(frozen=True)
class _Look:
    """One view of one image, ready for the network but for padding."""

    view_index: int
    query_index: int
    image_CHW: Tensor

    @property
    def size(self) -> Size:
        return self.image_CHW.shape[-2], self.image_CHW.shape[-1]


def _all_scores(
    queries: Sequence[Query], spec: ModelSpec, engine: Engine, *, stride: int, clock: StageClock
) -> list[Tensor]:
    """For each query the scores of its views, (V, K, h, w) at the working size or (V, K)."""
    with clock("preprocess"):
        images = [_working_image(query, spec, engine.device) for query in queries]
        looks = [
            _Look(view_index, query_index, view.forward(images[query_index]))
            for query_index, query in enumerate(queries)
            for view_index, view in enumerate(PLANS[query.tta])
        ]
    views: list[list[Tensor]] = [[torch.empty(0)] * len(PLANS[query.tta]) for query in queries]
    for batch, size in _batches(looks, stride=stride):
        with clock("preprocess"):
            images_BCHW = torch.cat([pad(look.image_CHW[None], size) for look in batch])
        with clock("forward"):
            logits_BK = engine(images_BCHW)
        with clock("tta"):
            for look, logits_K in zip(batch, logits_BK, strict=True):
                working_image_CHW, query = images[look.query_index], queries[look.query_index]
                size_of_image = (working_image_CHW.shape[-2], working_image_CHW.shape[-1])
                views[look.query_index][look.view_index] = _undo(look, logits_K, query, size_of_image)
    return [torch.stack(scores_of_views) for scores_of_views in views]


def _working_image(query: Query, spec: ModelSpec, device: torch.device) -> Tensor:
    image_CHW = to_tensor(query.image_HWC).to(device)
    size = working_size((image_CHW.shape[-2], image_CHW.shape[-1]), spec.preprocess)
    return normalise(resize_image(image_CHW, size), spec.preprocess)


def _batches(looks: Sequence[_Look], *, stride: int) -> Iterator[tuple[list[_Look], Size]]:
    """Groups of one padded size, each small enough for one forward pass."""
    groups: defaultdict[Size, list[_Look]] = defaultdict(list)
    for look in looks:
        groups[look.size if stride == 1 else padded_size(look.size)].append(look)
    for size, group in groups.items():
        most = max(1, MAX_FORWARD_PIXELS // (size[0] * size[1]))
        for first in range(0, len(group), most):
            yield group[first : first + most], size


def _undo(look: _Look, logits_K: Tensor, query: Query, size: Size) -> Tensor:
    """Scores of one view; those of pixels are cropped and brought back to the image's geometry."""
    if logits_K.dim() == 1:
        return tta.scores(logits_K, query.aggregate)
    height, width = look.size
    scores_KHW = tta.scores(logits_K[:, :height, :width], query.aggregate)
    return PLANS[query.tta][look.view_index].inverse(scores_KHW, size)


def _upright_maps(
    probs_KHW: Tensor, query: Query
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Mask, confidence and (if asked for) uncertainty at the image's own size."""
    size = query.image_HWC.shape[0], query.image_HWC.shape[1]
    masks, confidences, uncertainties = [], [], []
    for band_KHW in upright_bands(probs_KHW, size):
        confidence_HW, mask_HW = band_KHW.max(dim=0)
        masks.append(mask_HW.to(torch.uint8).cpu())
        confidences.append(_to_8_bit(confidence_HW))
        if query.uncertainty_map:
            uncertainties.append(_to_8_bit(tta.entropy(band_KHW)))
    uncertainty = torch.cat(uncertainties).numpy() if uncertainties else None
    return torch.cat(masks).numpy(), torch.cat(confidences).numpy(), uncertainty


def _to_8_bit(values_HW: Tensor) -> Tensor:
    return (values_HW * 255).round().clamp(0, 255).to(torch.uint8).cpu()
