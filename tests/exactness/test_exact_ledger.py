"""The judge itself: it must see what it is there to see."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ledger import Line, compare, effective, judge, parse

STEPS, BATCH = 10, 4
IDEAL = [(number % 3, number) for number in range(STEPS * BATCH)]


def line(step, attempt=1, rank=0, world=1):
    """The line that an exact run writes: ranks share out each step's samples in turn."""
    mine = IDEAL[(step - 1) * BATCH : step * BATCH][rank::world]
    return Line(attempt, rank, world, step, tuple((name,) for name in mine), 1.0 / step, f"state after {step}")


def attempt(number, first, last, world=1):
    return [line(step, number, rank, world) for step in range(first, last + 1) for rank in range(world)]


WHOLE = attempt(1, 1, STEPS)
KILLED = [*attempt(1, 1, 6), *attempt(2, 5, 7), *attempt(3, 5, STEPS)]


def verdict(lines, lost_at_most=None, reference=WHOLE, bits=True):
    judged = judge(lines, IDEAL, STEPS, lost_at_most)
    compare(judged, lines, reference, bits)
    return judged


def with_samples(lines, step, samples):
    return [replace(one, names=(tuple(samples),)) if one.step == step else one for one in lines]


@pytest.mark.parametrize("lines", [WHOLE, KILLED, attempt(1, 1, STEPS, world=2),
                                   [*attempt(1, 1, 5, world=2), *attempt(2, 4, 8), *attempt(3, 8, STEPS, world=2)]])
def test_an_exact_run_has_no_fault(lines):
    judged = verdict(lines, lost_at_most=lambda attempt: 3)
    assert (judged.faults, judged.duplicated, judged.missed, judged.steps) == ([], 0, 0, STEPS)
    assert judged.identical == judged.compared == len(lines)


def test_a_step_counts_as_the_last_attempt_made_it():
    assert {step: group[0].attempt for step, group in effective(KILLED).items()} == {
        **dict.fromkeys(range(1, 5), 1), **dict.fromkeys(range(5, STEPS + 1), 3)}
    assert verdict(KILLED).retrained == 3


def test_a_duplicated_sample_is_seen():
    step = IDEAL[8:12]
    judged = verdict(with_samples(WHOLE, 3, [*step, IDEAL[0]]))
    assert (judged.duplicated, judged.missed) == (1, 0)
    assert "step 3: [(0, 0)] instead of []" in judged.faults[0]


def test_a_missed_sample_is_seen():
    judged = verdict(with_samples(WHOLE, 3, IDEAL[8:11]))
    assert (judged.duplicated, judged.missed) == (0, 1)
    assert "1 missed" in judged.faults[-1]


def test_a_sample_in_place_of_another_is_both():
    judged = verdict(with_samples(WHOLE, 3, [*IDEAL[8:11], IDEAL[0]]))
    assert (judged.duplicated, judged.missed) == (1, 1)


def test_two_samples_that_changed_places_are_seen():
    one, two, *rest = IDEAL[8:12]
    judged = verdict(with_samples(WHOLE, 3, [two, one, *rest]))
    assert (judged.duplicated, judged.missed) == (0, 0)
    assert judged.faults == ["attempt 1, step 3: another order"]


def test_two_steps_that_changed_places_are_seen():
    swapped = with_samples(with_samples(WHOLE, 3, IDEAL[12:16]), 4, IDEAL[8:12])
    judged = verdict(swapped)
    assert (judged.duplicated, judged.missed, len(judged.faults)) == (0, 0, 2)


def test_a_wrong_step_is_seen_even_if_a_later_attempt_makes_it_again():
    first = with_samples(attempt(1, 1, 6), 6, IDEAL[:4])
    judged = verdict([*first, *attempt(2, 5, STEPS)])
    assert (judged.duplicated, judged.missed) == (0, 0)
    assert "attempt 1, step 6" in judged.faults[0]


def test_a_step_that_nobody_made_is_seen():
    judged = verdict([*attempt(1, 1, 5), *attempt(2, 7, STEPS)])
    assert judged.missed == BATCH
    assert "attempt 2 began with step 7, the last one ended at 5" in judged.faults


def test_a_run_that_goes_on_past_its_end_is_seen():
    extra = replace(line(STEPS), step=STEPS + 1)
    judged = verdict([*WHOLE, extra])
    assert judged.duplicated == BATCH
    assert "the uninterrupted run has no steps [11]" in judged.faults


def test_a_rank_that_is_lacking_is_seen():
    judged = verdict(attempt(1, 1, STEPS, world=2)[:-1])
    assert judged.missed == 2
    assert "step 10 lacks a rank" in judged.faults


def test_a_kill_between_two_ranks_is_no_fault():
    cut = attempt(1, 1, 6, world=2)[:-1]
    assert verdict([*cut, *attempt(2, 5, STEPS, world=2)]).faults == []


def test_a_rank_that_is_killed_in_its_update_has_given_its_gradient_to_the_others():
    lines = attempt(1, 1, 6, world=2)
    lines[-1] = replace(lines[-1], digest="")
    assert verdict([*lines, *attempt(2, 7, STEPS, world=2)]).faults == []


def test_a_step_that_no_rank_came_to_the_end_of_is_not_made():
    begun = [replace(one, digest="") for one in attempt(1, 7, 7, world=2)]
    assert verdict([*attempt(1, 1, 6, world=2), *begun, *attempt(2, 7, STEPS, world=2)]).faults == []
    assert verdict([*attempt(1, 1, 6, world=2), *begun, *attempt(2, 8, STEPS, world=2)]).missed == BATCH


def test_ranks_that_part_are_seen():
    lines = attempt(1, 1, STEPS, world=2)
    lines[7] = replace(lines[7], digest="other")
    assert "attempt 1, step 4: the ranks' weights differ" in judge(lines, IDEAL, STEPS).faults


def test_a_resume_that_throws_away_too_much_is_seen():
    judged = verdict(KILLED, lost_at_most=lambda attempt: 2)
    assert judged.faults == ["attempt 3 began with step 5 although step 7 was made: 3 steps lost, at most 2 may be"]


def test_other_weights_are_seen_where_they_begin():
    lines = [replace(one, digest="other") if one.step > 7 else one for one in KILLED]
    judged = verdict(lines)
    assert "first at attempt 3, step 8" in judged.faults[0]
    assert judged.compared - judged.identical == 3
    assert verdict(lines, bits=False).faults == []


def test_another_learning_rate_is_seen_even_where_bits_may_differ():
    lines = [replace(one, eta=0.5) if one.step == 9 else one for one in WHOLE]
    assert "step 9: eta 0.5, uninterrupted 0.111" in verdict(lines, bits=False).faults[0]


def test_lines_are_read_as_they_were_written():
    step = {"attempt": 2, "rank": 1, "step": 7}
    began = {**step, "world": 2, "heads": [[[2, 0, 1, 3]], [[0, 1, 0, 0]]], "eta": 0.25}
    line = Line(2, 1, 2, 7, (((2, 67),), ((0, 4096),)), 0.25)
    text = json.dumps(began)
    assert parse(text) == [line]
    assert parse(f"{text}\n{json.dumps({**step, 'digest': '0f'})}") == [replace(line, digest="0f")]
