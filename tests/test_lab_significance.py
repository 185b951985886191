"""Student's t over few replicates, and Holm's correction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_cpt.lab.arms_table import Outcome, compare_arms, render_arms
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


def losses_of(treatment, web, code):
    """An arm's outcome for each seed."""
    return [Outcome(treatment, f"seed={seed}", "", None, {"web": one, "code": other})
            for seed, (one, other) in enumerate(zip(web, code, strict=True))]


def test_the_table_corrects_for_the_treatments_of_one_measure():
    outcomes = [*losses_of("old", [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]), *losses_of("a", [1.1, 1.2, 1.3], [2.1, 2.2, 2.6]),
                *losses_of("b", [1.1, 1.11, 1.12], [2.0, 2.1, 1.9]), *losses_of("c", [1.5, 1.6, 1.9], [2.3, 2.2, 2.2])]
    found = compare_arms(outcomes, dict.fromkeys(["old", "a", "b", "c"], "old"), "old")
    for measure in ("val/web", "val/code"):
        lines = {line.treatment: line for line in found.lines if line.measure == measure}
        control = lines.pop("old")
        assert (control.p, control.p_holm) == (None, None)
        assert [line.p_holm for line in lines.values()] == holm([line.p for line in lines.values()])
        smallest = min(lines.values(), key=lambda line: line.p)
        assert smallest.p_holm == 3 * smallest.p
    p = stats.ttest_rel([1.1, 1.11, 1.12], [1.0, 1.0, 1.0]).pvalue
    row = next(line for line in render_arms(found).splitlines() if line.split()[:2] == ["val/web", "b"])
    assert f"  {3 * p:.3f}  " in row


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1))
def test_p_is_that_of_the_paired_t_test(differences):
    assert t_probability(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


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
