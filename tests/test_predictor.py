from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from segserve import predictor
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import ClassificationPredictor, SegmentationPredictor, build_predictor
from segserve.preprocess import Size
from segserve.spec import Aggregate, ModelSpec, Plan
from segserve.tta import PLANS
from tests.conftest import ToyEngine, ToyLabelsEngine, expected_probs, random_image

SIZES = [(1, 1), (1, 300), (300, 1), (7, 5), (129, 200), (640, 480)]


def at_most(spec: ModelSpec, side: int) -> ModelSpec:
    preprocess = spec.preprocess.model_copy(update={"resize": "larger", "working_side": side})
    return spec.model_copy(update={"preprocess": preprocess})


def mixed_queries() -> list[Query]:
    plans: list[Plan] = ["none", "d4", "multiscale-hflip", "hflip"]
    sizes = [(40, 30), (7, 5), (40, 30), (100, 65), (1, 1), (30, 40), (64, 64), (65, 100)]
    return [
        Query(
            image_HWC=random_image(*size, seed=index), tta=plans[index % 4], aggregate="vote" if index == 3 else "mean"
        )
        for index, size in enumerate(sizes)
    ]


def assert_same(found: SegmentationPrediction, expected: SegmentationPrediction) -> None:
    np.testing.assert_array_equal(found.mask_HW, expected.mask_HW)
    assert np.abs(found.confidence_HW.astype(int) - expected.confidence_HW).max() <= 1
    assert found.mean_entropy == pytest.approx(expected.mean_entropy, abs=1e-5)
    assert found.view_agreement == pytest.approx(expected.view_agreement, abs=1e-5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_has_its_images_size(size: Size, plan: Plan, spec: ModelSpec) -> None:
    query = Query(image_HWC=random_image(*size), tta=plan, maps=("entropy",))
    (found,) = SegmentationPredictor(spec, ToyEngine()).predict([query])
    assert found.mask_HW.shape == found.confidence_HW.shape == found.uncertainty_HW["entropy"].shape == size
    assert found.mask_HW.dtype == found.confidence_HW.dtype == found.uncertainty_HW["entropy"].dtype == np.uint8
    assert found.mask_HW.max() < spec.num_classes


@pytest.mark.parametrize("plan", ["none", "hflip", "flips", "d4"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (129, 200)])
def test_a_per_pixel_network_gives_the_numpy_answer(size: Size, plan: Plan, spec: ModelSpec) -> None:
    spec = at_most(spec, 256)
    image_HWC = random_image(*size)
    query = Query(image_HWC=image_HWC, tta=plan, maps=("entropy",))
    (found,) = SegmentationPredictor(spec, ToyEngine()).predict([query])
    probs_HWK = expected_probs(image_HWC, spec)
    entropy_HW = -(probs_HWK * np.log(probs_HWK)).sum(axis=-1) / np.log(4)
    np.testing.assert_array_equal(found.mask_HW, probs_HWK.argmax(axis=-1))
    np.testing.assert_allclose(found.confidence_HW, probs_HWK.max(axis=-1) * 255, atol=0.51)
    np.testing.assert_allclose(found.uncertainty_HW["entropy"], entropy_HW * 255, atol=0.51)
    assert found.mean_entropy == pytest.approx(entropy_HW.mean(), abs=1e-5)
    assert found.view_agreement == 1


@pytest.mark.parametrize("aggregate", ["mean", "logits", "max", "vote"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 127), (129, 201)])
def test_every_plan_equals_none_where_scaling_changes_nothing(
    size: Size, plan: Plan, aggregate: Aggregate, spec: ModelSpec
) -> None:
    """Stripes as high as the image: mirrored or turned they differ; flat in one colour they also survive scaling."""
    flat_HWC = np.full((*size, 3), (200, 30, 90), dtype=np.uint8)
    striped_HWC = np.where(np.arange(size[1])[:, None] % 2, flat_HWC, 255 - flat_HWC).astype(np.uint8)
    image_HWC = flat_HWC if plan.startswith("multiscale") else striped_HWC
    queries = [Query(image_HWC=image_HWC, tta=tta, aggregate=aggregate) for tta in ("none", plan)]
    alone, found = SegmentationPredictor(at_most(spec, 256), ToyEngine()).predict(queries)
    np.testing.assert_array_equal(found.mask_HW, alone.mask_HW)
    np.testing.assert_allclose(found.confidence_HW, alone.confidence_HW.astype(float), atol=1)
    assert found.view_agreement == 1
    assert found.mutual_information == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_a_mask_lies_where_the_image_is(plan: Plan, spec: ModelSpec) -> None:
    """Four flat quarters of different classes, on an image that is made smaller and back again."""
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    image_HWC = np.kron(colors.reshape(2, 2, 3), np.ones((150, 100, 1), dtype=np.uint8))
    (found,) = SegmentationPredictor(spec, ToyEngine()).predict([Query(image_HWC=image_HWC, tta=plan)])
    expected_HW = expected_probs(image_HWC, spec).argmax(axis=-1)
    for rows, columns in ((0, 0), (0, 100), (150, 0), (150, 100)):
        quarter = np.s_[rows + 12 : rows + 138, columns + 12 : columns + 88]
        np.testing.assert_array_equal(found.mask_HW[quarter], expected_HW[quarter])


def test_a_batch_equals_its_images_one_by_one_in_order(spec: ModelSpec) -> None:
    queries = mixed_queries()
    together = SegmentationPredictor(spec, ToyEngine()).predict(queries)
    for query, found in zip(queries, together, strict=True):
        assert_same(found, SegmentationPredictor(spec, ToyEngine()).predict([query])[0])


def test_images_of_one_padded_size_share_a_forward_pass(spec: ModelSpec) -> None:
    engine = ToyEngine()
    queries = [Query(image_HWC=random_image(*size)) for size in ((60, 40), (55, 33), (64, 64), (50, 64))]
    SegmentationPredictor(at_most(spec, 64), engine).predict(queries)
    assert engine.shapes == [(4, 3, 64, 64)]


@pytest.mark.parametrize(
    ("most", "batches"), [(1, [1] * 5), (64 * 64, [1] * 5), (2 * 64 * 64, [2, 2, 1]), (2**30, [5])]
)
def test_forward_passes_keep_to_their_pixel_budget(
    most: int, batches: list[int], spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "MAX_FORWARD_PIXELS", most)
    engine = ToyEngine()
    queries = [Query(image_HWC=random_image(64, 64, seed=seed)) for seed in range(5)]
    together = SegmentationPredictor(spec, engine).predict(queries)
    assert [shape[0] for shape in engine.shapes] == batches
    np.testing.assert_array_equal(together[4].mask_HW, expected_probs(queries[4].image_HWC, spec).argmax(axis=-1))


def test_views_of_one_image_keep_to_the_budget_too(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "MAX_FORWARD_PIXELS", 3 * 64 * 64)
    engine = ToyEngine()
    SegmentationPredictor(spec, engine).predict([Query(image_HWC=random_image(64, 64), tta="d4")])
    assert [shape[0] for shape in engine.shapes] == [3, 3, 2]


def test_padding_counts_in_what_is_held_at_once(
    spec: ModelSpec, labels_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image with a side of one pixel is held with 32, and a classifier's views are held, too."""
    thin = [Query(image_HWC=random_image(1, 64))] * 4
    monkeypatch.setattr(predictor, "MAX_SCORES", 2 * spec.num_classes * 32 * 64)
    engine = ToyEngine()
    SegmentationPredictor(at_most(spec, 64), engine).predict(thin)
    assert [shape[0] for shape in engine.shapes] == [2, 2]
    monkeypatch.setattr(predictor, "MAX_SCORES", 3 * 3 * 1 * 64)
    labels_engine = ToyLabelsEngine()
    ClassificationPredictor(at_most(labels_spec, 64), labels_engine).predict(thin)
    assert [shape[0] for shape in labels_engine.shapes] == [3, 1]


def test_windows_of_a_thin_image_keep_to_the_pixel_budget(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into one pass goes into one group, which holds all its scores."""
    monkeypatch.setattr(predictor, "MAX_FORWARD_PIXELS", 2 * 32 * 64)
    groups: list[int] = []
    own = SegmentationPredictor._scores

    def noted(self: SegmentationPredictor, images: Sequence[Tensor], *rest: Any, **options: Any) -> list[Any]:
        groups.append(len(images))
        return own(self, images, *rest, **options)

    monkeypatch.setattr(SegmentationPredictor, "_scores", noted)
    preprocess = spec.preprocess.model_copy(update={"resize": "never", "working_side": 64, "overlap": 16})
    windowed = spec.model_copy(update={"preprocess": preprocess})
    SegmentationPredictor(windowed, ToyEngine()).predict([Query(image_HWC=random_image(1, 500))])
    assert max(groups) == 2


def test_what_is_no_number_is_no_answer(spec: ModelSpec, labels_spec: ModelSpec) -> None:
    """And the image beside it in the batch has its own."""

    class Diverged(ToyEngine):
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            logits_BKHW = super().__call__(images_BCHW)
            logits_BKHW[0, :, 0, 0] = float("nan")
            return logits_BKHW

    queries = [Query(image_HWC=random_image(64, 64, seed=seed)) for seed in range(2)]
    lost, found = SegmentationPredictor(spec, Diverged()).attempt(queries)
    assert isinstance(lost, RuntimeError)
    assert "but got NaN or infinity" in str(lost)
    assert isinstance(found, SegmentationPrediction)


@pytest.mark.parametrize("plan", PLANS)
def test_images_are_not_changed(plan: Plan, spec: ModelSpec) -> None:
    query = Query(image_HWC=random_image(64, 64), tta=plan)
    before = query.image_HWC.copy()
    SegmentationPredictor(spec, ToyEngine()).predict([query])
    np.testing.assert_array_equal(query.image_HWC, before)


def test_the_uncertainty_map_comes_only_when_asked_for(spec: ModelSpec) -> None:
    image_HWC = random_image(20, 30)
    queries = [Query(image_HWC=image_HWC), Query(image_HWC=image_HWC, maps=("entropy",))]
    without, with_map = SegmentationPredictor(spec, ToyEngine()).predict(queries)
    assert without.uncertainty_HW == {}
    assert set(with_map.uncertainty_HW) == {"entropy"}
    assert_same(without, with_map)


def test_nothing_gives_nothing(spec: ModelSpec, labels_spec: ModelSpec) -> None:
    assert SegmentationPredictor(spec, ToyEngine()).predict([]) == []
    assert ClassificationPredictor(labels_spec, ToyLabelsEngine()).predict([]) == []


def test_the_clock_receives_every_stage(spec: ModelSpec) -> None:
    clock = StageClock()
    SegmentationPredictor(spec, ToyEngine()).predict([Query(image_HWC=random_image(8, 8))], clock=clock)
    assert set(clock.seconds) == {"preprocess", "forward", "tta", "postprocess"}
    assert min(clock.seconds.values()) > 0


@pytest.mark.parametrize("plan", PLANS)
def test_labels_equal_numpy_and_sum_to_one(plan: Plan, labels_spec: ModelSpec) -> None:
    spec = at_most(labels_spec, 256)
    image_HWC = np.full((33, 47, 3), (200, 30, 90), dtype=np.uint8)
    (found,) = ClassificationPredictor(spec, ToyLabelsEngine()).predict([Query(image_HWC=image_HWC, tta=plan)])
    np.testing.assert_allclose(found.probs_K, expected_probs(image_HWC, spec)[0, 0], atol=1e-5)
    assert found.probs_K.sum() == pytest.approx(1, abs=1e-6)
    assert found.view_agreement == 1


def test_a_classifier_never_sees_padding(labels_spec: ModelSpec) -> None:
    engine = ToyLabelsEngine()
    queries = [Query(image_HWC=random_image(*size)) for size in ((60, 40), (33, 50), (60, 40))]
    ClassificationPredictor(at_most(labels_spec, 64), engine).predict(queries)
    assert sorted(engine.shapes) == [(1, 3, 33, 50), (2, 3, 60, 40)]


def test_labels_of_a_batch_keep_their_order(labels_spec: ModelSpec) -> None:
    queries = mixed_queries()
    together = ClassificationPredictor(labels_spec, ToyLabelsEngine()).predict(queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = ClassificationPredictor(labels_spec, ToyLabelsEngine()).predict([query])
        np.testing.assert_allclose(found.probs_K, alone.probs_K, atol=1e-5)


def test_a_real_network_answers_a_batch_as_it_answers_singles(artifact: Artifact) -> None:
    real = build_predictor(artifact.spec, TorchEngine(artifact.network))
    queries = mixed_queries()
    together = np.concatenate([found.mask_HW.ravel() for found in real.predict(queries)])
    alone = np.concatenate([real.predict([query])[0].mask_HW.ravel() for query in queries])
    assert (together == alone).mean() >= 0.999
    assert np.bincount(together, minlength=4).max() < 0.95 * len(together)  # else the share above says nothing


def test_build_predictor_follows_the_task(spec: ModelSpec, labels_spec: ModelSpec) -> None:
    assert isinstance(build_predictor(spec, ToyEngine()), SegmentationPredictor)
    assert isinstance(build_predictor(labels_spec, ToyLabelsEngine()), ClassificationPredictor)
