from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, same_weights

from lit_cpt.blends import Blend
from lit_cpt.callbacks import ForgettingCallback, PhaseSwitchCallback, RunCheckpointCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.report.runs import read_scalars
from lit_cpt.schedules import Cosine

GLOBAL, STEPS = 4, 20
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(5e-2), (
    Phase("general", Blend({"a": 1.0})), Phase("qa", Blend({"b": 1.0}), Trigger(step=18))))


class Scripted(ContinuedPretraining):
    """Its validation losses are written down beforehand: by step, of each source."""

    script: dict[int, dict[str, float]] = {}  # noqa: RUF012
    changes: dict[int, float] = {}  # noqa: RUF012

    def on_validation_epoch_end(self):
        if self.script:
            self.publish({f"val/{name}/loss": value for name, value in self.script[self.trainer.global_step].items()})
        else:
            super().on_validation_epoch_end()

    def on_train_batch_end(self, *given):
        super().on_train_batch_end(*given)
        if self.trainer.global_step in self.changes:
            self.publish({"eval/mmlu/change": self.changes[self.trainer.global_step]})


def run(sources, tiny, folder, guard, *callbacks, script=None, changes=None, resume=None):
    torch.manual_seed(0)
    module = Scripted(RECIPE, architecture=tiny)
    module.script, module.changes = script or {}, changes or {}
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=4)
    diary = fit(module, data, folder, PhaseSwitchCallback(), *callbacks, guard, resume=resume, val_check_interval=4,
                log_every_n_steps=2)
    return module, diary


def losses(*of_web, **others):
    """A script: the loss of web at steps 0, 4, 8 and so on, with others beside it."""
    return {4 * place: {"web": value, **others} for place, value in enumerate(of_web)}


def told(folder, kind):
    return [(event["step"], event["why"]) for event in read_events(folder) if event["event"] == kind]


def test_the_baseline_is_validated_before_the_first_step_and_training_is_as_without_it(sources, tiny, tmp_path):
    guard = ForgettingCallback(loss_limit=100)
    guarded, mine = run(sources, tiny, tmp_path / "guarded", guard)
    free, theirs = run(sources, tiny, tmp_path / "free", RunCheckpointCallback())
    assert set(guard.losses) == {"a", "b", "c"}
    assert guard.losses["a"] == pytest.approx(4.16, abs=0.1)  # of a model that knows nothing: log 64
    assert mine.names == theirs.names
    assert same_weights(guarded, free)


def test_a_source_over_its_limit_is_told_once_until_it_has_come_back(sources, tiny, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lit_cpt.callbacks.forgetting")
    run(sources, tiny, tmp_path, ForgettingCallback(), script=losses(2.0, 2.2, 2.3, 2.05, 2.4, 2.0, code=1.0))
    assert told(tmp_path, "forgetting") == [(4, "loss web 2 -> 2.2 (limit 0.1)"), (16, "loss web 2 -> 2.4 (limit 0.1)")]
    assert caplog.records[0].getMessage() == "forgetting at step 4: loss web 2 -> 2.2 (limit 0.1)"


def test_limits_of_single_sources_go_before_the_common_one(sources, tiny, tmp_path):
    run(sources, tiny, tmp_path, ForgettingCallback(limits={"web": 1.0, "code": 0.0}),
        script={step: {"web": 2.0 + step / 40, "code": 1.0 + step / 400} for step in range(0, 21, 4)})
    assert [why for _, why in told(tmp_path, "forgetting")] == ["loss code 1 -> 1.01 (limit 0)"]


def test_a_score_that_falls_below_that_of_the_first_evaluation_is_told(sources, tiny, tmp_path):
    run(sources, tiny, tmp_path, ForgettingCallback(score_limit=0.02), changes={5: -0.01, 10: -0.03, 12: -0.04})
    assert told(tmp_path, "forgetting") == [(10, "score mmlu 0 -> -0.03 (limit 0.02)")]


def test_a_run_can_be_stopped(sources, tiny, tmp_path):
    _, diary = run(sources, tiny, tmp_path, ForgettingCallback(then="stop"), script=losses(2.0, 2.0, 2.5))
    assert len(diary.etas) == 8
    assert [event["then"] for event in read_events(tmp_path) if event["event"] == "forgetting"] == ["stop"]


def test_the_next_phase_can_be_begun_and_then_nothing_waits(sources, tiny, tmp_path):
    _, diary = run(sources, tiny, tmp_path, ForgettingCallback(then="switch"),
                   script=losses(2.0, 2.0, 2.5, 2.0, 2.5, 2.0))
    assert {source for source, _ in diary.names[: 8 * GLOBAL]} == {0}
    assert {source for source, _ in diary.names[8 * GLOBAL:]} == {1}
    assert [event["step"] for event in read_events(tmp_path) if event["event"] == "phase"] == [8]


def test_a_stall_is_told_and_counted_anew(sources, tiny, tmp_path):
    run(sources, tiny, tmp_path, ForgettingCallback(plateau=2, gain=0.01),
        script=losses(3.0, 2.5, 2.5, 2.499, 2.49, 2.48))
    assert told(tmp_path, "plateau") == [
        (12, "the mean validation loss fell by less than 0.01 in 2 validations (2.4990)")]


def test_a_resumed_run_keeps_its_baseline_and_what_was_told(sources, tiny, tmp_path):
    script = losses(2.0, 2.5, 2.5, 2.6, 2.0, 2.5)
    run(sources, tiny, tmp_path, ForgettingCallback(), SaveAt(tmp_path, 10), script=script)
    guard = ForgettingCallback()
    run(sources, tiny, tmp_path / "resumed", guard, script=script, resume=tmp_path / "step-10.ckpt")
    assert guard.losses == {"web": 2.0}
    assert told(tmp_path / "resumed", "forgetting") == [(20, "loss web 2 -> 2.5 (limit 0.1)")]


def test_the_baseline_is_in_the_logs(sources, tiny, tmp_path):
    torch.manual_seed(0)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=4)
    fit(ContinuedPretraining(RECIPE, architecture=tiny), data, tmp_path, ForgettingCallback(), max_steps=2,
        logger=pl.loggers.TensorBoardLogger(str(tmp_path), name="", version=""))
    assert [step for step, _ in read_scalars(tmp_path)["val/a/loss"]] == [0]


@pytest.mark.parametrize(("settings", "said"), [
    ({"loss_limit": -1}, "loss_limit=-1 must be at least 0"), ({"limits": {"web": -2}}, "web=-2 must be at least 0"),
    ({"plateau": 0}, "plateau=0 must be at least 1 validation"), ({"then": "cry"}, "then='cry': choose warn, stop")])
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ForgettingCallback(**settings)


def test_without_phases_there_is_nothing_to_switch(sources, tiny, tmp_path):
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=0)
    with pytest.raises(ValueError, match="then='switch' needs a PhaseSwitchCallback"):
        fit(ContinuedPretraining(RECIPE, architecture=tiny), data, tmp_path, ForgettingCallback(then="switch"))
