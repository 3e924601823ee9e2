from itertools import product

import pytest
import torch
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor
from torch.nn import functional

from tests.masks_and_logits import example
from training.data import IGNORE
from training.losses.lovasz import lovasz_softmax


def _jaccard_loss(found_N: Tensor, truth_N: Tensor) -> float:
    """1 - IoU, mean over the classes of the truth, by sets."""
    losses = []
    for k in sorted(set(truth_N.tolist())):
        found, truth = (
            {i for i, value in enumerate(values_N.tolist()) if value == k} for values_N in (found_N, truth_N)
        )
        losses.append(1 - len(found & truth) / len(found | truth))
    return sum(losses) / len(losses)


def _certain(found_BHW: Tensor, num_classes: int) -> Tensor:
    """Logits whose softmax is 0 or 1 in float32."""
    return 200.0 * functional.one_hot(found_BHW, num_classes).movedim(-1, 1).float()


def _slow(logits_BKHW: Tensor, masks_BHW: Tensor) -> float:
    """The definition: sort, and let the set of wrong pixels grow by one pixel after the other."""
    valid_BHW = masks_BHW != IGNORE
    truth_N = masks_BHW[valid_BHW]
    probs_NK = logits_BKHW.double().softmax(dim=1).movedim(1, -1)[valid_BHW]
    losses = []
    for k in sorted(set(truth_N.tolist())):
        is_class_N = truth_N == k
        errors_N = torch.where(is_class_N, 1 - probs_NK[:, k], probs_NK[:, k])
        truth, wrong, loss, before = set(is_class_N.nonzero()[:, 0].tolist()), set(), 0.0, 0.0
        for i in errors_N.argsort(descending=True).tolist():
            wrong.add(i)
            now = len(wrong) / len(truth | wrong)
            loss, before = loss + float(errors_N[i]) * (now - before), now
        losses.append(loss)
    return sum(losses) / len(losses)


def test_every_corner_is_the_jaccard_loss() -> None:
    """All 81 certain answers for four pixels of three classes, of which the truth has two."""
    truth_N = torch.tensor([0, 1, 1, 0])
    for answer in product(range(3), repeat=4):
        found_N = torch.tensor(answer)
        loss = lovasz_softmax(_certain(found_N.reshape(1, 2, 2), 3), truth_N.reshape(1, 2, 2))
        assert loss.item() == pytest.approx(_jaccard_loss(found_N, truth_N), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_version(seed: int) -> None:
    logits_BKHW, masks_BHW = example(seed=seed)
    assert lovasz_softmax(logits_BKHW, masks_BHW).item() == pytest.approx(_slow(logits_BKHW, masks_BHW), rel=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
def test_is_smps_loss(per_image: bool) -> None:
    logits_BKHW, masks_BHW = example()
    theirs = LovaszLoss("multiclass", per_image=per_image, ignore_index=IGNORE)(logits_BKHW, masks_BHW)
    found = lovasz_softmax(logits_BKHW, masks_BHW, per="image" if per_image else "batch")
    assert found.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_by_hand() -> None:
    """Two pixels, truth 0, 1, probabilities of class 0: 3/4, 1/2. Errors of each class: 1/2 outside it, 1/4 in it."""
    logits_BKHW = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()[None, :, None]
    loss = lovasz_softmax(logits_BKHW, torch.tensor([[[0, 1]]]))
    # Class 0: first the other pixel (1 - 1/2), then its own (the rest, 1/2). Class 1: its own first, all at once.
    assert loss.item() == pytest.approx(((0.5 * 0.5 + 0.25 * 0.5) + 0.5 * 1) / 2)


def test_many_pixels_keep_their_precision() -> None:
    """Each adds about one millionth: differences of the losses themselves would lose most of it in float32."""
    logits_BKHW = torch.zeros(1, 2, 1000, 1000)
    masks_BHW = torch.ones(1, 1000, 1000, dtype=torch.long)
    masks_BHW[0, 0, 0] = 0
    # All errors are 1/2, in any order they sum up to 1/2 of the loss of an answer that is all wrong, which is 1.
    assert lovasz_softmax(logits_BKHW, masks_BHW).item() == pytest.approx(0.5, rel=1e-5)
