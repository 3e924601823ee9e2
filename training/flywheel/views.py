"""Which views a network can be asked in: those that its training showed it.

In others it may do worse than in one look, and so may their mean: see docs/flywheel.md.
"""

from itertools import product

from segserve.spec import ModelSpec, Plan
from segserve.tta import PLANS
from training.config import AugmentSettings, recipe_of


def trained_plan(augment: AugmentSettings) -> Plan:
    """The plan with the most views, all of which are among the augmentation's turns, flips and scales."""
    turns = range(4) if augment.quarter_turns else (0,)
    hflips, vflips = ((False, True) if flips else (False,) for flips in (augment.hflip, augment.vflip))
    # A vertical flip is a horizontal one and half a turn.
    seen = {(h != v, (turn + 2 * v) % 4) for turn, h, v in product(turns, hflips, vflips)}
    low, high = augment.scale
    plans = [
        plan
        for plan, views in PLANS.items()
        if all((view.hflip, view.turns) in seen and (view.scale == 1 or low <= view.scale <= high) for view in views)
    ]
    return max(plans, key=lambda plan: len(PLANS[plan]))


def plan_of(spec: ModelSpec) -> Plan:
    """The plan of the training that an artifact comes from; a ValueError where it does not tell its recipe."""
    try:
        return trained_plan(recipe_of(spec).augment)
    except ValueError as error:
        raise ValueError(f"{error}: say which views to take by --tta") from None
