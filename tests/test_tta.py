import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segserve.preprocess import Size
from segserve.spec import Aggregate, Plan
from segserve.tta import MOST_COMPARED, PLANS, View, combine, disagreement, entropy, largest, mutual_information, scores

SIZES = [(1, 1), (1, 7), (5, 3), (8, 8), (33, 47)]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
TOLERANCE: dict[Aggregate, float] = {"mean": 1e-6, "logits": 1e-6, "max": 1e-6, "vote": 1e-3}
"""Votes carry a small share of the mean probability, which decides ties."""
EXACT_PLANS: tuple[Plan, ...] = ("none", "hflip", "flips", "d4")
EXACT_VIEWS = [View(hflip=hflip, turns=turns) for hflip, turns in product((False, True), range(4))]


def softmax(logits: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", EXACT_VIEWS, ids=str)
def test_inverse_undoes_forward(view: View, size: Size) -> None:
    map_KHW = torch.randn(3, *size)
    before = map_KHW.clone()
    assert torch.equal(view.inverse(view.forward(map_KHW), size), map_KHW)
    assert torch.equal(map_KHW, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "view", [View(scale=0.75), View(scale=1.25, hflip=True), View(scale=0.5, turns=1, hflip=True)], ids=str
)
def test_a_scaled_view_returns_to_its_size_and_keeps_what_is_even(view: View, size: Size) -> None:
    map_KHW = torch.rand(3, 1, 1).expand(3, *size)
    torch.testing.assert_close(view.inverse(view.forward(map_KHW), size), map_KHW)


@pytest.mark.parametrize("view", [View(scale=0.75), View(scale=1.25, hflip=True)], ids=str)
def test_a_scaled_view_returns_to_its_place(view: View) -> None:
    ramp_HW = torch.linspace(0, 1, 40).expand(40, 40)
    map_KHW = torch.stack([ramp_HW, ramp_HW.T])
    torch.testing.assert_close(view.inverse(view.forward(map_KHW), (40, 40)), map_KHW, atol=0.02, rtol=0)


X_HW = np.arange(15).reshape(3, 5)
HFLIP = [X_HW, X_HW[:, ::-1]]
FLIPS = [*HFLIP, X_HW[::-1], X_HW[::-1, ::-1]]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [("none", [X_HW]), ("hflip", HFLIP), ("flips", FLIPS), ("d4", [*FLIPS, *(view.T for view in FLIPS)])],
)
def test_the_views_of_a_plan(plan: Plan, expected: list[NDArray[np.int64]]) -> None:
    seen = [view.forward(torch.from_numpy(X_HW)).tolist() for view in PLANS[plan]]
    assert sorted(seen) == sorted(view.tolist() for view in expected)


@pytest.mark.parametrize(("plan", "views"), [("multiscale", 3), ("multiscale-hflip", 6)])
def test_multiscale_plans_see_smaller_and_larger(plan: Plan, views: int) -> None:
    widths = [view.forward(torch.rand(3, 20, 40)).shape[-1] for view in PLANS[plan]]
    assert len(widths) == views
    assert min(widths) < 40 < max(widths)


@pytest.mark.parametrize("plan", get_args(Plan))
def test_the_first_view_is_the_image_itself(plan: Plan) -> None:
    image_CHW = torch.rand(3, 5, 7)
    assert torch.equal(PLANS[plan][0].forward(image_CHW), image_CHW)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("plan", EXACT_PLANS)
def test_a_per_pixel_network_answers_the_same_with_every_plan(plan: Plan, aggregate: Aggregate) -> None:
    weights_KC = torch.randn(4, 3)
    image_CHW = torch.randn(3, 9, 14)

    def network(view_CHW: Tensor) -> Tensor:
        return torch.einsum("kc,chw->khw", weights_KC, view_CHW)

    views = [view.inverse(scores(network(view.forward(image_CHW)), aggregate), (9, 14)) for view in PLANS[plan]]
    found_KHW = combine(torch.stack(views), aggregate)
    alone_KHW = combine(scores(network(image_CHW), aggregate)[None], aggregate)
    torch.testing.assert_close(found_KHW, alone_KHW, atol=TOLERANCE[aggregate], rtol=0)
    assert disagreement(torch.stack(views), found_KHW).max() == 0
    assert mutual_information(torch.stack(views), aggregate).max() <= 1e-5


def slow_combine(logits_VKN: NDArray[np.float64], aggregate: Aggregate) -> NDArray[np.float64]:
    """Pixel by pixel, as the contract's words say it; votes without their tie-break."""
    num_views, num_classes, num_pixels = logits_VKN.shape
    result_KN = np.zeros((num_classes, num_pixels))
    for pixel in range(num_pixels):
        logits_VK = logits_VKN[..., pixel]
        probs_VK = softmax(logits_VK, axis=1)
        match aggregate:
            case "mean":
                result_KN[:, pixel] = sum(probs_VK) / num_views
            case "logits":
                result_KN[:, pixel] = softmax(sum(logits_VK) / num_views, axis=0)
            case "max":
                largest_K = [max(probs_VK[:, k]) for k in range(num_classes)]
                result_KN[:, pixel] = np.array(largest_K) / sum(largest_K)
            case "vote":
                for probs_K in probs_VK:
                    result_KN[list(probs_K).index(max(probs_K)), pixel] += 1 / num_views
    return result_KN


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_combine_equals_a_slow_one(aggregate: Aggregate, num_views: int) -> None:
    logits_VKN = torch.randn(num_views, 4, 30) * 3
    scores_VKN = torch.stack([scores(logits_KN, aggregate) for logits_KN in logits_VKN])
    found_KN = combine(scores_VKN, aggregate)
    expected_KN = slow_combine(logits_VKN.double().numpy(), aggregate)
    np.testing.assert_allclose(found_KN, expected_KN, atol=TOLERANCE[aggregate])
    torch.testing.assert_close(found_KN.sum(dim=0), torch.ones(30))
    assert (found_KN >= 0).all()


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (4, 3, 5)])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_combine_takes_labels_and_masks(aggregate: Aggregate, shape: tuple[int, ...]) -> None:
    probs_K = combine(torch.rand(3, *shape).softmax(dim=1), aggregate)
    assert probs_K.shape == shape


@pytest.mark.parametrize(
    ("probs_VK", "winner"),
    [
        ([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], 1),
        ([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]], 0),
        ([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.0, 0.05, 0.95]], 2),
        ([[0.51, 0.49, 0.0], [0.51, 0.49, 0.0], [0.0, 1.0, 0.0]], 0),
    ],
    ids=["tie", "tie the other way", "three-way tie", "majority beats the mean"],
)
def test_votes(probs_VK: list[list[float]], winner: int) -> None:
    probs_K = combine(torch.tensor(probs_VK), "vote")
    assert probs_K.argmax().item() == winner


@pytest.mark.parametrize(
    ("probs", "expected"),
    [([1.0, 0.0, 0.0, 0.0], 0.0), ([0.25] * 4, 1.0), ([0.5, 0.5, 0.0, 0.0], 0.5), ([0.5, 0.5], 1.0)],
)
def test_entropy_of_labels(probs: list[float], expected: float) -> None:
    assert entropy(torch.tensor(probs)).item() == pytest.approx(expected, abs=1e-6)


def test_entropy_of_maps_equals_numpy() -> None:
    probs_KHW = torch.randn(5, 4, 6).softmax(dim=0)
    p = probs_KHW.double().numpy()
    np.testing.assert_allclose(entropy(probs_KHW), -(p * np.log(p)).sum(axis=0) / np.log(5), atol=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 5, MOST_COMPARED, MOST_COMPARED + 1, 256])
def test_the_largest_equals_torch_s_where_it_is_one_and_is_the_first_of_equal_ones(num_classes: int) -> None:
    levels = 20  # so few that many are equal
    probs_KHW = torch.randint(0, levels, (num_classes, 40, 30), generator=torch.Generator().manual_seed(0)) / levels
    confidence_HW, mask_HW = largest(probs_KHW)
    assert mask_HW.dtype == torch.uint8
    assert torch.equal(confidence_HW, probs_KHW.amax(dim=0))
    np.testing.assert_array_equal(mask_HW, probs_KHW.numpy().argmax(axis=0))


def test_a_network_that_says_nan_still_gets_a_class() -> None:
    _, mask_HW = largest(torch.full((3, 2, 2), math.nan))
    assert (mask_HW < 3).all()


def test_disagreement_counts_the_views() -> None:
    classes_VN = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 0]])
    answer_N = torch.tensor([0, 1, 1, 1])
    scores_VKN = torch.nn.functional.one_hot(classes_VN, 3).permute(0, 2, 1).float()
    probs_KN = torch.nn.functional.one_hot(answer_N, 3).T.float()
    assert disagreement(scores_VKN, probs_KN).tolist() == [0, 0, 0.5, 1]


@pytest.mark.parametrize("shape", [(), (7,), (5, 6)])
@pytest.mark.parametrize("num_classes", [2, MOST_COMPARED, MOST_COMPARED + 1, 300])
def test_disagreement_equals_numpy_s(num_classes: int, shape: tuple[int, ...]) -> None:
    levels = 20  # so few that many are equal
    scores_VK = torch.randint(0, levels, (8, num_classes, *shape), generator=torch.Generator().manual_seed(0)) / levels
    probs_K = combine(scores_VK, "mean")
    expected = (scores_VK.numpy().argmax(axis=1) != probs_K.numpy().argmax(axis=0)).mean(axis=0)
    np.testing.assert_array_equal(disagreement(scores_VK, probs_K), expected)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_view_has_nothing_to_differ_from(aggregate: Aggregate) -> None:
    scores_VKHW = scores(torch.randn(4, 6, 7), aggregate)[None]
    assert disagreement(scores_VKHW, combine(scores_VKHW, aggregate)).max() == 0
    assert mutual_information(scores_VKHW, aggregate).max() == 0


@pytest.mark.parametrize(
    ("probs_VK", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),  # each view is sure, and of something else
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),  # the views agree that they do not know
        ([[0.9, 0.1], [0.9, 0.1]], 0.0),
    ],
)
def test_mutual_information_of_clear_cases(probs_VK: list[list[float]], expected: float) -> None:
    assert mutual_information(torch.tensor(probs_VK), "mean").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_mutual_information_equals_numpy(aggregate: Aggregate) -> None:
    logits_VKN = torch.randn(3, 4, 20) * 3
    found_N = mutual_information(torch.stack([scores(logits_KN, aggregate) for logits_KN in logits_VKN]), aggregate)
    p_VKN = softmax(logits_VKN.double().numpy(), axis=1)
    mean_KN = p_VKN.mean(axis=0)
    divergence_VN = (p_VKN * np.log(p_VKN / mean_KN)).sum(axis=1)  # the mean of these is the same quantity
    np.testing.assert_allclose(found_N, divergence_VN.mean(axis=0) / np.log(4), atol=1e-5)


def test_temperature_divides_logits() -> None:
    logits_K = torch.tensor([2.0, 0.0, -4.0])
    torch.testing.assert_close(scores(logits_K, "logits", temperature=2.0), torch.tensor([1.0, 0.0, -2.0]))
    torch.testing.assert_close(scores(logits_K, "mean", temperature=2.0), torch.tensor([1.0, 0.0, -2.0]).softmax(dim=0))
