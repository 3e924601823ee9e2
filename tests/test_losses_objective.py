from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.masks_and_logits import example
from training.data import IGNORE
from training.losses import objective as module
from training.losses.border import border_weights, boundary_loss, relaxed_cross_entropy, signed_distances
from training.losses.cross_entropy import cross_entropy, focal
from training.losses.lovasz import lovasz_softmax
from training.losses.objective import Objective
from training.losses.overlap import soft_dice, soft_jaccard, soft_tversky
from training.losses.terms import LossSettings, Term

TRAINING = [torch.tensor([[0, 0, 0, 1], [0, 0, 0, IGNORE]]), torch.tensor([[0, 0, 1, 2]])]
KINDS = [get_args(member.model_fields["kind"].annotation)[0] for member in get_args(get_args(Term)[0])]
OPTIONS: dict[str, dict[str, Any]] = {
    "focal": {"gamma": 1.5},
    "tversky": {"alpha": 0.2, "beta": 0.9, "gamma": 1.3, "per": "image"},
    "border": {"w0": 5.0, "sigma": 2.0},
}


def _objective(*terms: dict[str, Any], **section: Any) -> Objective:
    settings = LossSettings.model_validate({"terms": list(terms), **section})
    return Objective(settings, task="segmentation", num_classes=4, truths=TRAINING)


def _of_kind(kind: str, **section: Any) -> Objective:
    return _objective({"kind": kind, **OPTIONS.get(kind, {})}, **section)


# --- what every term owes ---


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    logits_BKHW, masks_BHW = example(size=(3, 4))
    loss = _of_kind(kind)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks_BHW, progress=0), (logits_BKHW.double().requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_is_zero_with_a_zero_gradient(kind: str) -> None:
    logits_BKHW = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = _of_kind(kind)(logits_BKHW, torch.full((2, 3, 3), IGNORE), progress=0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits_BKHW.grad is not None and torch.equal(logits_BKHW.grad, torch.zeros_like(logits_BKHW))


@pytest.mark.parametrize("kind", KINDS)
def test_only_valid_pixels_have_a_gradient(kind: str) -> None:
    logits_BKHW, masks_BHW = example()
    logits_BKHW.requires_grad_()
    _of_kind(kind)(logits_BKHW, masks_BHW, progress=0).backward()  # type: ignore[no-untyped-call]
    assert logits_BKHW.grad is not None and logits_BKHW.grad.isfinite().all()
    moves_BHW = logits_BKHW.grad.abs().sum(dim=1) > 0
    assert not moves_BHW[masks_BHW == IGNORE].any()
    assert moves_BHW[masks_BHW != IGNORE].float().mean() > 0.5  # relaxation forgives where all classes are near


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_loss_is_computed_in_float32(kind: str) -> None:
    logits_BKHW, masks_BHW = example()
    halves_BKHW, loss = logits_BKHW.bfloat16(), _of_kind(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(halves_BKHW, masks_BHW, progress=0)
    assert found.dtype == torch.float32
    assert found.item() == loss(halves_BKHW.float(), masks_BHW, progress=0).item()


@pytest.mark.parametrize("kind", KINDS)
def test_truths_and_logits_are_left_as_they_are(kind: str) -> None:
    logits_BKHW, masks_BHW = example()
    before = logits_BKHW.clone(), masks_BHW.clone()
    _of_kind(kind)(logits_BKHW, masks_BHW, progress=0)
    assert torch.equal(logits_BKHW, before[0]) and torch.equal(masks_BHW, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_down_the_slope_lowers_the_loss(kind: str) -> None:
    logits_BKHW, masks_BHW = example()
    logits_BKHW.requires_grad_()
    loss = _of_kind(kind)
    before = loss(logits_BKHW, masks_BHW, progress=0)
    before.backward()  # type: ignore[no-untyped-call]
    assert logits_BKHW.grad is not None
    after = loss(logits_BKHW.detach() - 0.1 * logits_BKHW.grad, masks_BHW, progress=0)
    assert after < before


# --- the terms of a recipe ---


def test_each_term_is_its_function_with_the_recipes_numbers() -> None:
    z, y = example()
    weights_K = torch.tensor([2.0, 1.0, 0.5, 1.0])
    weighed: dict[str, Any] = {"class_weights_K": weights_K}
    expected = {
        "cross-entropy": cross_entropy(z, y, label_smoothing=0.1, **weighed),
        "focal": focal(z, y, gamma=1.5, **weighed),
        "dice": soft_dice(z, y),
        "jaccard": soft_jaccard(z, y),
        "tversky": soft_tversky(z, y, alpha=0.2, beta=0.9, gamma=1.3, per="image"),
        "lovasz": lovasz_softmax(z, y),
        "border": cross_entropy(z, y, label_smoothing=0.1, extra_B=border_weights(y, w0=5.0, sigma=2.0), **weighed),
        "relaxation": relaxed_cross_entropy(z, y, radius=1, **weighed),
        "boundary": boundary_loss(z, y, signed_distances(y, num_classes=4)),
    }
    assert list(expected) == KINDS
    heeding = {
        "cross-entropy": (True, True),
        "focal": (True, False),
        "border": (True, True),
        "relaxation": (True, False),
    }
    for kind, value in expected.items():
        weights, smoothing = heeding.get(kind, (False, False))
        section = {"class_weights": weights_K.tolist()} if weights else {}
        section |= {"label_smoothing": 0.1} if smoothing else {}
        assert _of_kind(kind, **section)(z, y, progress=0).item() == value.item(), kind


def test_terms_are_summed_with_their_weights_at_their_time() -> None:
    logits_BKHW, masks_BHW = example()
    loss = _objective(
        {"kind": "cross-entropy", "weight": 2},
        {"kind": "dice", "weight": 0.5, "end": 0.75},
        {"kind": "lovasz", "weight": 3, "begin": 0.5, "ramp": True},
    )
    entropy, dice, lovasz = (f(logits_BKHW, masks_BHW).item() for f in (cross_entropy, soft_dice, lovasz_softmax))
    expected = {
        0: 2 * entropy + 0.5 * dice,
        0.6: 2 * entropy + 0.5 * dice + 0.6 * lovasz,
        0.8: 2 * entropy + 1.8 * lovasz,
        1: 2 * entropy + 3 * lovasz,
    }
    for progress, value in expected.items():
        assert loss(logits_BKHW, masks_BHW, progress=progress).item() == pytest.approx(value, rel=1e-5)


def test_auxiliary_heads_count_their_share_and_distances_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def counted(masks_BHW: Tensor, *, num_classes: int) -> Tensor:
        computed.append(num_classes)
        return signed_distances(masks_BHW, num_classes=num_classes)

    monkeypatch.setattr(module, "signed_distances", counted)
    main_BKHW, masks_BHW = example()
    heads = (main_BKHW, main_BKHW + torch.randn_like(main_BKHW), torch.zeros_like(main_BKHW))
    loss = _objective({"kind": "cross-entropy"}, {"kind": "boundary"}, auxiliary_weight=0.3)
    main, *others = (loss(head, masks_BHW, progress=0).item() for head in heads)
    computed.clear()
    assert loss(heads, masks_BHW, progress=0).item() == pytest.approx(main + 0.3 * sum(others), rel=1e-5)
    assert computed == [4]


@pytest.mark.parametrize("kind", ["cross-entropy", "focal", "relaxation"])
def test_parts_of_a_batch_weighed_by_their_mass_are_the_batch(kind: str) -> None:
    logits_BKHW, masks_BHW = example()
    masks_BHW[0, :3] = IGNORE
    loss = _of_kind(kind, class_weights="median-frequency")
    parts = list(zip(logits_BKHW.split(1), masks_BHW.split(1), strict=True))
    masses = [loss.mass(truths).item() for _, truths in parts]
    total = sum(mass * loss(*part, progress=0).item() for mass, part in zip(masses, parts, strict=True)) / sum(masses)
    assert total == pytest.approx(loss(logits_BKHW, masks_BHW, progress=0).item(), rel=1e-5)


def test_labels_and_shares_of_labels() -> None:
    logits_BK, labels_B = torch.randn(4, 3), torch.tensor([0, 2, 1, IGNORE])
    training = [torch.tensor(label) for label in (2, 0, 1, 0)]
    settings = LossSettings(class_weights="median-frequency")
    loss = Objective(settings, task="classification", num_classes=3, truths=training)
    weights_K = torch.tensor([0.5, 1, 1])  # of labels, f is the share of all images
    expected = cross_entropy(logits_BK, labels_B, class_weights_K=weights_K)
    assert loss(logits_BK, labels_B, progress=0).item() == pytest.approx(expected.item())
    shares_BK = torch.full((4, 3), 1 / 3)
    expected = cross_entropy(logits_BK, shares_BK, class_weights_K=weights_K)
    assert loss(logits_BK, shares_BK, progress=0).item() == pytest.approx(expected.item())


def test_weights_by_frequency_come_from_the_training_masks() -> None:
    """Shares 8/12 (of both), 2/12, 1/4 (of the second alone), none; the median is 1/4."""
    logits_BKHW, masks_BHW = example()
    weights_K = torch.tensor([0.25 * 12 / 8, 0.25 * 12 / 2, 1, 0])
    for rule, expected_K in {"median-frequency": weights_K, "inverse-sqrt": weights_K.sqrt()}.items():
        found = _objective({"kind": "cross-entropy"}, class_weights=rule)(logits_BKHW, masks_BHW, progress=0)
        assert found.item() == pytest.approx(
            cross_entropy(logits_BKHW, masks_BHW, class_weights_K=expected_K).item(), rel=1e-5
        )


def test_training_truths_are_not_looked_at_without_need() -> None:
    def broken() -> Iterator[Tensor]:
        raise AssertionError("looked at")
        yield

    Objective(LossSettings(), task="segmentation", num_classes=4, truths=broken())


def test_another_number_of_weights_than_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="a number for each of the 4 classes, but got 2: correct the list"):
        _objective({"kind": "cross-entropy"}, class_weights=[1, 2])
