"""All that can be told of a run before it starts, in values and in words."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from conftest import LENGTH, SIZES

from lit_cpt.blends import Blend
from lit_cpt.evaluations import Evaluation, write_evaluation
from lit_cpt.forecast import Setup, dates, dates_line, forecast, render_forecast
from lit_cpt.plan import plan, render
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

BATCH = Batch(LENGTH, 4, 2)
RECIPE = Recipe(640, Cosine(1e-2), [Phase("first", Blend({"a": 0.5, "b": 0.5})),
                                    Phase("late", Blend({"a": 0.5, "c": 0.5}), Trigger(eta_over_eta_max=0.2))])
CALLBACKS = [{"class_path": f"lit_cpt.callbacks.{name}"} for name in ("RunCheckpointCallback", "EvalCallback")]
SETUP = Setup(RECIPE, BATCH, 42, tuple(SIZES), SIZES, trainer={"val_check_interval": 0.25, "callbacks": CALLBACKS},
              ranks=1)
SATURDAY = datetime(2026, 12, 12, 14, 0)


def told(**more):
    return render_forecast(forecast(replace(SETUP, **more)))


def evaluation(step, seconds, full):
    return Evaluation(step, 0, "model", ("asked",), full, (), (), seconds, {}, 0.0)


# Values --------------------------------------------------------------------------------------------------


def test_a_forecast_is_the_plan_and_more_in_plain_values():
    found = forecast(replace(SETUP, parameters=10**6))
    described = json.loads(json.dumps(found.describe()))
    expected = json.loads(json.dumps(plan(RECIPE, BATCH, SIZES).describe()))
    assert described.items() >= expected.items()
    assert set(described) - set(expected) == {"unused", "warnings", "departures", "agenda", "checkpoint_bytes",
                                              "evaluation_seconds"}
    assert (described["checkpoint_bytes"], described["agenda"]["most_checkpoints"]) == (12 * 10**6, 3)
    assert described["agenda"]["evaluations"] == {"count": 3, "first": [0, 15, 20], "last": 20}


def test_a_config_that_says_nothing_of_a_schedule_gets_none():
    assert forecast(replace(SETUP, trainer={"devices": 1})).agenda is None
    assert forecast(replace(SETUP, trainer={"val_check_interval": 0.5})).agenda.checkpoints is None


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(ValueError, match="global_batch=4 is no multiple of micro_batch x ranks = 2 x 4"):
        forecast(replace(SETUP, ranks=4))


def test_evaluations_cost_what_those_of_the_same_kind_have_cost(tmp_path):
    some = {"callbacks": [{**CALLBACKS[1], "init_args": {"when": {"every_steps": 8, "full": ["end"]}}}]}
    setup = replace(SETUP, trainer=some, run=str(tmp_path))
    write_evaluation(tmp_path, evaluation(0, 6.0, False))
    write_evaluation(tmp_path, evaluation(8, 8.0, False))
    assert forecast(setup).evaluation_seconds is None  # the whole one at the end is of another kind
    write_evaluation(tmp_path, evaluation(20, 100.0, True))
    assert forecast(setup).evaluation_seconds == 4 * 7.0 + 100.0  # at 0, 8, 15, 16; and at 20


def test_dates_follow_from_a_speed():
    found = dates(plan(RECIPE, BATCH), 0.5, SATURDAY)
    assert found == {"late": SATURDAY + timedelta(seconds=960), "end": SATURDAY + timedelta(seconds=1280)}


# Words ---------------------------------------------------------------------------------------------------


def test_what_says_nothing_is_left_out():
    text = told(trainer={}, model={"pretrained": "x", "optimizer_state": "y"}, blocks={}, sources=())
    assert text.splitlines() == [*render(plan(RECIPE, BATCH)).splitlines(), "",
                                 "as in the paper (arXiv 2407.07263): no warm-up, cosine to eta_max/100, one switch "
                                 "where the paper has it"]


def test_the_schedule_is_told_with_disk_and_cost(tmp_path):
    write_evaluation(tmp_path, evaluation(0, 60.0, True))
    lines = told(parameters=10**9, run=str(tmp_path)).splitlines()
    rows = [" ".join(line.split()) for line in lines if line.startswith(("validation", "evaluation", "checkpoint"))]
    assert rows == ["validation 4 5, 10, 15 .. 20", "evaluation 3 0, 15, 20 3 ask all documents; 3m 00s in all",
                    "checkpoint 4 5, 10, 15 .. 20 3 at once at most: 36 GB of disk, 12 GB each"]


def test_a_cost_that_nobody_knows_is_said_to_be_unknown():
    text = told()
    assert "3 ask all documents; cost unknown before the first" in text
    assert "3 at once at most, of 12 bytes a parameter" in text


def test_validations_that_are_not_foretold_are_said_to_be():
    trainer = {"val_check_interval": 8}
    text = told(trainer=trainer, ranks=None)
    assert "not foretold: validations, and the checkpoints before them, every 8 micro-batches" in text


def test_unused_data_differences_and_warnings_stand_below_the_tables():
    text = told(sources=(*SIZES, "old"), blocks={"a": 400, "b": 2, "c": 37}, model={"pretrained": "x"}, trainer={})
    assert text.split("\n\n")[-3:] == [
        "in no phase, so never trained on: old\nnever read: 90% of a, 73% of c",
        "not as in the paper (arXiv 2407.07263):\n  AdamW starts cold; the paper: with pretraining's state "
        "(model.optimizer_state)",
        "! b is seen 15.5 times; repeats beyond 4 are worth little (arXiv 2305.16264)"]


def test_dates_are_told_as_a_person_says_them_with_the_year_where_it_is_another():
    assert dates_line(plan(RECIPE, BATCH), 0.5, SATURDAY) == (
        "at 0.5 tokens/s, training alone, if started now: late begins Sat 12 Dec, 14:16; the run ends Sat 12 Dec, "
        "14:21")
    assert dates_line(plan(RECIPE, BATCH), 2e-4, SATURDAY).endswith("the run ends Mon 18 Jan 2027, 14:53")
