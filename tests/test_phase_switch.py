from __future__ import annotations

import logging
import re

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, VOCABULARY, SaveAt, fit, ideal_stream, make_trainer, same_weights
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine, Curve, Linear, Warmup
from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset, collate, open_source

FIRST = {"a": 0.60, "b": 0.35, "c": 0.05}
SECOND = {"a": 0.1, "b": 0.2, "c": 0.7}
THIRD = {"b": 0.5, "c": 0.5}
GLOBAL, STEPS = 4, 20
TOKENS = GLOBAL * LENGTH  # per step


def recipe_of(*later, steps=STEPS, curve=None):
    """FIRST, then each (blend, trigger)."""
    phases = [Phase("first", Blend(FIRST)), *(Phase(f"later{i}", Blend(blend), when)
                                              for i, (blend, when) in enumerate(later))]
    return Recipe(steps * TOKENS, curve or Cosine(1e-2), phases)


def switching(steps=STEPS):
    return recipe_of((SECOND, Trigger(eta_over_eta_max=0.2)), steps=steps)


SWITCH = switching().start_steps(TOKENS)[1]
IDEAL = ideal_stream([(0, FIRST), (SWITCH * GLOBAL, SECOND)], STEPS * GLOBAL)


def module_of(recipe, tiny, kind=ContinuedPretraining):
    torch.manual_seed(0)
    return kind(recipe, architecture=tiny)


def data_of(recipe, sources, workers=0, micro=GLOBAL, **settings):
    return BlendDataModule(recipe, sources, LENGTH, GLOBAL, micro, workers=workers, validation_blocks=0, **settings)


def run(recipe, tiny, sources, folder, *callbacks, workers=0, micro=GLOBAL, resume=None, kind=ContinuedPretraining):
    """Train by ``recipe``; returns the module and its diary."""
    module = module_of(recipe, tiny, kind)
    diary = fit(module, data_of(recipe, sources, workers, micro), folder, *callbacks, resume=resume)
    return module, diary


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """An uninterrupted run with checkpoints before, at and after the switch: module, diary, folder."""
    folder = tmp_path_factory.mktemp("whole")
    module, diary = run(switching(), tiny, sources, folder, PhaseSwitchCallback(),
                        SaveAt(folder, 5, SWITCH - 1, SWITCH, SWITCH + 1))
    return module, diary, folder


# The switch ------------------------------------------------------------------------------------------


def test_the_switch_falls_at_the_step_the_recipe_foretells(whole):
    _, diary, folder = whole
    assert SWITCH == 15
    assert diary.names == IDEAL
    [phase] = [event for event in read_events(folder) if event["event"] == "phase"]
    assert (phase["step"], phase["tokens_seen"], phase["weights"]) == (SWITCH, SWITCH * TOKENS, SECOND)
    assert phase["eta"] <= 0.2 * 1e-2 * (1 + 1e-9) < diary.etas[SWITCH - 1]


@pytest.mark.parametrize(("workers", "micro"), [(2, GLOBAL), (3, 1), (0, 2)])
def test_workers_and_accumulation_move_no_sample(sources, tiny, tmp_path, workers, micro):
    callback = PhaseSwitchCallback()
    _, diary = run(switching(), tiny, sources, tmp_path, callback, workers=workers, micro=micro)
    assert diary.names == IDEAL
    assert [(switch["phase"], switch["step"]) for switch in callback.switches] == [("later0", SWITCH)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_accumulation_of_three_switches_between_two_steps(sources, tiny, tmp_path, workers):
    recipe = switching()
    data = BlendDataModule(recipe, sources, LENGTH, 3, 1, workers=workers, validation_blocks=0)
    [_, switch] = recipe.start_steps(3 * LENGTH)
    diary = fit(module_of(recipe, tiny), data, tmp_path, PhaseSwitchCallback())
    steps = recipe.steps(3 * LENGTH)
    assert diary.names == ideal_stream([(0, FIRST), (switch * 3, SECOND)], steps * 3)
    assert len(diary.etas) == steps


def test_the_first_batch_after_the_switch_holds_nothing_of_the_old_blend(sources, tiny, tmp_path):
    recipe = Recipe(STEPS * TOKENS, Cosine(1e-2), [Phase("old", Blend({"a": 0.5, "b": 0.5})),
                                                   Phase("new", Blend({"c": 1.0}), Trigger(eta_over_eta_max=0.2))])
    _, diary = run(recipe, tiny, sources, tmp_path, PhaseSwitchCallback(), workers=2)
    drawn = [source for source, _ in diary.names]
    assert 2 not in drawn[: SWITCH * GLOBAL]
    assert set(drawn[SWITCH * GLOBAL :]) == {2}


def test_a_foretold_switch_rebuilds_no_worker(sources, tiny, tmp_path):
    class Rebuilds(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            self.last = trainer.train_dataloader.rebuilds
            self.first = getattr(self, "first", self.last)

    rebuilds = Rebuilds()
    run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), rebuilds)
    assert rebuilds.first == rebuilds.last


@pytest.mark.parametrize("trigger", [Trigger(eta=2e-3), Trigger(tokens=9 * TOKENS), Trigger(tokens=8 * TOKENS + 1),
                                     Trigger(fraction=0.4), Trigger(step=13)], ids=str)
def test_every_kind_of_trigger_switches_where_the_recipe_says(sources, tiny, tmp_path, trigger):
    recipe = recipe_of((SECOND, trigger))
    switch = recipe.start_steps(TOKENS)[1]
    callback = PhaseSwitchCallback()
    _, diary = run(recipe, tiny, sources, tmp_path, callback)
    assert callback.switches[0]["step"] == switch
    assert diary.names == ideal_stream([(0, FIRST), (switch * GLOBAL, SECOND)], STEPS * GLOBAL)


def test_three_phases_follow_each_other_and_survive_a_resume_between_them(sources, tiny, tmp_path):
    recipe = recipe_of((SECOND, Trigger(step=6)), (THIRD, Trigger(eta_over_eta_max=0.2)))
    ideal = ideal_stream([(0, FIRST), (24, SECOND), (SWITCH * GLOBAL, THIRD)], STEPS * GLOBAL)
    module, diary = run(recipe, tiny, sources, tmp_path, PhaseSwitchCallback(), SaveAt(tmp_path, 6, 8))
    assert diary.names == ideal
    for step in (6, 8):
        resumed, rest = run(recipe, tiny, sources, tmp_path, PhaseSwitchCallback(), workers=2,
                            resume=tmp_path / f"step-{step}.ckpt")
        assert rest.names == ideal[step * GLOBAL :]
        assert same_weights(resumed, module)


def test_a_resume_with_fewer_phases_than_have_begun_is_refused(sources, tiny, tmp_path):
    run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), SaveAt(tmp_path, SWITCH + 1))
    saved = tmp_path / f"step-{SWITCH + 1}.ckpt"
    with pytest.raises(ValueError, match="has begun phase 'later0', but this recipe has only 0 after the first"):
        run(recipe_of(), tiny, sources, tmp_path, PhaseSwitchCallback(), resume=saved)


def test_a_warm_up_below_the_threshold_starts_no_phase(sources, tiny, tmp_path):
    recipe = recipe_of((SECOND, Trigger(eta_over_eta_max=0.2)), curve=Warmup(Linear(1e-2), 0.4))
    switch = recipe.start_steps(TOKENS)[1]
    callback = PhaseSwitchCallback()
    _, diary = run(recipe, tiny, sources, tmp_path, callback)
    assert diary.etas[1] < 0.2 * 1e-2
    assert switch > 8
    assert [change["step"] for change in callback.switches] == [switch]
    assert diary.names == ideal_stream([(0, FIRST), (switch * GLOBAL, SECOND)], STEPS * GLOBAL)


# A rate that is not the recipe's -----------------------------------------------------------------------


class StaysHigh(ContinuedPretraining):
    """A user's module whose own schedule keeps the rate up for 18 steps, whatever the recipe foretold."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 18 else 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


LATE = ideal_stream([(0, FIRST), (18 * GLOBAL, SECOND)], STEPS * GLOBAL)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_foretold_switch_waits_for_the_optimizers_own_rate(sources, tiny, tmp_path, workers, caplog):
    callback = PhaseSwitchCallback()
    with caplog.at_level(logging.WARNING, "lit_cpt.callbacks.phase_switch"):
        _, diary = run(switching(), tiny, sources, tmp_path, callback, workers=workers, kind=StaysHigh)
    assert callback.switches[0]["step"] == 18
    assert diary.names == LATE
    assert re.search(f"foretold for step {SWITCH}.*eta_over_eta_max=0.2.* is not reached", caplog.text)


@pytest.mark.parametrize("step", [SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_switch_that_waits_goes_on_waiting_after_a_resume(sources, tiny, tmp_path, step):
    _, diary = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), SaveAt(tmp_path, step), kind=StaysHigh)
    assert diary.names == LATE
    _, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), resume=tmp_path / f"step-{step}.ckpt",
                  kind=StaysHigh)
    assert rest.names == LATE[step * GLOBAL :]


class Stairs(Curve):
    """A user's curve that never falls below a half."""

    def __init__(self, eta_max):
        self.eta_max = eta_max

    def eta(self, progress):
        return self.eta_max * (1.0 if progress < 0.5 else 0.5)


def test_a_trigger_that_the_curve_never_reaches_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"eta=0\.002 is never reached: this curve runs from 0\.01 to 0\.005"):
        recipe_of((SECOND, Trigger(eta_over_eta_max=0.2)), curve=Stairs(1e-2))


# Resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "workers", "micro"), [(5, 2, GLOBAL), (SWITCH - 1, 0, GLOBAL), (SWITCH, 2, GLOBAL),
                                                        (SWITCH, 0, GLOBAL), (SWITCH + 1, 3, GLOBAL)])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(whole, sources, tiny, tmp_path, step, workers, micro):
    module, _, folder = whole
    resumed, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), workers=workers, micro=micro,
                        resume=folder / f"step-{step}.ckpt")
    assert rest.names == IDEAL[step * GLOBAL :]
    assert same_weights(resumed, module)


@pytest.mark.parametrize("step", [5, SWITCH + 1])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_run_resumed_with_another_micro_batch_reads_the_same_samples(whole, sources, tiny, tmp_path, step, micro):
    _, diary, folder = whole
    _, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), micro=micro,
                  resume=folder / f"step-{step}.ckpt")
    assert rest.names == IDEAL[step * GLOBAL :]
    assert rest.etas == diary.etas[step:]


@pytest.mark.parametrize("step", [5, SWITCH])
def test_a_run_that_accumulates_ends_after_a_resume_as_if_it_had_not_stopped(sources, tiny, tmp_path, step):
    module, diary = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), SaveAt(tmp_path, step), micro=1)
    resumed, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), micro=1, workers=2,
                        resume=tmp_path / f"step-{step}.ckpt")
    assert rest.names == IDEAL[step * GLOBAL :]
    assert rest.etas == diary.etas[step:]
    assert same_weights(resumed, module)


@pytest.mark.parametrize("step", [SWITCH - 1, SWITCH])
def test_a_checkpoint_saved_just_before_the_switch_was_noticed_resumes_the_same(sources, tiny, tmp_path, step):
    _, diary = run(switching(), tiny, sources, tmp_path, SaveAt(tmp_path, step), PhaseSwitchCallback())
    assert diary.names == IDEAL
    _, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), resume=tmp_path / f"step-{step}.ckpt")
    assert rest.names == IDEAL[step * GLOBAL :]


class Broken(ContinuedPretraining):
    """Fails inside one batch."""

    at = -1

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.at:
            raise RuntimeError("the disk is full")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("step", "workers"), [(7, 2), (SWITCH - 1, 0), (SWITCH, 0), (SWITCH + 1, 0)])
def test_a_run_that_fails_inside_a_batch_resumes_with_that_batch(whole, sources, tiny, tmp_path, step, workers):
    kind = type("BrokenHere", (Broken,), {"at": step})
    with pytest.raises(RuntimeError, match="the disk is full"):
        run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), OnExceptionCheckpoint(tmp_path, "failed"),
            workers=workers, kind=kind)
    resumed, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), resume=tmp_path / "failed.ckpt")
    assert rest.names == IDEAL[step * GLOBAL :]
    assert same_weights(resumed, whole[0])


def test_a_run_that_fails_in_the_middle_of_an_accumulation_resumes_with_the_whole_step(sources, tiny, tmp_path):
    class FailsInside(ContinuedPretraining):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4 * 6 + 2:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="the disk is full"):
        run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), OnExceptionCheckpoint(tmp_path, "failed"),
            micro=1, kind=FailsInside)
    _, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(), micro=1, resume=tmp_path / "failed.ckpt")
    assert rest.names == IDEAL[6 * GLOBAL :]


def test_a_checkpoint_at_the_boundary_is_saved_if_asked_and_resumes_there(whole, sources, tiny, tmp_path):
    run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(checkpoint=True))
    resumed, rest = run(switching(), tiny, sources, tmp_path, PhaseSwitchCallback(checkpoint=True),
                        resume=tmp_path / "checkpoints" / "phase-later0.ckpt")
    assert rest.names == IDEAL[SWITCH * GLOBAL :]
    assert same_weights(resumed, whole[0])


def test_no_checkpoint_is_saved_unasked(whole):
    assert not (whole[2] / "checkpoints").exists()


# In a project that uses nothing else of ours -------------------------------------------------------------


class Foreign(pl.LightningModule):
    """Somebody's module: a table of bigrams."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.table(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 4, 1 - (step - 4) / 16))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ForeignData(pl.LightningDataModule):
    """Somebody's data: the blended loader and nothing more."""

    def __init__(self, sources, workers):
        super().__init__()
        self.sources, self.workers = sources, workers

    def train_dataloader(self):
        dataset = BlendedStreamingDataset({name: open_source(folder, LENGTH) for name, folder in self.sources.items()},
                                          FIRST)
        return BlendedDataLoader(dataset, GLOBAL, STEPS, num_workers=self.workers, collate_fn=collate)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("trigger", "switch"), [({"eta_over_eta_max": 0.2}, 17), ({"eta": 0.05}, 12),
                                                 ({"step": 9}, 9)])
def test_the_callback_works_alone_in_a_foreign_project(sources, tmp_path, trigger, switch, workers):
    callback = PhaseSwitchCallback(weights={"a": 1, "b": 2, "c": 7}, **trigger)
    diary = fit(Foreign(), ForeignData(sources, workers), tmp_path, callback, max_steps=STEPS)
    assert [change["step"] for change in callback.switches] == [switch]
    assert diary.names == ideal_stream([(0, FIRST), (switch * GLOBAL, SECOND)], STEPS * GLOBAL)


@pytest.mark.parametrize("step", [11, 12, 13])
def test_a_foreign_project_resumes_around_its_switch(sources, tmp_path, step):
    def callback():
        return PhaseSwitchCallback(weights=SECOND, eta=0.05)

    module = Foreign()
    fit(module, ForeignData(sources, 0), tmp_path, callback(), SaveAt(tmp_path, step), max_steps=STEPS)
    resumed = Foreign()
    rest = fit(resumed, ForeignData(sources, 2), tmp_path, callback(), max_steps=STEPS,
               resume=tmp_path / f"step-{step}.ckpt")
    assert rest.names == ideal_stream([(0, FIRST), (48, SECOND)], STEPS * GLOBAL)[step * GLOBAL :]
    assert same_weights(resumed, module)


def test_any_loader_with_set_weights_is_told_at_the_switch(sources, tmp_path):
    class Told(DataLoader):
        told = ()

        def set_weights(self, weights):
            self.told = (*self.told, weights)

    loader = Told([torch.zeros(LENGTH + 1, dtype=torch.long)] * 10, batch_size=1)
    make_trainer(tmp_path, PhaseSwitchCallback(weights={"x": 1.0}, step=3), max_steps=6).fit(Foreign(), loader)
    assert loader.told == ({"x": 1.0},)


# Refusals ------------------------------------------------------------------------------------------------


def test_a_trigger_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"a trigger without weights: give the blend to switch to, weights=\{\.\.\.\}"):
        PhaseSwitchCallback(step=3)


@pytest.mark.parametrize(("given", "listed"), [({}, "none"), ({"eta": 1e-5, "step": 3}, "eta, step")])
def test_weights_without_exactly_one_trigger_are_refused(given, listed):
    with pytest.raises(ValueError, match=f"exactly one of .*; given: {listed}"):
        PhaseSwitchCallback(weights=FIRST, **given)


def test_a_loader_that_cannot_switch_is_refused_by_its_type(tmp_path):
    loader = DataLoader([torch.zeros(LENGTH + 1, dtype=torch.long)] * 10)
    with pytest.raises(ValueError, match=r"found the train loaders DataLoader; it needs exactly one, with set_weights"):
        make_trainer(tmp_path, PhaseSwitchCallback(weights=FIRST, step=3), max_steps=6).fit(Foreign(), loader)
