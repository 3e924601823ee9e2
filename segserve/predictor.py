"""The one path from images to predictions: training-time evaluation, the offline command and the service all call it.

windows -> preprocess -> views -> engine, in batches of one padded size -> inverse views -> aggregate -> blend windows
-> undo the geometry.

Dimensions: B batch, V views, C channels, K classes, H, W.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segserve import tta
from segserve.canvas import NUM_DOUBTS, Canvas, join_views
from segserve.clock import StageClock
from segserve.device import DeviceLost, is_lost
from segserve.memory import is_out_of_memory, release_memory, trim_heap
from segserve.prediction import ClassificationPrediction, Query, SegmentationPrediction
from segserve.preprocess import (
    STRIDE,
    Size,
    aligned,
    normalise,
    pad,
    resize_image,
    to_tensor,
    upright_bands,
    working_size,
)
from segserve.spec import ModelSpec
from segserve.tiling import Blender, Grid, Span, TooLarge, grid, strips
from segserve.tta import PLANS

logger = logging.getLogger(__name__)

MAX_FORWARD_PIXELS = 8 * 512 * 512
"""Most pixels in one forward pass; a larger group runs in several."""
MAX_SCORES = 2**28
"""Most numbers that the views of a batch may hold at once (1 GiB of float32)."""


class Engine(Protocol):
    """A way to run the network: float32 images (B, 3, H, W) to float32 logits (B, K, H, W) or (B, K)."""

    name: str
    device: torch.device

    def __call__(self, images_BCHW: Tensor, /) -> Tensor: ...


P = TypeVar("P", SegmentationPrediction, ClassificationPrediction)


class ImagePredictor(Generic[P]):
    """Images to predictions. Images of different sizes, plans and aggregators go in one call; answers keep their order.

    Args:
        spec: of the model.
        engine: runs its network.
    """

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self.spec = spec
        self.engine = engine

    def predict(self, queries: Sequence[Query], *, clock: StageClock | None = None) -> list[P]:
        """One prediction a query, in order; raises what `attempt` returns.

        Args:
            queries: of any sizes, plans and aggregators.
            clock: receives the seconds of each stage.
        """
        outcomes = self.attempt(queries, clock=clock)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return cast(list[P], outcomes)

    def attempt(self, queries: Sequence[Query], *, clock: StageClock | None = None) -> list[P | Exception]:
        """For each query its prediction, or what prevented it, which prevents no other query's.

        A batch that fails, for want of memory for example, is tried again in halves. A query whose deadline has passed
        gets a TimeoutError, one that is too large for tiling a `tiling.TooLarge`, one whose scores are no numbers a
        RuntimeError.

        Raises:
            DeviceLost: nothing can be predicted any more.
        """
        clock = clock or StageClock()
        try:
            return [_checked(outcome) for outcome in self._predict_together(queries, clock)]
        except Exception as error:
            if is_lost(self.engine.device):
                raise DeviceLost(f"{self.engine.device} computes nothing any more: {error}") from error
            release_memory(self.engine.device)
            if len(queries) == 1:
                return [error]
            logger.warning("a batch of %d failed and is tried in halves: %s", len(queries), error)
        middle = len(queries) // 2
        return self.attempt(queries[:middle], clock=clock) + self.attempt(queries[middle:], clock=clock)

    def _predict_together(self, queries: Sequence[Query], clock: StageClock) -> list[P | Exception]:
        raise NotImplementedError

    def _working_image(self, image_HWC: NDArray[np.uint8], size: Size) -> Tensor:
        """The network's input for an image, or a window, of `size`."""
        image_CHW = to_tensor(image_HWC).to(self.engine.device)
        return normalise(resize_image(image_CHW, working_size(size, self.spec.preprocess)), self.spec.preprocess)

    def _affordable(self, queries: Sequence[Query], *, per_pixel: int, stride: int) -> Iterator[Sequence[Query]]:
        """Groups of neighbours whose views hold at most `MAX_SCORES` numbers, or one query.

        Args:
            queries: in order.
            per_pixel: how many numbers are held of each pixel of a view.
            stride: of which the sides of the views are multiples, by padding.
        """
        group: list[Query] = []
        held = 0
        for query in queries:
            height, width = aligned(working_size(query.size, self.spec.preprocess), stride)
            needed = len(PLANS[query.tta]) * per_pixel * height * width
            if group and held + needed > MAX_SCORES:
                yield group
                group, held = [], 0
            group.append(query)
            held += needed
        if group:
            yield group

    def _scores(
        self, images: Sequence[Tensor], queries: Sequence[Query], *, stride: int, clock: StageClock
    ) -> list[Tensor | TimeoutError]:
        """For each image (3, h, w) the scores of its query's views: (V, K, h, w), or (V, K) for labels."""
        with clock("preprocess"):
            # Padded before they are turned, images keep their place on the network's grid in every view.
            padded = [pad(image_CHW, aligned(_size(image_CHW), stride)) for image_CHW in images]
            looks = [
                _Look(view_index, image_index, view.forward(image_CHW))
                for image_index, (image_CHW, query) in enumerate(zip(padded, queries, strict=True))
                for view_index, view in enumerate(PLANS[query.tta])
            ]
        views: list[list[Tensor]] = [[] for _ in images]
        for batch, size in _batches(looks, stride=stride):
            in_time = [look for look in batch if not _is_late(queries[look.image_index])]
            for look, logits_K in zip(in_time, self._logits(in_time, size, clock), strict=True):
                query = queries[look.image_index]
                with clock("tta"):
                    scores_K = self._undo(look, logits_K, query, _size(padded[look.image_index]))
                    views[look.image_index].append(scores_K)
        return [
            _cropped(_stacked(scores), _size(image_CHW))
            if len(scores) == len(PLANS[query.tta])
            else TimeoutError("the deadline has passed")
            for scores, image_CHW, query in zip(views, images, queries, strict=True)
        ]

    def _logits(self, looks: Sequence["_Look"], size: Size, clock: StageClock) -> Tensor:
        if not looks:
            return torch.empty(0)
        with clock("preprocess"):
            images_BCHW = torch.stack([pad(look.image_CHW, size) for look in looks])
        with clock("forward"):
            return self._forward(images_BCHW)

    def _forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits; a batch that does not fit in memory goes in halves."""
        try:
            return self.engine(images_BCHW)
        except Exception as error:
            if len(images_BCHW) == 1 or not is_out_of_memory(error):
                raise
            logger.warning("a forward pass of %s did not fit in memory: halving it", tuple(images_BCHW.shape))
        release_memory(self.engine.device)
        return torch.cat([self._forward(half_BCHW) for half_BCHW in images_BCHW.tensor_split(2)])

    def _undo(self, look: "_Look", logits_K: Tensor, query: Query, size: Size) -> Tensor:
        """Scores of one view; those of pixels are brought back to the geometry of the padded image, of `size`."""
        scores_K = tta.scores(logits_K, query.aggregate, temperature=self.spec.calibration.temperature)
        if scores_K.dim() == 1:
            return scores_K
        return PLANS[query.tta][look.view_index].inverse(_cropped(scores_K, look.size), size)


class SegmentationPredictor(ImagePredictor[SegmentationPrediction]):
    """Images to masks."""

    @torch.inference_mode()
    def _predict_together(
        self, queries: Sequence[Query], clock: StageClock
    ) -> list[SegmentationPrediction | Exception]:
        answers: dict[int, SegmentationPrediction | Exception] = {}
        whole: list[int] = []
        for index, query in enumerate(queries):
            try:
                query_grid = grid(query.size, self.spec.preprocess)
            except TooLarge as error:
                answers[index] = error
                continue
            if query_grid.num_windows == 1:
                whole.append(index)
            else:
                answers[index] = self._predict_windows(query, query_grid, clock)
        together = self._predict_whole([queries[index] for index in whole], clock)
        answers.update(zip(whole, together, strict=True))
        return [answers[index] for index in range(len(queries))]

    def _predict_whole(self, queries: Sequence[Query], clock: StageClock) -> list[SegmentationPrediction | Exception]:
        """Images that the network sees in one piece each, as many of them together as memory allows."""
        answers: list[SegmentationPrediction | Exception] = []
        for group in self._affordable(queries, per_pixel=self.spec.num_classes, stride=STRIDE):
            with clock("preprocess"):
                images = [self._working_image(query.image_HWC, query.size) for query in group]
            scores = self._scores(images, group, stride=STRIDE, clock=clock)
            answers += [
                scores_VKHW if isinstance(scores_VKHW, Exception) else self._finish(query, scores_VKHW, clock)
                for query, scores_VKHW in zip(group, scores, strict=True)
            ]
        return answers

    def _finish(self, query: Query, scores_VKHW: Tensor, clock: StageClock) -> SegmentationPrediction:
        with clock("tta"):
            maps_MHW = join_views(scores_VKHW, query.aggregate)
        with clock("postprocess"):
            canvas = Canvas(query)
            canvas.note(maps_MHW)
            for band_MHW, top, left in upright_bands(canvas.needed(maps_MHW), query.size):
                canvas.paint(band_MHW, top=top, left=left)
            return canvas.prediction(num_windows=1)

    def _predict_windows(
        self, query: Query, query_grid: Grid, clock: StageClock
    ) -> SegmentationPrediction | TimeoutError:
        """One image in overlapping windows, in memory that does not grow with the image."""
        canvas = Canvas(query)
        num_maps = self.spec.num_classes + NUM_DOUBTS
        trim_heap()
        for strip in strips(query_grid, num_maps):
            blender = Blender(strip, query_grid.rows, num_maps=num_maps, device=self.engine.device)
            for row_index, row in enumerate(query_grid.rows):
                maps = self._maps_of_row(query, row, strip.columns, clock)
                for column_index in range(len(strip.columns)):
                    maps_MHW = next(maps, None)
                    if maps_MHW is None:
                        return TimeoutError("the deadline has passed")
                    with clock("postprocess"):
                        canvas.take(blender.add(maps_MHW, row_index, column_index))
                trim_heap()
        return canvas.prediction(num_windows=query_grid.num_windows)

    def _maps_of_row(self, query: Query, row: Span, columns: Sequence[Span], clock: StageClock) -> Iterator[Tensor]:
        """The maps of the windows of one row; fewer, if the deadline passes."""
        window = row.stop - row.start, max(column.stop - column.start for column in columns)
        window_pixels = math.prod(aligned(window, STRIDE))
        at_once = max(1, MAX_FORWARD_PIXELS // (window_pixels * len(PLANS[query.tta])))
        for first in range(0, len(columns), at_once):
            group = columns[first : first + at_once]
            with clock("preprocess"):
                windows = [query.image_HWC[row.start : row.stop, column.start : column.stop] for column in group]
                images = [self._working_image(window_HWC, window_HWC.shape[:2]) for window_HWC in windows]
            for scores_VKHW in self._scores(images, [query] * len(group), stride=STRIDE, clock=clock):
                if isinstance(scores_VKHW, TimeoutError):
                    return
                with clock("tta"):
                    maps_MHW = join_views(scores_VKHW, query.aggregate)
                yield maps_MHW


class ClassificationPredictor(ImagePredictor[ClassificationPrediction]):
    """Images to class probabilities."""

    @torch.inference_mode()
    def _predict_together(
        self, queries: Sequence[Query], clock: StageClock
    ) -> list[ClassificationPrediction | Exception]:
        answers: list[ClassificationPrediction | Exception] = []
        for group in self._affordable(queries, per_pixel=3, stride=1):
            with clock("preprocess"):
                images = [self._working_image(query.image_HWC, query.size) for query in group]
            # Global average pooling would see padding, so that only images of one size share a batch.
            scores = self._scores(images, group, stride=1, clock=clock)
            with clock("tta"):
                answers += [
                    scores_VK if isinstance(scores_VK, Exception) else _labels(query, scores_VK)
                    for query, scores_VK in zip(group, scores, strict=True)
                ]
        return answers


Predictor = SegmentationPredictor | ClassificationPredictor


def build_predictor(spec: ModelSpec, engine: Engine) -> Predictor:
    """The predictor for the spec's task."""
    if spec.task == "segmentation":
        return SegmentationPredictor(spec, engine)
    return ClassificationPredictor(spec, engine)


def _checked(outcome: P | Exception) -> P | Exception:
    if isinstance(outcome, Exception) or math.isfinite(outcome.mean_entropy):
        return outcome
    return RuntimeError("expected numbers from the network, but got NaN or infinity for this image: train it anew")


def _size(image_CHW: Tensor) -> Size:
    return image_CHW.shape[-2], image_CHW.shape[-1]


def _cropped(scores_VK: Tensor, size: Size) -> Tensor:
    """Without the padding at the right and the bottom; labels' scores, (V, K), have none."""
    return scores_VK if scores_VK.dim() < 3 else scores_VK[..., : size[0], : size[1]]


def _stacked(scores: Sequence[Tensor]) -> Tensor:
    """(V, K, ...); a single view's are not copied."""
    return scores[0][None] if len(scores) == 1 else torch.stack(list(scores))


def _is_late(query: Query) -> bool:
    return query.deadline is not None and time.perf_counter() > query.deadline


def _labels(query: Query, scores_VK: Tensor) -> ClassificationPrediction:
    probs_K = tta.combine(scores_VK, query.aggregate)
    return ClassificationPrediction(
        probs_K=probs_K.cpu().numpy(),
        mean_entropy=tta.entropy(probs_K).item(),
        mutual_information=tta.mutual_information(scores_VK, query.aggregate).item(),
        view_agreement=1 - tta.disagreement(scores_VK, probs_K).item(),
    )


@dataclass(frozen=True)
class _Look:
    """One view of one image, ready for the network but for padding."""

    view_index: int
    image_index: int
    image_CHW: Tensor

    @property
    def size(self) -> Size:
        return _size(self.image_CHW)


def _batches(looks: Sequence[_Look], *, stride: int) -> Iterator[tuple[list[_Look], Size]]:
    """Groups of one padded size, each small enough for one forward pass."""
    groups: defaultdict[Size, list[_Look]] = defaultdict(list)
    for look in looks:
        groups[aligned(look.size, stride)].append(look)
    for size, group in groups.items():
        most = max(1, MAX_FORWARD_PIXELS // (size[0] * size[1]))
        for first in range(0, len(group), most):
            yield group[first : first + most], size
