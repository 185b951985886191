"""When a run is evaluated."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.occasions import Occasions, Position


def walk(when, steps, tokens_per_step=1000):
    """step -> reasons, for a run of ``steps`` steps."""
    places = [Position(step, step * tokens_per_step, step / steps) for step in range(steps + 1)]
    found = {now.step: when.reasons(before, now) for before, now in itertools.pairwise(places)}
    return {step: reasons for step, reasons in found.items() if reasons}


def test_every_so_many_steps_or_tokens():
    assert list(walk(Occasions(every_steps=3), 10)) == [3, 6, 9]
    assert list(walk(Occasions(every_tokens="2.5k"), 10)) == [3, 5, 8, 10]


def test_fractions_fall_on_the_step_that_reaches_them():
    assert walk(Occasions(fractions=(0.1, 0.25, 1.0)), 10) == {1: ("fraction",), 3: ("fraction",), 10: ("fraction",)}


def test_one_evaluation_serves_all_reasons_of_a_step():
    when = Occasions(every_steps=5, every_tokens=5000, fractions=(0.55,))
    assert walk(when, 9) == {5: ("tokens", "steps", "fraction")}


@given(st.integers(1, 400), st.lists(st.floats(0.001, 1.0), max_size=4, unique=True), st.integers(1, 10**6))
def test_no_occasion_is_missed_or_met_twice_whatever_the_length_of_a_step(steps, fractions, tokens_per_step):
    found = walk(Occasions(fractions=tuple(fractions)), steps, tokens_per_step)
    assert list(found) == sorted({next(step for step in range(1, steps + 1) if step / steps >= share - 1e-11)
                                  for share in fractions})
    every = max(1, tokens_per_step * steps // 3)
    met = walk(Occasions(every_tokens=every), steps, tokens_per_step)
    assert len(met) == len({step * tokens_per_step // every for step in range(1, steps + 1)} - {0})


@given(st.integers(1, 10**6), st.integers(1, 10**7))
def test_a_step_back_is_where_the_run_stood(step, tokens_per_step):
    back = Position(step, step * tokens_per_step, 0.5).one_step_back
    assert (back.step, back.tokens) == (step - 1, (step - 1) * tokens_per_step)
    assert back.fraction == pytest.approx(0.5 * (step - 1) / step)


@given(st.integers(1, 60), st.integers(1, 10**6), st.data())
def test_the_next_step_is_the_first_at_which_there_will_be_a_reason(steps, tokens_per_step, data):
    when = Occasions(every_steps=data.draw(st.none() | st.integers(1, 90)),
                     every_tokens=data.draw(st.none() | st.integers(1, 60 * tokens_per_step)),
                     fractions=tuple(data.draw(st.lists(st.floats(0.001, 1.0), max_size=3))))
    now = data.draw(st.integers(1, steps))
    ahead = [step for step in walk(when, steps, tokens_per_step) if step > now]
    found = when.next_step(Position(now, now * tokens_per_step, now / steps))
    assert found == ahead[0] if ahead else found is None or found > steps


def test_before_the_first_step_only_steps_are_foretold():
    assert Occasions(every_steps=3, every_tokens=5, fractions=(0.1,)).next_step(Position(0, 0, 0.0)) is None
    assert Occasions(every_tokens=5).next_step(Position(4)) is None


def test_before_the_first_step_there_is_nothing():
    assert Position(0, 0, 0.0).one_step_back == Position(0, 0, 0.0)


def test_all_documents_are_asked_at_the_turns_that_are_named():
    when = Occasions(every_steps=10, full=("phase", "fraction"))
    assert when.takes_all(("steps", "phase"))
    assert when.takes_all(("fraction",))
    assert not when.takes_all(("steps", "end"))


def test_what_a_run_cannot_tell_is_named():
    assert "tokens_seen" in Occasions(every_tokens=10).lacks(Position(0))
    assert "max_steps" in Occasions(fractions=(0.5,)).lacks(Position(0, 0))
    assert Occasions(every_steps=1).lacks(Position(0)) is None


@pytest.mark.parametrize(("settings", "message"), [
    ({"every_steps": 0}, "every_steps=0 must be 1 or more"),
    ({"every_tokens": "many"}, "every_tokens='many' is not a count"),
    ({"fractions": (0.5, 1.5)}, r"fractions=[0.5, 1.5]: 1.5 does not lie in (0, 1]"),
    ({"turns": ("begin",)}, "turns=['begin'] has begin; choose from start, phase, end"),
    ({"full": ("steps",)}, "full=['steps'] has steps; choose from start, phase, end, fraction"),
])
def test_occasions_that_never_come_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Occasions(**settings)


def test_one_word_is_a_list_of_one():
    assert Occasions(turns="end").turns == ("end",)
