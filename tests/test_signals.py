from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.signals import stalled, worse

numbers = st.floats(-100, 100)


@given(st.dictionaries(st.sampled_from("abcd"), numbers), st.dictionaries(st.sampled_from("abcd"), numbers),
       st.floats(0, 10))
def test_what_is_worse_of_losses_is_worse_of_the_scores_that_mirror_them(before, now, limit):
    mirrored = [{name: -value for name, value in values.items()} for values in (before, now)]
    losses, scores = worse(before, now, {}, limit, 1), worse(*mirrored, {}, limit, -1)
    assert [one.name for one in losses] == [one.name for one in scores]


def test_a_limit_of_its_own_goes_before_the_default_and_its_very_value_is_within():
    before = {"web": 2.0, "code": 2.0, "qa": 2.0}
    found = worse(before, {"web": 2.5, "code": 2.5, "qa": 2.5, "new": 9.0}, {"web": 0.5, "qa": 0.25}, 1.0, 1)
    assert [str(one) for one in found] == ["qa 2 -> 2.5 (limit 0.25)"]


def test_what_is_no_number_is_worse_than_anything():
    assert [one.name for one in worse({"web": 2.0}, {"web": math.nan}, {}, 5.0, 1)] == ["web"]


@pytest.mark.parametrize(("values", "patience", "gain", "expected"), [
    ([3.0, 2.0, 1.0], 2, 0.1, False),
    ([3.0, 2.0, 1.95, 1.95], 2, 0.1, True),
    ([3.0, 2.0, 1.95, 1.85], 2, 0.1, False),
    ([1.0, 1.0], 2, 0.1, False),  # too few to tell
    ([1.0, 1.5, 1.4, 1.3], 3, 0.0, True),  # it falls, but not below what it was
    ([1.0, math.nan], 1, 0.1, True),
    ([math.nan, 1.0], 1, 0.1, False),
])
def test_a_run_stalls_where_the_last_values_gain_nothing_on_the_best_before(values, patience, gain, expected):
    assert stalled(values, patience, gain) is expected
