"""The views of a round are those that the training showed the network."""

from itertools import product
from pathlib import Path

import pytest
import torch

from segserve.artifact import Artifact
from segserve.spec import Plan
from segserve.tta import PLANS
from training.config import AugmentSettings, load_recipe
from training.flywheel.views import plan_of, trained_plan

ROOT = Path(__file__).resolve().parents[1]
IMAGE = torch.arange(12).view(1, 3, 4)


def augment(**changes: object) -> AugmentSettings:
    return AugmentSettings.model_validate({"crop": (32, 32), **changes})


def shown(settings: AugmentSettings) -> list[torch.Tensor]:
    """All that the flips and turns make of an image, in the order of `training.augment`."""
    turns = range(4 if settings.quarter_turns else 1)
    images = [torch.rot90(IMAGE, turn, dims=(1, 2)) for turn in turns]
    images += [image.flip(2) for image in images if settings.hflip]
    images += [image.flip(1) for image in images if settings.vflip]
    return images


@pytest.mark.parametrize(("hflip", "vflip", "quarter_turns"), list(product((False, True), repeat=3)))
def test_no_view_is_new_to_the_network_and_no_larger_plan_would_do(
    hflip: bool, vflip: bool, quarter_turns: bool
) -> None:
    settings = augment(hflip=hflip, vflip=vflip, quarter_turns=quarter_turns)
    images = shown(settings)
    suited = [
        plan
        for plan, views in PLANS.items()
        if all(view.scale == 1 and any(torch.equal(view.forward(IMAGE), image) for image in images) for view in views)
    ]
    chosen = trained_plan(settings)
    assert chosen in suited
    assert len(PLANS[chosen]) == max(len(PLANS[plan]) for plan in suited)


@pytest.mark.parametrize(
    ("scale", "hflip", "plan"),
    [
        ((0.75, 1.25), True, "multiscale-hflip"),
        ((0.5, 2.0), False, "multiscale"),
        ((0.8, 1.25), True, "hflip"),
        ((0.75, 1.2), False, "none"),
    ],
)
def test_scales(scale: tuple[float, float], hflip: bool, plan: Plan) -> None:
    assert trained_plan(augment(scale=scale, hflip=hflip)) == plan


@pytest.mark.parametrize(("recipe", "plan"), [("wbc", "d4"), ("isbi2012", "d4"), ("camvid", "multiscale-hflip")])
def test_of_an_artifact_it_is_its_recipes(recipe: str, plan: Plan, artifact: Artifact) -> None:
    told = load_recipe(ROOT / f"training/recipes/{recipe}.toml").model_dump(mode="json")
    provenance = artifact.spec.provenance.model_copy(update={"recipe": told})
    assert plan_of(artifact.spec.model_copy(update={"provenance": provenance})) == plan


def test_an_artifact_without_a_recipe_needs_to_be_told(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match=r"to tell its recipe, but it does not .*: say which views to take by --tta"):
        plan_of(artifact.spec)
