"""The frames of runs: each cell is what the run wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_cpt.report import Frames
from lit_cpt.report.runs import Run

TABLES = ("scalars", "losses", "scores", "ledger", "events", "plan")


def run_of(**parts):
    """A run with nothing in it but these parts."""
    return Run(**{"name": "one", "path": Path("one"), "scalars": {}, "events": [], "plan": {}, "evals": [],
                  "ledger": [], **parts})


@pytest.fixture
def run():
    """Two phases, of which the second has begun; 100 tokens a step."""
    scalars = {"train/loss": [(10, 3.0)], "train/web/loss": [(10, 2.5)], "val/qa/loss": [(0, 4.0), (20, 3.5)]}
    family = {"score": 0.5, "low": 0.4, "high": 0.6, "items": 10}
    failed = {"score": None, "low": None, "high": None, "items": 0}
    evals = [{"step": 20, "families": {"math": family, "transfer": {**family, "items": 5}, "code": failed},
              "averaged": ["math"], "average": {"score": 0.5, "low": 0.4, "high": 0.6}}]
    ledger = [{"step": 20, "phase": "qa", "tokens": {"qa": 400, "web": 1600}, "epochs": {"web": 0.2},
               "share": {"web": 1.0}, "phases": {"general": {"web": 1000}, "qa": {"qa": 400, "web": 600}}}]
    parts = [{"name": "web", "weight": 0.6, "tokens": 700, "epochs": 0.1},
             {"name": "qa", "weight": 0.4, "tokens": 400, "epochs": None}]
    plan = {"tokens_per_step": 100, "phases": [{"name": "general", "sources": parts[:1]},
                                               {"name": "qa", "sources": parts}]}
    events = [{"event": "phase", "step": 10, "tokens_seen": 1000, "phase": "qa", "time": 0.5}]
    return run_of(scalars=scalars, evals=evals, ledger=ledger, plan=plan, events=events)


def rows(frame):
    return [tuple(row) for row in frame.itertuples(index=False)]


def test_scalars_have_a_row_for_each_point(run):
    frame = run.frames.scalars
    assert list(frame.columns) == ["run", "step", "tokens", "tag", "value"]
    assert rows(frame)[0] == ("one", 10, 1000, "train/loss", 3.0)
    assert len(frame) == 4


def test_losses_are_those_of_single_sources(run):
    assert rows(run.frames.losses) == [("one", 10, 1000, "train", "web", 2.5), ("one", 0, 0, "val", "qa", 4.0),
                                       ("one", 20, 2000, "val", "qa", 3.5)]


def test_scores_leave_out_what_failed_and_count_the_items_of_the_average(run):
    assert rows(run.frames.scores) == [("one", 20, 2000, "math", 0.5, 0.4, 0.6, 10),
                                       ("one", 20, 2000, "transfer", 0.5, 0.4, 0.6, 5),
                                       ("one", 20, 2000, "average", 0.5, 0.4, 0.6, 10)]


def test_the_ledger_has_a_row_for_each_source_of_a_line(run):
    frame = run.frames.ledger
    assert rows(frame.iloc[1:]) == [("one", 20, 2000, "qa", "web", 1600, 0.2, 1.0)]
    assert rows(frame.drop(columns="epochs").iloc[:1]) == [("one", 20, 2000, "qa", "qa", 400, 0.0)]
    assert np.isnan(frame.epochs[0])


def test_events_tell_their_time_in_utc_and_keep_what_else_they_say(run):
    [row] = rows(run.frames.events)
    assert (row[0], row[1].isoformat(), *row[2:]) == ("one", "1970-01-01T00:00:00.500000+00:00", 10, 1000, "phase",
                                                      {"phase": "qa"})


def test_the_plan_stands_beside_what_the_ledger_counted(run):
    frame = run.frames.plan
    assert rows(frame.drop(columns="epochs")) == [("one", "general", "web", 0.6, 700, 1000),
                                                  ("one", "qa", "web", 0.6, 700, 600),
                                                  ("one", "qa", "qa", 0.4, 400, 400)]
    assert np.isnan(frame.epochs.astype(float)[2])


def test_several_runs_stand_below_one_another(run):
    frames = Frames({"a": run, "b": run})
    for table in TABLES:
        alone, both = getattr(run.frames, table), getattr(frames, table)
        assert list(both.run) == ["a"] * len(alone) + ["b"] * len(alone)


@pytest.mark.parametrize("table", TABLES)
def test_a_run_that_wrote_nothing_gives_an_empty_frame_with_the_same_columns(run, table):
    empty = getattr(run_of().frames, table)
    assert (len(empty), list(empty.columns)) == (0, list(getattr(run.frames, table).columns))


def test_what_is_not_known_is_not_a_number(run):
    frames = run_of(scalars=run.scalars, plan={**run.plan, "tokens_per_step": 0}).frames
    assert frames.losses.tokens.isna().all()
    assert frames.plan.trained.isna().all()


def test_reading_a_run_does_not_import_pandas():
    code = "import sys, lit_cpt.report; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
