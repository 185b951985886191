"""In what a run differs from the paper's recipe (arXiv 2407.07263), whatever its size. Torch-free.

Not compared: the horizon, eta_max and the blends, which are each model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from lit_cpt.plan import Plan
from lit_cpt.recipe import AdamW, Recipe
from lit_cpt.schedules import Cosine, Curve, Rewarm

FLOOR = 100  # the paper's eta_max over its eta_min
SWITCH = 5  # the paper's eta_max over the rate at which its blend changes
CLOSE = 1e-6  # relative; the rounding of a rate that was written out
ALIKE = "as in the paper (arXiv 2407.07263): no warm-up, cosine to eta_max/100, one switch where the paper has it"


def departures(recipe: Recipe, result: Plan, model: Mapping[str, Any]) -> list[str]:
    """What differs, one entry each; empty for a run that does as the paper's.

    Args:
        recipe: The run's.
        result: Its plan.
        model: The ``model`` part of its config; empty where none is given yet.
    """
    return [*of_curve(recipe.curve), *of_phases(recipe, result), *of_optimizer(recipe.optimizer), *of_start(model)]


def of_curve(curve: Curve) -> Iterator[str]:
    """Climb, shape and floor."""
    while isinstance(curve, Rewarm):
        yield f"climbs over the first {curve.fraction:.3g} of the horizon; the paper: no warm-up"
        curve = curve.curve
    if not isinstance(curve, Cosine):
        yield f"curve {type(curve).__name__}; the paper: Cosine"
    end = curve.eta(1.0)
    if abs(end * FLOOR / curve.eta_max - 1) > CLOSE:
        yield f"ends at {over(curve.eta_max, end)}; the paper: eta_max/{FLOOR}"


def of_phases(recipe: Recipe, result: Plan) -> Iterator[str]:
    """How many, and where the second begins."""
    if len(result.phases) != 2:
        yield f"{len(result.phases)} phase{'s' * (len(result.phases) > 1)}; the paper: 2, a general and a QA blend"
    for phase in result.phases[1:2]:
        if phase.start is None:
            yield f"switches when {phase.when}; the paper: at eta_max/{SWITCH}"
        elif phase.start.step not in [at.step for _, at in result.other_triggers]:
            yield f"switches at {over(recipe.curve.eta_max, phase.start.eta)}; the paper: at eta_max/{SWITCH}"


def of_optimizer(given: AdamW) -> Iterator[str]:
    """AdamW's settings, whose defaults are the paper's."""
    for item in fields(AdamW):
        value, papers = getattr(given, item.name), getattr(AdamW(), item.name)
        if value != papers:
            yield f"{item.name} {value}; the paper: {papers}"


def of_start(model: Mapping[str, Any]) -> Iterator[str]:
    """What training begins with."""
    if model.get("architecture") is not None:
        yield "begins with random weights; the paper: pretrained ones"
    elif model.get("pretrained") is not None and model.get("optimizer_state") is None:
        yield "AdamW starts cold; the paper: with pretraining's state (model.optimizer_state)"


def over(eta_max: float, eta: float) -> str:
    """A rate as a part of the highest, such as ``eta_max/5``."""
    return f"eta_max/{eta_max / eta:.3g}" if eta else "0"
