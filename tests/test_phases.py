from __future__ import annotations

from types import SimpleNamespace

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback
from lit_cpt.phases import next_event, next_phase, phase_of, phases_begun
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine


def trainer_of(recipe=None, *callbacks):
    module = SimpleNamespace(recipe=recipe, batch_geometry=Batch(10, 1))
    return SimpleNamespace(lightning_module=module, callbacks=list(callbacks))


def test_phases_are_the_first_of_the_recipe_and_those_that_were_switched_to():
    blend = Blend({"web": 1.0})
    recipe = Recipe(1000, Cosine(1e-3), (Phase("general", blend), Phase("qa", blend, Trigger(step=7))))
    switch = PhaseSwitchCallback()
    assert phases_begun(trainer_of(recipe, switch)) == [("general", 0)]
    switch.switches.append({"phase": "qa", "step": 7, "eta": 1e-4})
    assert phases_begun(trainer_of(recipe, switch)) == [("general", 0), ("qa", 7)]


def test_a_run_without_a_recipe_is_one_phase():
    assert phases_begun(trainer_of()) == [("all", 0)]


def test_the_step_that_ends_at_a_switch_belongs_to_the_phase_before():
    begun = [("general", 0), ("qa", 7)]
    assert [phase_of(begun, step) for step in (0, 1, 7, 8)] == ["general", "general", "general", "qa"]


def test_the_phase_to_come_is_told_until_none_waits_or_a_metric_decides():
    blend = Blend({"web": 1.0})
    phases = (Phase("general", blend), Phase("qa", blend, Trigger(step=7)),
              Phase("late", blend, Trigger(metric="val/qa/loss < 1")))
    switch = PhaseSwitchCallback()
    trainer = trainer_of(Recipe(1000, Cosine(1e-3), phases), switch)
    assert next_phase(trainer) == ("qa", 7)
    switch.switches.append({"phase": "qa", "step": 7, "eta": 1e-4})
    assert next_phase(trainer) is None
    assert next_phase(trainer_of()) is None


def test_of_what_is_foretold_the_first_that_is_ahead_comes_next():
    blend = Blend({"web": 1.0})
    recipe = Recipe(1000, Cosine(1e-3), (Phase("general", blend), Phase("qa", blend, Trigger(step=7))))
    evaluation = SimpleNamespace(coming=lambda trainer: ("evaluation", trainer.evaluates))
    trainer = trainer_of(recipe, evaluation)
    trainer.global_step, trainer.evaluates = 3, 5
    assert next_event(trainer) == ("evaluation", 5)
    trainer.evaluates = 7
    assert next_event(trainer) == ("qa", 7)
    trainer.global_step = 7
    assert next_event(trainer) is None
