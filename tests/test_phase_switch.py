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
    callback = PhaseSwitchCallback()
    callback.load_state_dict({"eta_peak": 1e-2, "switches": [{"phase": "later0", "step": 15, "eta": 2e-3}]})
    with pytest.raises(ValueError, match="has begun phase 'later0', but this recipe has only 0 after the first"):
        run(recipe_of(), tiny, sources, tmp_path, callback)


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
                        resume=tmp_path / "checkpoints" / f"step-{SWITCH:08d}.ckpt")
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

    def val_dataloader(self):
        return DataLoader([torch.zeros(LENGTH + 1)])

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


def scheduled(make, **config):
    """A foreign module whose optimizer is scheduled by what ``make`` returns."""
    class Scheduled(Foreign):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD([{"params": [self.table.weight], "lr": 0.1},
                                         {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.02}])
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **config}}

        def on_train_epoch_end(self):
            self.log("stuck", 1.0)

    return Scheduled()


SCHEDULES = {
    # OneCycleLR climbs from 0.004 to 0.1 in 5 steps and is down to a fifth when 16 are made.
    "one cycle": (lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, [0.1, 0.02], total_steps=STEPS, pct_start=0.25),
                  {"interval": "step"}, 15),
    "steps of an epoch": (lambda opt: torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.2), {"interval": "epoch"}, 10),
    "plateau of an epoch": (lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.2),
                            {"interval": "epoch", "monitor": "stuck"}, 10),
    # Lightning steps it after the last hook of a step: the switch comes one step later.
    "plateau of a step": (lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.2),
                          {"interval": "step", "frequency": 3, "monitor": "stuck"}, 9),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("workers", [0, 2])
def test_any_scheduler_switches_between_two_batches(sources, tmp_path, name, workers):
    make, config, switch = SCHEDULES[name]
    module, callback = scheduled(make, **config), PhaseSwitchCallback(weights=SECOND, eta_over_eta_max=0.2)
    if name == "plateau of a step":
        module.on_train_batch_start = lambda *_: module.log("stuck", 1.0)
    diary = fit(module, ForeignData(sources, workers), tmp_path, callback, max_steps=STEPS, limit_train_batches=5)
    assert [change["step"] for change in callback.switches] == [switch]
    assert diary.names == ideal_stream([(0, FIRST), (switch * GLOBAL, SECOND)], STEPS * GLOBAL)


def test_the_rate_is_that_of_the_highest_parameter_group(sources, tmp_path):
    def falls_alone(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0 if step < 9 else 0.2,
                                                             lambda step: 1.0 if step < 4 else 0.2])

    callback = PhaseSwitchCallback(weights=SECOND, eta_over_eta_max=0.2)
    fit(scheduled(falls_alone, interval="step"), ForeignData(sources, 0), tmp_path, callback, max_steps=STEPS)
    assert [(change["step"], change["eta"]) for change in callback.switches] == [(9, pytest.approx(0.02))]


class ByHand(Foreign):
    """Manual optimization: steps on every third batch, with a scheduler of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()
            self.lr_schedulers().step()


@pytest.mark.parametrize("workers", [0, 2])
def test_manual_optimization_switches_after_the_step_that_lowers_the_rate(sources, tmp_path, workers):
    callback = PhaseSwitchCallback(weights=SECOND, eta=0.09)
    diary = fit(ByHand(), ForeignData(sources, workers), tmp_path, callback, SaveAt(tmp_path, 5, 6), max_steps=6)
    # Rates climb to 0.1 in four steps and fall to 0.1 * 15/16 with the fifth, 14/16 with the sixth.
    assert [change["step"] for change in callback.switches] == [6]
    longer = PhaseSwitchCallback(weights=SECOND, eta=0.095)
    diary = fit(ByHand(), ForeignData(sources, workers), tmp_path, longer, max_steps=6)
    assert [change["step"] for change in longer.switches] == [5]
    assert diary.names == ideal_stream([(0, FIRST), (15 * GLOBAL, SECOND)], 18 * GLOBAL)


class FailsAt(Foreign):
    """Fails inside one batch of a foreign project."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 7:
            raise RuntimeError("the disk is full")
        return super().training_step(batch, batch_idx)


def test_a_foreign_run_that_fails_inside_a_batch_resumes_with_that_batch(sources, tmp_path):
    def callback():
        return PhaseSwitchCallback(weights=SECOND, step=5)

    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(FailsAt(), ForeignData(sources, 2), tmp_path, callback(), OnExceptionCheckpoint(tmp_path, "failed"),
            max_steps=STEPS)
    rest = fit(Foreign(), ForeignData(sources, 0), tmp_path, callback(), max_steps=STEPS,
               resume=tmp_path / "failed.ckpt")
    assert rest.names == ideal_stream([(0, FIRST), (5 * GLOBAL, SECOND)], STEPS * GLOBAL)[7 * GLOBAL :]


@pytest.mark.parametrize(("asked", "saved"), [(None, True), (False, False)])
def test_a_project_that_saves_gets_a_checkpoint_at_the_switch_unless_told_not_to(sources, tmp_path, asked, saved):
    saving = pl.callbacks.ModelCheckpoint(tmp_path / "mine", every_n_train_steps=100)
    callback = PhaseSwitchCallback(weights=SECOND, step=5, checkpoint=asked)
    fit(Foreign(), ForeignData(sources, 0), tmp_path, callback, saving, max_steps=8)
    assert (tmp_path / "checkpoints" / "step-00000005.ckpt").exists() == saved


def test_a_loader_made_anew_for_an_epoch_keeps_the_weights_of_the_phase(sources, tmp_path):
    callback = PhaseSwitchCallback(weights={"c": 1.0}, step=5)
    diary = fit(Foreign(), ForeignData(sources, 0), tmp_path, callback, max_steps=STEPS, limit_train_batches=8,
                reload_dataloaders_every_n_epochs=1)
    drawn = [source for source, _ in diary.names]
    assert 0 in drawn[: 5 * GLOBAL]
    assert set(drawn[5 * GLOBAL :]) == {2}


# A metric ----------------------------------------------------------------------------------------------------


class Tells(Foreign):
    """Logs the values it is given: one for each training step, one for each validation."""

    def __init__(self, steps=(), validations=(), late=False):
        super().__init__()
        self.steps, self.validations, self.late = steps, validations, late

    def training_step(self, batch, batch_idx):
        if self.steps and not self.late:
            self.log("told", self.steps[self.trainer.global_step])
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_):
        if self.late and self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self.log("told", self.steps[self.trainer.global_step - 1])

    def validation_step(self, batch, batch_idx):
        self.log("val/told", self.validations[self.trainer.global_step // 4 - 1])


def told_run(sources, folder, module, metric, *callbacks, workers=0, resume=None, **settings):
    """Run with a metric's trigger; returns the steps of the switches and what was trained."""
    callback = PhaseSwitchCallback(weights=SECOND, metric=metric)
    diary = fit(module, ForeignData(sources, workers), folder, callback, *callbacks, resume=resume,
                **{"max_steps": STEPS, "limit_val_batches": 0.0, "log_every_n_steps": 4, **settings})
    return [change["step"] for change in callback.switches], diary.names


FALLING = [2.0 - 0.1 * step for step in range(STEPS)]  # below 1.15 from the ninth on, told by step 9, looked at at 12


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("metric", "late", "switch"), [("told < 1.15", False, 12), ("told <= 1.1000001", True, 13),
                                                        ("told > 1.95", False, 1), ("told < 0.01", False, None)])
def test_a_logged_value_past_its_bound_switches_at_the_next_look(sources, tmp_path, metric, late, switch, workers):
    switches, names = told_run(sources, tmp_path, Tells(FALLING, late=late), metric, workers=workers)
    assert switches == ([] if switch is None else [switch])
    legs = [(0, FIRST)] + ([] if switch is None else [(switch * GLOBAL, SECOND)])
    assert names == ideal_stream(legs, STEPS * GLOBAL)


@pytest.mark.parametrize("step", [7, 8, 9, 12])
def test_a_validation_past_the_bound_switches_before_the_next_batch_and_resumes_there(sources, tmp_path, step):
    validations = [2.0, 1.0, float("nan"), 2.0, 2.0]
    ideal = ideal_stream([(0, FIRST), (8 * GLOBAL, SECOND)], STEPS * GLOBAL)
    settings = {"limit_val_batches": 1, "val_check_interval": 4}

    class SaveAfterValidation(pl.callbacks.Checkpoint):
        def on_validation_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"step-{trainer.global_step}.ckpt")

    saving = SaveAt(tmp_path, 7, 9), SaveAfterValidation()
    switches, names = told_run(sources, tmp_path, Tells((), validations), "val/told <= 1", *saving, **settings)
    assert (switches, names) == ([8], ideal)
    switches, rest = told_run(sources, tmp_path, Tells((), validations), "val/told <= 1", **settings, workers=2,
                              resume=tmp_path / f"step-{step}.ckpt")
    assert (switches, rest) == ([8], ideal[step * GLOBAL :])


def test_a_value_that_is_no_number_is_past_no_bound(sources, tmp_path):
    for metric in ("told < 9", "told >= 0"):
        assert told_run(sources, tmp_path, Tells([float("nan")] * STEPS), metric)[0] == []


def test_a_metric_that_nobody_logs_is_named_with_those_there_are(sources, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lit_cpt"):
        told_run(sources, tmp_path, Tells(FALLING), "val/qa/loss < 1.2")
    [record] = [record for record in caplog.records if record.name.startswith("lit_cpt")]
    assert record.getMessage() == ("phase switched waits for val/qa/loss < 1.2, but nothing is logged as "
                                   "'val/qa/loss'; there are: told")


def test_a_value_logged_before_its_phase_was_waited_for_does_not_count(sources, tiny, tmp_path):
    recipe = recipe_of((SECOND, Trigger(step=10)), (THIRD, Trigger(metric="told < 1.2")), (FIRST, Trigger(step=12)))

    class Once(ContinuedPretraining):
        def on_train_batch_end(self, *_):
            super().on_train_batch_end(*_)
            if self.trainer.global_step in self.at:
                self.log("told", 1.0)

    for at, switches in (((5,), [10]), ((5, 14), [10, 15, 16])):
        callback = PhaseSwitchCallback()
        kind = type("OnceHere", (Once,), {"at": at})
        module, data = module_of(recipe, tiny, kind), data_of(recipe, sources)
        diary = fit(module, data, tmp_path, callback, log_every_n_steps=1)
        assert [change["step"] for change in callback.switches] == switches
        legs = list(zip([0, *(step * GLOBAL for step in switches)], (FIRST, SECOND, THIRD, FIRST), strict=False))
        assert diary.names == ideal_stream(legs, STEPS * GLOBAL)


@pytest.mark.parametrize("step", [7, 8, 9])
def test_our_own_losses_decide_alike_after_a_resume(sources, tiny, tmp_path, step):
    class Watch(pl.Callback):
        seen = ()

        def on_validation_end(self, trainer, *_):
            self.seen = (*self.seen, float(trainer.callback_metrics["val/a/loss"]))

    watch, module = Watch(), module_of(recipe_of(), tiny)
    data = BlendDataModule(module.recipe, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=4)
    fit(module, data, tmp_path / "watch", watch, val_check_interval=4)
    assert list(watch.seen) == sorted(watch.seen, reverse=True)
    bound = (watch.seen[0] + watch.seen[1]) / 2
    recipe = recipe_of((SECOND, Trigger(metric=f"val/a/loss < {bound}")))

    def fitted(resume=None, *callbacks):
        callback = PhaseSwitchCallback()
        data = BlendDataModule(recipe, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=4)
        diary = fit(module_of(recipe, tiny), data, tmp_path, callback, *callbacks, resume=resume, val_check_interval=4)
        return [change["step"] for change in callback.switches], diary.names

    ideal = ideal_stream([(0, FIRST), (8 * GLOBAL, SECOND)], STEPS * GLOBAL)
    assert fitted(None, SaveAt(tmp_path, step)) == ([8], ideal)
    assert fitted(tmp_path / f"step-{step}.ckpt") == ([8], ideal[step * GLOBAL :])


# Refusals ------------------------------------------------------------------------------------------------


def test_a_trigger_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"a trigger without weights: give the blend to switch to, weights=\{\.\.\.\}"):
        PhaseSwitchCallback(step=3)


@pytest.mark.parametrize(("given", "listed"), [({}, "none"), ({"eta": 1e-5, "step": 3}, "eta, step")])
def test_weights_without_exactly_one_trigger_are_refused(given, listed):
    with pytest.raises(ValueError, match=f"exactly one of .*; given: {listed}"):
        PhaseSwitchCallback(weights=FIRST, **given)


def test_a_list_of_weights_for_sources_that_have_names_is_refused(sources, tmp_path):
    with pytest.raises(ValueError, match=r"weights=\[0\.5, 0\.5\] are a list, but .*=\{a: \.\.\., b: \.\.\., c: "):
        fit(Foreign(), ForeignData(sources, 0), tmp_path, PhaseSwitchCallback(weights=[1, 1], step=3), max_steps=4)


def test_weights_for_a_source_that_is_not_there_are_refused_before_training(sources, tmp_path):
    with pytest.raises(ValueError, match="weights name 'qa', which no source is called"):
        fit(Foreign(), ForeignData(sources, 0), tmp_path, PhaseSwitchCallback(weights={"qa": 1}, step=3), max_steps=4)
