"""Student's t over few replicates, and Holm's correction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.lab.significance import holm, t_interval, t_probability

FEW = st.lists(st.floats(-100, 100), min_size=2, max_size=8)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("differences", "reach"), [([1.0, 2.0], 12.706 * 0.5), ([1.0, 2.0, 3.0], 4.303 / 3**0.5),
                                                    ([0.0] * 10 + [1.0] * 10, 2.093 * 0.5130 / 20**0.5)])
def test_the_interval_is_students(differences, reach):
    found = t_interval(differences)
    assert found.high - found.value == found.value - found.low == pytest.approx(reach, rel=1e-3)


def test_one_replicate_tells_nothing():
    assert (t_interval([1.0]), t_probability([1.0]), t_interval([])) == (None, None, None)


@given(FEW)
def test_the_interval_excludes_zero_where_p_is_below_five_per_cent(differences):
    p, found = t_probability(differences), t_interval(differences)
    if abs(p - 0.05) > 1e-9 and found.low != found.high:
        assert found.excludes_zero == (p < 0.05)


def test_differences_that_are_all_alike_are_no_chance_unless_they_are_zero():
    assert (t_probability([2.0, 2.0, 2.0]), t_probability([0.0, 0.0])) == (0.0, 1.0)


def test_one_comparison_needs_no_correction_and_the_smallest_of_many_is_multiplied_by_their_number():
    assert holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03, None]) == [0.06, 0.03, 0.06, None]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(PROBABILITIES)
def test_the_correction_raises_every_p_and_keeps_their_order(probabilities):
    found = holm(probabilities)
    for p, corrected in zip(probabilities, found, strict=True):
        assert p <= corrected <= 1
    for one, first in zip(probabilities, found, strict=True):
        assert all(first <= second for other, second in zip(probabilities, found, strict=True) if one < other)


@given(PROBABILITIES)
def test_the_correction_is_at_most_bonferronis(probabilities):
    assert all(corrected <= min(1.0, len(probabilities) * p) + 1e-12
               for p, corrected in zip(probabilities, holm(probabilities), strict=True))
