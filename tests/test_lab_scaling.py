"""End loss against trained tokens: the law that is fitted, its intervals, and when none is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.lab.scaling import Trend, fit_law, ladders


@settings(deadline=None)
@given(a=st.floats(-2, 5), b=st.floats(-1, 0.5), tokens=st.lists(st.integers(1_000, 10**13), min_size=3, max_size=8,
                                                               unique_by=lambda count: round(math.log(count), 1)))
def test_an_exact_power_law_is_found_again(a, b, tokens):
    law = fit_law(tokens, [math.exp(a + b * math.log(count)) for count in tokens])
    assert law.a == pytest.approx(a, abs=1e-6)
    assert law.b == pytest.approx(b, abs=1e-7)
    assert law.misfit < 1e-6
    assert law.loss(tokens[0]) == pytest.approx(math.exp(a + b * math.log(tokens[0])), rel=1e-6)


def test_the_misfit_is_the_largest_residual():
    law = fit_law([1, math.e, math.e**2], [1, math.exp(0.3), 1])
    assert (law.b, law.misfit) == (pytest.approx(0, abs=1e-12), pytest.approx(0.2))


@pytest.mark.parametrize("tokens", [[100, 1000], [100, 1000, 1000]])
def test_two_horizons_are_no_fit(tokens):
    with pytest.raises(ValueError, match=r"tokens=\[100, 1000.*two points are no fit; give at least 3"):
        fit_law(tokens, [1.0] * len(tokens))


def trend(*slopes, tokens=(100, 1000, 10_000), block=""):
    return Trend(tokens, tuple((block, tuple(4 * count**slope for count in tokens)) for slope in slopes))


def test_the_slope_and_the_loss_further_on_have_t_intervals_over_replicates():
    found = trend(-0.1, -0.2)
    assert (found.further, found.remark) == (100_000, "")
    assert found.slope.value == pytest.approx(-0.15)
    assert found.slope.high - found.slope.value == pytest.approx(12.7062 * 0.05)
    losses = [4 * 100_000**slope for slope in (-0.1, -0.2)]
    assert found.at(found.further).value == pytest.approx(sum(losses) / 2)
    assert found.at(found.further).low == pytest.approx(sum(losses) / 2 - 12.7062 * (losses[0] - losses[1]) / 2)


def test_what_cannot_be_told_is_refused():
    assert (trend(-0.1, tokens=(100, 1000)).laws, trend(-0.1, tokens=(100, 1000)).remark) == (
        [], "two points are no fit")
    assert trend(-0.1).remark == "one replicate: no interval"
    assert math.isnan(trend(-0.1).slope.low)
    assert trend().remark == "no replicate has a loss at every horizon"


def test_treatments_alike_but_for_an_axis_of_horizons_are_a_ladder():
    labels = {f"{length}{blend}": {"length": length, "blend": blend} for length in "sl" for blend in "xy"}
    horizons = {name: 10 if name[0] == "s" else 30 for name in labels}
    assert ladders(labels, horizons) == {"blend=x": {10: "sx", 30: "lx"}, "blend=y": {10: "sy", 30: "ly"}}
    assert ladders(labels, dict.fromkeys(labels, 10)) == {}
    assert ladders({"s": {"length": "s"}, "l": {"length": "l"}}, {"l": 30, "s": 10}) == {"length": {10: "s", 30: "l"}}
