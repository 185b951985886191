"""When a run validates, evaluates and saves: foretold, and as a run does it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LENGTH, fit
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.agenda import Course, Series, agenda, evaluation_steps
from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, RunCheckpointCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.occasions import Occasions, Position
from lit_cpt.plan import plan
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

COURSE = Course(steps=20, tokens_per_step=32, horizon=640, switches=(15,), accumulation=2)
SAVING = "lit_cpt.callbacks.RunCheckpointCallback"


def saving(**settings):
    return {"callbacks": [{"class_path": SAVING, "init_args": settings}]}


def asking(**when):
    return {"callbacks": [{"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": {"when": when}}]}


# As a run does it ----------------------------------------------------------------------------------------


class Watched(RunCheckpointCallback):
    """Notes what is saved, how many files there are at most, and what is validated."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.saved, self.validated, self.most = [], [], 0

    def enlist(self, step, reason):
        self.saved += [step] if step not in self.saved else []
        super().enlist(step, reason)

    def retain(self, trainer):
        files = list(Path(trainer.default_root_dir).glob("checkpoints/step-*"))
        self.most = max(self.most, len(files))
        super().retain(trainer)

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)
        super().on_validation_end(trainer, pl_module)


@pytest.mark.parametrize(("own", "interval", "micro_batch"), [
    ({"every_n_steps": 6, "keep": 1, "keep_every": 4}, 0.3, 1), ({"every_n_steps": 7, "keep": 3}, 7, 2)],
    ids=["share", "micro-batches"])
def test_a_run_validates_and_saves_where_the_agenda_says(sources, tiny, tmp_path, own, interval, micro_batch):
    recipe = Recipe(640, Cosine(1e-2), [Phase("first", Blend({"a": 0.6, "b": 0.4})), Phase(
        "late", Blend({"c": 1.0}), Trigger(eta_over_eta_max=0.2))])
    data = BlendDataModule(recipe, sources, LENGTH, 4, micro_batch, workers=0, validation_blocks=1)
    watched = Watched(**own)
    fit(ContinuedPretraining(recipe, architecture=tiny), data, tmp_path, PhaseSwitchCallback(), watched, max_epochs=1,
        val_check_interval=interval)
    result = plan(recipe, data.batch)
    course = Course(result.steps, result.tokens_per_step, 640, (result.phases[1].start.step,),
                    data.batch.accumulation(1))
    foretold = agenda({"val_check_interval": interval, **saving(**own)}, course)
    assert foretold.validations == Series.of(watched.validated, len(watched.validated))
    assert foretold.checkpoints == Series.of(watched.saved)
    assert foretold.most_checkpoints == watched.most


@given(every_tokens=st.none() | st.integers(1, 200), every_steps=st.none() | st.integers(1, 25),
       fractions=st.lists(st.floats(0.001, 1), max_size=3), turns=st.sets(st.sampled_from(["start", "phase", "end"])),
       horizon=st.integers(609, 640))
@settings(max_examples=100, deadline=None)
def test_evaluations_are_those_that_the_callbacks_own_question_finds_step_by_step(every_tokens, every_steps, fractions,
                                                                                  turns, horizon):
    when = Occasions(every_tokens, every_steps, tuple(fractions), tuple(turns))
    places = [Position(step, 32 * step, min(1.0, 32 * step / horizon)) for step in range(21)]
    counted = {now.step for now in places[1:] if when.reasons(now.one_step_back, now)}
    turning = {"start": 0, "phase": 15, "end": 20}
    found = evaluation_steps(when, Course(20, 32, horizon, (15,)))
    assert set(found) == counted | {turning[turn] for turn in turns}


# In particular -------------------------------------------------------------------------------------------


def test_an_evaluation_of_all_documents_is_told_from_a_sample():
    found = agenda(asking(fractions=[0.25, 0.5], full=["end"]), COURSE)
    assert (found.evaluations, found.whole_evaluations) == (Series(5, (0, 5, 10), 20), 1)
    assert found.checkpoints is None


def test_each_evaluation_is_saved_before_it_is_made():
    both = {"callbacks": [*saving(every_n_steps=8)["callbacks"], *asking(every_steps=6, turns=[])["callbacks"]],
            "limit_val_batches": 0}
    assert agenda(both, COURSE).checkpoints == Series.of([6, 8, 12, 15, 16, 18, 20])


@pytest.mark.parametrize("trainer", [{"limit_val_batches": 0}, {"limit_val_batches": 0.0, "val_check_interval": 2}])
def test_nothing_is_validated_where_the_trainer_is_told_so(trainer):
    assert agenda(trainer, COURSE).validations is None


def test_a_run_without_held_out_text_validates_nothing():
    assert agenda({}, Course(20, 32, 640, validates=False)).validations is None


def test_validations_that_depend_on_the_ranks_or_the_clock_are_not_foretold():
    ranks = agenda({"val_check_interval": 50}, Course(20, 32, 640))
    assert (ranks.validations, len(ranks.not_foretold)) == (None, 1)
    assert "every 50 micro-batches" in ranks.not_foretold[0]
    assert "--trainer.devices" in ranks.not_foretold[0]
    assert agenda({"val_check_interval": "00:15:00"}, COURSE).not_foretold == (
        "validations, and the checkpoints before them, every 00:15:00, by the clock",)


def test_a_run_that_watches_for_forgetting_validates_before_its_first_step_and_saves_nothing_there():
    watched = {"val_check_interval": 10, "callbacks": ["lit_cpt.callbacks.ForgettingCallback", SAVING]}
    found = agenda(watched, COURSE)
    assert found.validations == Series(5, (0, 5, 10), 20)
    assert found.checkpoints == agenda({**watched, "callbacks": [SAVING]}, COURSE).checkpoints
    assert agenda({**watched, "limit_val_batches": 0}, COURSE).validations is None


def test_several_validations_in_a_step_are_all_counted():
    assert agenda({"val_check_interval": 1}, COURSE).validations == Series(40, (0, 1, 2), 20)


def test_callbacks_are_found_by_name_with_arguments_in_either_form():
    short = {"callbacks": [{"class_path": f"{SAVING}", "every_n_steps": 9}], "limit_val_batches": 0}
    assert agenda(short, COURSE) == agenda({**saving(every_n_steps=9), "limit_val_batches": 0}, COURSE)
    assert agenda({"callbacks": [SAVING]}, COURSE).checkpoints is not None


def test_the_best_checkpoint_takes_room_of_its_own():
    plain, monitored = (agenda(saving(every_n_steps=1, **more), COURSE) for more in ({}, {"monitor": "val/a/loss"}))
    assert monitored.most_checkpoints == plain.most_checkpoints + 1 == 5  # 2 newest, the switch, the best, one at work


def test_occasions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="takes no every_step; it takes every_tokens, every_steps, fractions"):
        agenda(asking(every_step=3), COURSE)
    with pytest.raises(ValueError, match=r"fractions=\[2\]"):
        agenda(asking(fractions=[2]), COURSE)
