"""Arms dealt out over tasks that know nothing of each other, as arrays of jobs are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.ablate_command import arms_of_task
from lit_cpt.lab.trunk import Leg, dealt, trees


@st.composite
def forests(draw):
    """Arms that begin anew or go on from an earlier one, each training some steps."""
    legs = {}
    for number in range(draw(st.integers(1, 20))):
        parent = draw(st.sampled_from([None, *legs]))
        start = draw(st.integers(1, 50)) if parent else 0
        legs[f"arm{number}"] = Leg(parent, start, start + draw(st.integers(1, 100)), 512)
    return legs


@given(forests(), st.integers(1, 8))
def test_every_arm_falls_to_one_task_together_with_what_it_goes_on_from(legs, tasks):
    hands = dealt(legs, tasks)
    assert sorted(arm for hand in hands for arm in hand) == sorted(legs)
    assert len(hands) == tasks
    for hand in hands:
        for place, arm in enumerate(hand):
            assert legs[arm].parent is None or legs[arm].parent in hand[:place]


@given(forests(), st.integers(1, 8))
def test_no_task_has_a_tree_more_than_another_would_have_without_it(legs, tasks):
    loads = [sum(legs[arm].tokens for arm in hand) for hand in dealt(legs, tasks)]
    largest = max(sum(legs[arm].tokens for arm in arms) for arms in trees(legs).values())
    assert max(loads) - min(loads) <= largest


def test_a_tree_is_an_arm_that_begins_anew_with_all_that_goes_on_from_it():
    legs = {"a": Leg(None, 0, 9, 1), "b": Leg("a", 3, 9, 1), "c": Leg(None, 0, 9, 1), "d": Leg("b", 5, 9, 1)}
    assert trees(legs) == {"a": ["a", "b", "d"], "c": ["c"]}
    assert [arms_of_task(legs, f"{task}/2") for task in (0, 1)] == [["a", "b", "d"], ["c"]]
    assert (arms_of_task(legs, None), arms_of_task(legs, "2/3")) == (None, [])


@pytest.mark.parametrize("task", ["1", "2/2", "-1/2", "a/2", "0/0", "1/b"])
def test_a_task_that_is_none_is_refused(task):
    with pytest.raises(ValueError, match=f"--task {task}: write I/N, the I-th of N tasks"):
        arms_of_task({}, task)
