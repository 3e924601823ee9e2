"""The [loss] section of a recipe: which losses are added up, with which weights, and when in the run."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from segserve.settings import Settings

Per = Literal["batch", "image"]
"""Over what sums run before their quotient is taken: a batch comes near the data set's score, an image near its own."""


class _Term(Settings, allow_inf_nan=False):
    """What every term has: how much it counts, and when; `begin` and `end` are shares of the run's steps."""

    weight: float = Field(default=1.0, gt=0.0)
    begin: float = Field(default=0.0, ge=0.0, lt=1.0)
    end: float = Field(default=1.0, gt=0.0, le=1.0)
    ramp: bool = False
    """The weight grows on a straight line from 0 at `begin` to `weight` at `end`."""

    @model_validator(mode="after")
    def _begins_before_its_end(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"expected begin to be less than end ({self.end}), but got {self.begin}: lower it")
        return self

    def is_active(self, progress: float) -> bool:
        """From `begin`, and before `end` (at the run's very end, too, where `end` is 1)."""
        return self.begin <= progress < self.end or progress >= 1.0 == self.end

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the run, 0 to 1."""
        if not self.is_active(progress):
            return 0.0
        return self.weight * (progress - self.begin) / (self.end - self.begin) if self.ramp else self.weight


class CrossEntropyTerm(_Term):
    kind: Literal["cross-entropy"] = "cross-entropy"


class FocalTerm(_Term):
    kind: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0.0)


class DiceTerm(_Term):
    kind: Literal["dice"] = "dice"
    per: Per = "batch"


class JaccardTerm(_Term):
    kind: Literal["jaccard"] = "jaccard"
    per: Per = "batch"


class TverskyTerm(_Term):
    """`alpha` is the price of false positives, `beta` of false negatives; `gamma` the power of each class's loss."""

    kind: Literal["tversky"] = "tversky"
    alpha: float = Field(default=0.3, ge=0.0)
    beta: float = Field(default=0.7, gt=0.0)
    gamma: float = Field(default=1.0, gt=0.0)
    per: Per = "batch"


class LovaszTerm(_Term):
    kind: Literal["lovasz"] = "lovasz"
    per: Per = "batch"


class BorderTerm(_Term):
    """Cross-entropy with U-Net's weights: `w0` more at a class change, gone some `sigma` pixels from it."""

    kind: Literal["border"] = "border"
    w0: float = Field(default=10.0, gt=0.0)
    sigma: float = Field(default=5.0, gt=0.0)


class RelaxationTerm(_Term):
    """Cross-entropy that accepts each class within `radius` pixels (3 x 3 pixels at 1)."""

    kind: Literal["relaxation"] = "relaxation"
    radius: int = Field(default=1, ge=1)


class BoundaryTerm(_Term):
    kind: Literal["boundary"] = "boundary"


Term = Annotated[
    CrossEntropyTerm
    | FocalTerm
    | DiceTerm
    | JaccardTerm
    | TverskyTerm
    | LovaszTerm
    | BorderTerm
    | RelaxationTerm
    | BoundaryTerm,
    Field(discriminator="kind"),
]

FOR_LABELS = ("cross-entropy", "focal")
"""The terms that classification may have: the others are defined on masks."""

SMOOTHED = ("cross-entropy", "border")
WEIGHTED = ("cross-entropy", "focal", "border", "relaxation")


class LossSettings(Settings, allow_inf_nan=False):
    """What is minimised: the sum of the terms."""

    class_weights: Literal["none", "median-frequency", "inverse-sqrt"] | tuple[float, ...] = "none"
    """How much a pixel (or an image) of each class counts, in the cross-entropies and focal; or one number a class."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target spread evenly over the classes, in cross-entropy and border."""
    auxiliary_weight: float = Field(default=0.4, ge=0.0)
    """Of the loss of each auxiliary head, where the network has some."""
    terms: tuple[Term, ...] = Field(default=(CrossEntropyTerm(),), min_length=1)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_are_a_rule_or_numbers(cls, value: Any) -> Any:
        if value in ("none", "median-frequency", "inverse-sqrt") or _are_weights(value):
            return value
        raise ValueError(
            "expected 'none', 'median-frequency', 'inverse-sqrt' or a list with a number for each class, none below 0 "
            f"and not all 0, but got {value!r}: correct it"
        )

    @model_validator(mode="after")
    def _no_setting_is_idle(self) -> Self:
        kinds = [term.kind for term in self.terms]
        idle = {
            "label_smoothing": (self.label_smoothing > 0, SMOOTHED),
            "class_weights": (self.class_weights != "none", WEIGHTED),
        }
        for name, (is_set, users) in idle.items():
            if is_set and not set(users) & set(kinds):
                raise ValueError(
                    f"expected a term that heeds {name} ({', '.join(users)}), but got {', '.join(kinds)}: "
                    f"add one or remove {name}"
                )
        return self

    @model_validator(mode="after")
    def _something_is_minimised_all_along(self) -> Self:
        for share in sorted({0.0, *(term.end for term in self.terms if term.end < 1)}):
            if not any(term.is_active(share) for term in self.terms):
                raise ValueError(
                    f"expected a term to be active at every moment of the run, but none is at {share:g} of it: "
                    "change its begin and end"
                )
        return self


def _are_weights(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in value) and any(value)
