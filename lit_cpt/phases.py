"""Which phases of a run have begun and what is to come, as its callbacks know it."""

from __future__ import annotations

from typing import Any

from lit_cpt.recipe import Recipe


def phases_begun(trainer: Any) -> list[tuple[str, int]]:
    """Name and first step of each phase that has begun; a run without phases is one that is called ``all``."""
    recipe = getattr(trainer.lightning_module, "recipe", None)
    first = recipe.phases[0].name if isinstance(recipe, Recipe) else "all"
    switches = next((callback.switches for callback in trainer.callbacks if hasattr(callback, "switches")), ())
    return [(first, 0), *((switch["phase"], switch["step"]) for switch in switches)]


def phase_of(begun: list[tuple[str, int]], step: int) -> str:
    """The phase in which the step was trained that made it ``step`` steps.

    >>> phase_of([("general", 0), ("qa", 70)], 70), phase_of([("general", 0), ("qa", 70)], 71)
    ('general', 'qa')
    """
    return [name for name, first in begun if first < max(step, 1)][-1]


def next_phase(trainer: Any) -> tuple[str, int] | None:
    """Name of the phase that is to begin, and the step after which it does; None where no recipe foretells one."""
    module = trainer.lightning_module
    recipe, batch = getattr(module, "recipe", None), getattr(module, "batch_geometry", None)
    if not isinstance(recipe, Recipe) or batch is None:
        return None
    starts, place = recipe.foretold(batch.tokens_per_step), len(phases_begun(trainer))
    return (recipe.phases[place].name, starts[place]) if place < len(starts) else None


def next_event(trainer: Any) -> tuple[str, int] | None:
    """What comes first, and the step after which: the next phase, or what a callback foretells by ``coming(trainer)``.

    None where nothing is foretold.
    """
    told = [next_phase(trainer), *(one.coming(trainer) for one in trainer.callbacks if hasattr(one, "coming"))]
    ahead = [event for event in told if event is not None and event[1] > trainer.global_step]
    return min(ahead, key=lambda event: event[1], default=None)
