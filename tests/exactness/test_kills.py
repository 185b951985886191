"""A run that is killed, stopped, or hurt in any other way trains what it would have trained anyway.

Every case is `lit-cpt fit` in processes of its own, resumed by the documented command, and judged by its ledger
(`ledger.py`). The long form of the sample is `make chaos`.
"""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from chaos import Bench, chaos, compared_weights, legs_of, summary, switch_steps
from conftest import ran_with_mounts, small_disk
from faults import Fault
from runs import STEPS, Run, Setup, Shape

from lit_cpt.events import read_events

pytestmark = pytest.mark.slow

SAMPLE, SEED = 30, 7  # faults drawn for CI; at least 20 of them are SIGKILL
FORKED = bool(os.environ.get("EXACTNESS_FORKED"))  # a tenth of the time; see nursery.py
ONE, TWO = Shape(), Shape(ranks=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Sources and uninterrupted runs, which the cases share."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def play(bench, tmp_path):
    """Plays a run: one attempt for each (shape, fault) in turn; the last one must end well and the run be exact."""

    def played(setup, *turns, lost=None):
        run = Run(tmp_path / "case", setup, bench.sources, FORKED)
        ends = [run.attempt(shape, fault) for shape, fault in turns]
        run.clean()
        assert ends[-1].status == 0, ends[-1].output
        assert [end.fired for end in ends] == [fault is not None for _, fault in turns]
        judge(bench, run, [shape for shape, _ in turns], setup.interval if lost is None else lost)
        return run, ends

    return played


def judge(bench, run, shapes, lost):
    """Assert that a finished run is exact."""
    steady = len({(shape.ranks, shape.accumulation) for shape in shapes}) == 1
    reference = bench.reference(run.setup, shapes[0] if steady else ONE)
    verdict = run.judged(reference, legs_of(run.setup, reference), steady, lambda attempt: lost)
    assert verdict.faults == []
    assert (verdict.steps, verdict.duplicated, verdict.missed) == (STEPS, 0, 0)
    assert compared_weights(run, reference, steady)[1] == []


def test_a_sample_of_kills_drawn_from_a_seed_is_survived(tmp_path):
    results = chaos(SAMPLE, SEED, tmp_path, forked=True)
    print(summary(results))
    assert [fault for result in results for fault in result.faults] == []
    assert sum(result.kills for result in results) >= 20


def test_a_signal_saves_the_step_at_hand_and_nothing_is_trained_twice(play):
    shape = Shape(workers=2)
    _, ends = play(Setup(), (shape, Fault("forward", 7, "term")), (shape, Fault("validate", 16, "term")),
                   (shape, Fault("backward", 22, "int-all")), (shape, Fault("decided", 30, "term-all")), (shape, None),
                   lost=0)
    assert [end.status for end in ends] == [1, 1, 1, 1, 0]
    for end, step in zip(ends, (7, 17, 22, 30), strict=False):
        assert f"stopped at step {step}" in end.output
        assert re.search(r"resume with: lit-cpt fit .*--run run .*--ckpt_path last", end.output)


def test_an_error_in_a_step_costs_at_most_what_a_kill_costs(play, bench):
    switch = switch_steps(Setup(), bench.reference(Setup(), ONE))[1]
    places = [("backward", 7), ("update", 12), ("stepped", 18), ("decided", 24), ("switch:planned", switch)]
    _, ends = play(Setup(), *((ONE, Fault(place, step, "raise")) for place, step in places), (ONE, None))
    for (place, _), end in zip(places, ends, strict=False):
        assert f"injected at {place}" in end.output


def test_a_checkpoint_that_is_cut_short_is_passed_over_and_named(bench, tmp_path):
    run = Run(tmp_path / "cut", Setup(), bench.sources, FORKED)
    run.attempt(ONE, Fault("update", 2))
    none = run.attempt(ONE, more=("--ckpt_path", "last"))
    assert none.status == 2
    assert "there is no checkpoint" in none.output
    assert "Leave --ckpt_path out to start" in none.output
    run.attempt(ONE, Fault("forward", 13))
    older, newest = run.checkpoints[-2:]
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size * 2 // 3)
    end = run.attempt(ONE)
    run.clean()
    assert end.status == 0, end.output
    assert re.search(rf"{newest.name} is damaged.*{older.name}", end.output)
    judge(bench, run, [ONE], 2 * run.setup.interval)


def test_a_full_disk_costs_no_checkpoint_that_is_there(bench, tmp_path):
    if ran_with_mounts(f"{__file__}::test_a_full_disk_costs_no_checkpoint_that_is_there"):
        return
    run = Run(tmp_path / "full", Setup(), bench.sources, FORKED)
    size = bench.reference(Setup(), ONE).checkpoints[-1].stat().st_size
    disk = run.folder / "run" / "checkpoints"
    with small_disk(disk, int(2.5 * size / 4096) * 4096):
        full = run.attempt(ONE)
        assert full.status == 1, full.output
        assert "the disk is full" in full.output
        assert run.checkpoints
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        end = run.attempt(ONE)
        assert end.status == 0, end.output
        judge(bench, run, [ONE], run.setup.interval)
        run.clean()


def test_a_run_goes_from_two_ranks_to_one_and_back(play):
    run, _ = play(Setup("three"), (TWO, Fault("update", 10)), (Shape(1, 3, 2), Fault("save:event", 22, turn=1)),
                  (TWO, None))
    assert [event["world_size"] for event in read_events(run.folder / "run")
            if event["event"] in ("start", "resume")] == [2, 1, 2]


def test_a_run_goes_from_no_loader_processes_to_three_and_back(play):
    play(Setup("three"), (ONE, Fault("backward", 13)), (Shape(workers=3), Fault("switch:planned", 15)),
         (Shape(workers=3), Fault("worker", 30, "raise")), (ONE, None))


def test_three_phases_are_killed_at_both_switches_and_at_the_end(play, bench):
    shape, setup = Shape(workers=2), Setup("three")
    _, first, second = switch_steps(setup, bench.reference(setup, shape))
    play(setup, (shape, Fault("switch:begun", first)), (shape, Fault("switch:done", second)),
         (shape, Fault("save:done", STEPS)), (shape, Fault("end", 1)), (shape, None))


def test_one_killed_rank_of_two_is_survived(play):
    play(Setup(), (TWO, Fault("backward", 10, "kill", rank=1)), (TWO, Fault("save:bytes", 20, "kill", share=0.4)),
         (TWO, None))


def test_a_metric_switches_where_it_would_have_although_its_validation_is_killed(play, bench):
    shape, setup = Shape(workers=2), Setup("metric")
    switch = switch_steps(setup, bench.reference(setup, shape))[1]
    play(setup, (shape, Fault("validate", switch)), (shape, Fault("switch:done", switch)), (shape, None))
