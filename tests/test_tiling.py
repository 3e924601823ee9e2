import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segserve import predictor, tiling
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import SegmentationPredictor
from segserve.preprocess import Size
from segserve.spec import ModelSpec, Plan, Sizing
from segserve.tiling import Blender, grid, spans, strips
from tests.conftest import ToyEngine, expected_probs, random_image

SIZES = [(1, 1), (64, 64), (65, 64), (1, 700), (700, 1), (129, 200), (333, 257), (96, 480)]
AXES = [(1, 32, 0), (64, 64, 32), (65, 64, 32), (1000, 64, 32), (999, 96, 31), (5000, 512, 128), (4001, 512, 0)]


def tiled(spec: ModelSpec, *, side: int = 64, overlap: int = 32) -> ModelSpec:
    sizing = {"resize": "never", "working_side": side, "overlap": overlap}
    return spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update=sizing)})


def whole(spec: ModelSpec) -> ModelSpec:
    return tiled(spec, side=4096, overlap=0)


class LocalEngine:
    """A network that looks at 5 x 5 pixels."""

    name = "local"
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        self.batches: list[int] = []

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        self.batches.append(len(images_BCHW))
        logits_BKHW: Tensor = self.network(images_BCHW)
        return logits_BKHW


class StridedEngine(LocalEngine):
    """A network that works on a grid of 32 pixels, as a U-Net does at its deepest, and answers for each cell."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        cells_BCHW = nn.functional.max_pool2d(super().__call__(images_BCHW)[..., 8:, 8:], 16, stride=32)
        return nn.functional.interpolate(cells_BCHW, scale_factor=32.0, mode="nearest")


def assert_same(found: SegmentationPrediction, expected: SegmentationPrediction) -> None:
    np.testing.assert_array_equal(found.mask_HW, expected.mask_HW)
    np.testing.assert_allclose(found.confidence_HW, expected.confidence_HW.astype(float), atol=1)
    for measure, map_HW in expected.uncertainty_HW.items():
        np.testing.assert_allclose(found.uncertainty_HW[measure], map_HW.astype(float), atol=1)
    assert found.mean_entropy == pytest.approx(expected.mean_entropy, abs=1e-5)
    assert found.mutual_information == pytest.approx(expected.mutual_information, abs=1e-5)
    assert found.view_agreement == pytest.approx(expected.view_agreement, abs=1e-5)


@pytest.mark.parametrize(("length", "side", "overlap"), AXES)
def test_the_windows_of_an_axis_cover_it_and_their_weights_sum_to_one(length: int, side: int, overlap: int) -> None:
    total_N = torch.zeros(length)
    for span in spans(length, side, overlap):
        assert 0 < span.stop - span.start <= max(side, 32)
        assert (span.weights_N >= 0).all()
        total_N[span.start : span.stop] += span.weights_N
    torch.testing.assert_close(total_N, torch.ones(length))


@pytest.mark.parametrize(("length", "side", "overlap"), AXES)
def test_windows_lie_on_the_networks_grid_and_share_the_overlap(length: int, side: int, overlap: int) -> None:
    found = spans(length, side, overlap)
    assert all(span.start % 32 == 0 for span in found)
    for left, right in itertools.pairwise(found):
        assert left.start < right.start
        assert left.stop - right.start >= min(overlap, right.stop - right.start)


def test_a_window_counts_nothing_at_its_edges_but_at_the_images_border() -> None:
    first, second, *_, last = spans(1000, 128, 64)
    assert first.weights_N[0] == last.weights_N[-1] == 1
    assert (second.weights_N[:16] == 0).all()
    assert (first.weights_N[-16:] == 0).all()
    assert (second.weights_N[16:48].diff() > 0).all()


def test_the_only_window_of_an_axis_takes_no_memory_for_its_weights() -> None:
    """A file of 100 kB can be an image of one row and 100 million columns."""
    (span,) = spans(1_000_000, 1_000_000, 0)
    assert (span.start, span.stop, span.weights_N.shape) == (0, 1_000_000, (1_000_000,))
    assert span.weights_N.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("plan", ["none", "flips", "d4"])
def test_tiles_equal_the_whole_with_a_small_receptive_field(size: Size, plan: Plan, spec: ModelSpec) -> None:
    measures = ("entropy", "mutual-information", "disagreement")
    query = Query(image_HWC=random_image(*size), tta=plan, maps=measures)
    (expected,) = SegmentationPredictor(whole(spec), LocalEngine()).predict([query])
    (found,) = SegmentationPredictor(tiled(spec), LocalEngine()).predict([query])
    assert expected.windows == 1
    assert found.windows == grid(size, tiled(spec).preprocess).num_windows
    assert (found.windows > 1) == (max(size) > 64)
    assert_same(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_whole_with_a_strided_network(size: Size, spec: ModelSpec) -> None:
    query = Query(image_HWC=random_image(*size))
    (expected,) = SegmentationPredictor(whole(spec), StridedEngine()).predict([query])
    (found,) = SegmentationPredictor(tiled(spec), StridedEngine()).predict([query])
    assert_same(found, expected)


@pytest.mark.parametrize("plan", ["none", "multiscale-hflip"])
def test_a_per_pixel_network_gives_the_numpy_answer_in_windows(plan: Plan, spec: ModelSpec) -> None:
    image_HWC = np.kron(random_image(10, 12), np.ones((24, 24, 1), dtype=np.uint8))
    (found,) = SegmentationPredictor(tiled(spec), ToyEngine()).predict([Query(image_HWC=image_HWC, tta=plan)])
    probs_HWK = expected_probs(image_HWC, spec)
    inner_HW = np.tile(np.pad(np.ones((12, 12), dtype=bool), 6), (10, 12))  # scaling blurs at the patches' borders
    np.testing.assert_array_equal(found.mask_HW[inner_HW], probs_HWK.argmax(axis=-1)[inner_HW])


@pytest.mark.parametrize("precision", ["uint8", "float16"])
def test_probabilities_of_windows_have_the_mask_as_their_argmax(precision: str, spec: ModelSpec) -> None:
    query = Query(image_HWC=random_image(150, 170), probabilities=precision)  # type: ignore[arg-type]
    (found,) = SegmentationPredictor(tiled(spec), ToyEngine()).predict([query])
    assert found.probs_KHW is not None
    assert (found.probs_KHW.shape, found.probs_KHW.dtype) == ((4, 150, 170), np.dtype(precision))
    np.testing.assert_array_equal(found.probs_KHW.argmax(axis=0), found.mask_HW)
    scale = 255 if precision == "uint8" else 1
    expected_KHW = expected_probs(query.image_HWC, spec).transpose(2, 0, 1)
    np.testing.assert_allclose(
        found.probs_KHW.astype(float) / scale, expected_KHW, atol=1.5 / 255
    )  # half a level, and one for a tie


@pytest.mark.parametrize("most", [1, 6 * 32 * 200, 2**26])
def test_the_answer_does_not_depend_on_the_strips(most: int, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Query(image_HWC=random_image(150, 700), tta="hflip")
    (expected,) = SegmentationPredictor(whole(spec), LocalEngine()).predict([query])
    monkeypatch.setattr(tiling, "MAX_HELD", most)
    (found,) = SegmentationPredictor(tiled(spec), LocalEngine()).predict([query])
    assert_same(found, expected)


def test_strips_hold_their_budget_and_leave_no_pixel_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "MAX_HELD", 13 * 160 * 3000)
    sizing = Sizing(resize="never", working_side=512, overlap=128)
    windows = grid((10_000, 10_000), sizing)
    assert max(upper.stop - lower.start for upper, lower in itertools.pairwise(windows.rows)) <= 160
    found = list(strips(windows, 13))
    assert [strip.left for strip in found] == [0, *(strip.right for strip in found[:-1])]
    assert found[-1].right == 10_000
    for strip in found:
        assert strip.columns[-1].stop - strip.columns[0].start <= 3000
        missing = set(windows.columns) - set(strip.columns)
        assert all(span.stop <= strip.left or span.start >= strip.right for span in missing)


def test_windows_share_forward_passes(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "MAX_FORWARD_PIXELS", 3 * 64 * 64)
    engine = LocalEngine()
    SegmentationPredictor(tiled(spec), engine).predict([Query(image_HWC=random_image(64, 300))])
    assert engine.batches == [3, 3, 3]


def test_large_and_small_images_go_in_one_call(spec: ModelSpec) -> None:
    queries = [Query(image_HWC=random_image(*size)) for size in [(300, 70), (20, 30), (64, 200)]]
    together = SegmentationPredictor(tiled(spec), LocalEngine()).predict(queries)
    for query, found in zip(queries, together, strict=True):
        assert_same(found, SegmentationPredictor(tiled(spec), LocalEngine()).predict([query])[0])


def test_a_thin_image_that_is_mostly_padding_is_refused_before_any_work(spec: ModelSpec) -> None:
    sizing = Sizing(resize="never", working_side=64, overlap=32)
    with pytest.raises(tiling.TooLarge, match=r"at most 200000000 pixels once .* but 90000000 x 1 needs 2880000000"):
        grid((1, 90_000_000), sizing)
    huge_HWC: NDArray[np.uint8] = np.broadcast_to(np.uint8(0), (1, 90_000_000, 3))
    small = Query(image_HWC=random_image(5, 5))
    refused, answered = SegmentationPredictor(tiled(spec), ToyEngine()).attempt([Query(image_HWC=huge_HWC), small])
    assert isinstance(refused, tiling.TooLarge)
    assert isinstance(answered, SegmentationPrediction)


def test_a_blender_gives_each_pixel_once_and_weighted() -> None:
    upper = tiling.Span(0, 6, torch.tensor([1, 1, 1, 1, 0.75, 0.25]))
    lower = tiling.Span(4, 10, torch.tensor([0.25, 0.75, 1, 1, 1, 1]))
    rows = columns = (upper, lower)
    (strip,) = strips(tiling.Grid(rows, columns), 1)
    blender = Blender(strip, rows, num_maps=1, device=torch.device("cpu"))
    found_HW = torch.full((10, 10), torch.nan)
    for row, column in itertools.product(range(2), range(2)):
        block = blender.add(torch.full((1, 6, 6), 8.0 * row + 4.0 * column), row, column)
        assert block is not None
        place = np.s_[
            block.top : block.top + block.maps_KHW.shape[1], block.left : block.left + block.maps_KHW.shape[2]
        ]
        assert found_HW[place].isnan().all()
        found_HW[place] = block.maps_KHW[0]
    share_N = torch.tensor([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1])
    torch.testing.assert_close(found_HW, 8 * share_N[:, None] + 4 * share_N)
