"""Objective: what a training minimises, the sum of a recipe's terms over the network's heads.

Auxiliary heads: Szegedy et al. 2015 (GoogLeNet), https://arxiv.org/abs/1409.4842; Lee et al. 2015 (deep supervision),
https://arxiv.org/abs/1409.5185.

Dimensions: B batch, K classes, H, W, N images of the training split.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from segserve.spec import Task
from training.losses.border import border_weights, boundary_loss, relaxed_cross_entropy, signed_distances
from training.losses.cross_entropy import class_counts, class_weights, cross_entropy, element_weights, focal
from training.losses.lovasz import lovasz_softmax
from training.losses.overlap import soft_dice, soft_jaccard, soft_tversky
from training.losses.terms import (
    BorderTerm,
    BoundaryTerm,
    CrossEntropyTerm,
    DiceTerm,
    FocalTerm,
    JaccardTerm,
    LossSettings,
    LovaszTerm,
    RelaxationTerm,
    Term,
    TverskyTerm,
)

Loss = Callable[[Tensor], Tensor]
"""Logits to a scalar, the truth being given."""


class Objective:
    """A recipe's [loss] section, as a function of logits, truths and the progress of the run."""

    def __init__(self, settings: LossSettings, *, task: Task, num_classes: int, truths: Iterable[Tensor]) -> None:
        """Fix the weights of the classes.

        Args:
            settings: the section.
            task: of labels, all images count for every class's frequency, not only those that have it.
            num_classes: K.
            truths: the training masks (H, W) or labels (), class indices or `IGNORE`; looked at only where the section
                asks for weights by frequency.

        Raises:
            ValueError: the section has more or fewer weights than there are classes.
        """
        self.settings = settings
        self.class_weights_K = _weights(settings, task, num_classes, truths)

    def __call__(self, logits: Tensor | tuple[Tensor, ...], truths: Tensor, *, progress: float) -> Tensor:
        """The loss of one batch.

        Args:
            logits: (B, K, H, W) or (B, K), any values; or a tuple of such: the main head, then the auxiliary ones, each
                of which counts `auxiliary_weight`. Half precision is raised to float32.
            truths: int64 masks (B, H, W) or labels (B,), class indices or `IGNORE`; or float (B, K), shares that sum
                to 1.
            progress: share of the run's steps that are done, 0 to 1.

        Returns:
            A scalar; 0 with a zero gradient where nothing is valid.
        """
        main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
        terms = [
            (term.weight_at(progress), self._loss_for(term, truths, num_classes=main.shape[1]))
            for term in self.settings.terms
            if term.is_active(progress)
        ]
        total = _sum(terms, main)
        for head in auxiliary:
            total = total + self.settings.auxiliary_weight * _sum(terms, head)
        return total

    def mass(self, truths: Tensor) -> Tensor:
        """How much these truths count in a mean over parts of a batch: the divisor of cross-entropy, a scalar."""
        like = truths[:, 0] if truths.is_floating_point() else truths.float()
        return element_weights(truths, self.class_weights_K, like=like).sum()

    def _loss_for(self, term: Term, truths: Tensor, *, num_classes: int) -> Loss:
        """What depends on the truths alone is computed here, once for all heads."""
        smoothing = self.settings.label_smoothing
        weights_K = None if self.class_weights_K is None else self.class_weights_K.to(truths.device)
        match term:
            case CrossEntropyTerm():
                return lambda z: cross_entropy(z, truths, class_weights_K=weights_K, label_smoothing=smoothing)
            case FocalTerm():
                return lambda z: focal(z, truths, gamma=term.gamma, class_weights_K=weights_K)
            case BorderTerm():
                extra_BHW = border_weights(truths, w0=term.w0, sigma=term.sigma)
                return lambda z: cross_entropy(
                    z, truths, class_weights_K=weights_K, label_smoothing=smoothing, extra_B=extra_BHW
                )
            case RelaxationTerm():
                return lambda z: relaxed_cross_entropy(z, truths, radius=term.radius, class_weights_K=weights_K)
            case BoundaryTerm():
                signed_BKHW = signed_distances(truths, num_classes=num_classes)
                return lambda z: boundary_loss(z, truths, signed_BKHW)
            case _:
                return _region_loss(term, truths)


def _region_loss(term: DiceTerm | JaccardTerm | TverskyTerm | LovaszTerm, masks_BHW: Tensor) -> Loss:
    match term:
        case DiceTerm():
            return lambda z: soft_dice(z, masks_BHW, per=term.per)
        case JaccardTerm():
            return lambda z: soft_jaccard(z, masks_BHW, per=term.per)
        case LovaszTerm():
            return lambda z: lovasz_softmax(z, masks_BHW, per=term.per)
        case TverskyTerm():
            return lambda z: soft_tversky(
                z, masks_BHW, alpha=term.alpha, beta=term.beta, gamma=term.gamma, per=term.per
            )


def _sum(terms: list[tuple[float, Loss]], logits: Tensor) -> Tensor:
    return torch.stack([weight * loss(logits) for weight, loss in terms]).sum()


def _weights(settings: LossSettings, task: Task, num_classes: int, truths: Iterable[Tensor]) -> Tensor | None:
    given = settings.class_weights
    if given == "none":
        return None
    if isinstance(given, str):
        counts_NK1 = class_counts(truths, num_classes=num_classes)
        return class_weights(given, counts_NK1 if task == "segmentation" else counts_NK1.sum(dim=0, keepdim=True))
    if len(given) != num_classes:
        raise ValueError(
            f"expected loss.class_weights to have a number for each of the {num_classes} classes, "
            f"but got {len(given)}: correct the list"
        )
    return torch.tensor(given, dtype=torch.float32)
