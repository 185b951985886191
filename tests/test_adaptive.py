"""The rules by which a blend follows training, and their bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.adaptive import Bandit, ExcessLoss, Seen, WeakScores, exploration, held, scaled

START = {"web": 0.6, "code": 0.3, "qa": 0.1}
LOSSES = {"web": 2.0, "code": 1.0, "qa": 3.0}
shares = st.lists(st.floats(0.01, 1), min_size=1, max_size=6).map(
    lambda values: scaled({str(place): value for place, value in enumerate(values)}))


def turns(rule, count, losses=LOSSES, start=START, metrics=None):
    """The blends of so many turns in which losses stay."""
    weights, memory, found = dict(start), {}, []
    for _ in range(count):
        proposed, memory = rule.propose(Seen(start, weights, losses, metrics or {}), memory)
        weights = scaled(proposed)
        found.append(weights)
    return found, memory


@given(shares, st.floats(0, 1), st.floats(1, 8), st.data())
def test_held_shares_sum_to_one_within_their_bounds_and_keep_proportions_between_them(start, least, most, data):
    weights = {name: data.draw(st.floats(1e-3, 1)) for name in start}
    low, high = ({name: factor * share for name, share in start.items()} for factor in (least, most))
    found = held(weights, low, high)
    assert math.fsum(found.values()) == pytest.approx(1)
    assert all(low[name] - 1e-9 <= share <= high[name] + 1e-9 for name, share in found.items())
    free = [name for name, share in found.items() if low[name] + 1e-9 < share < high[name] - 1e-9]
    ratios = [found[name] / weights[name] for name in free]
    assert ratios == pytest.approx([ratios[0]] * len(ratios) if ratios else [])


def test_bounds_that_leave_a_part_to_nobody_give_way_in_proportion():
    low = dict.fromkeys(START, 0.0)
    assert held(START, low, {"web": 0.3, "code": 0.1, "qa": 0.1}) == pytest.approx({"web": 0.6, "code": 0.2, "qa": 0.2})
    assert held(START, low, low) == pytest.approx(START)


def test_a_bandit_explores_by_the_phases_blend_and_then_goes_where_the_loss_over_the_share_is():
    found, memory = turns(Bandit(memory=0.0), 400)
    assert found[0] == pytest.approx(START)  # all of the first turns is exploration
    assert exploration(3, 1) == 1 / 3
    assert found[-1]["qa"] > 1.3 * START["qa"]
    assert found[-1]["web"] < START["web"]
    assert memory["turn"] == 400
    assert all(share > 0 for share in found[-1].values())


def test_a_bandits_reward_moves_towards_loss_over_share():
    _, memory = turns(Bandit(memory=0.5), 1)
    assert memory["rewards"] == pytest.approx({name: 0.5 * LOSSES[name] / START[name] for name in START})
    _, memory = turns(Bandit(memory=0.5), 1, losses={"web": 2.0})
    assert memory["rewards"] == pytest.approx({"web": 0.5 * 2.0 / 0.6})


def test_excess_over_a_reference_multiplies_a_weight_and_less_than_it_does_nothing():
    rule = ExcessLoss(reference={"web": 2.5, "code": 0.5, "qa": 3.0}, step_size=2.0, smoothing=0.0)
    (found,), _ = turns(rule, 1)
    assert found == pytest.approx(scaled({"web": 0.6, "code": 0.3 * math.exp(2 * 0.5), "qa": 0.1}))


def test_without_a_reference_what_is_forgotten_comes_back():
    rule = ExcessLoss(smoothing=0.0)
    first, memory = rule.propose(Seen(START, START, LOSSES), {})
    assert first == pytest.approx(START)
    later, memory = rule.propose(Seen(START, START, {**LOSSES, "web": 2.4, "code": 0.7}), memory)
    assert later == pytest.approx(scaled({"web": 0.6 * math.exp(0.4), "code": 0.3, "qa": 0.1}))
    assert memory == LOSSES


def test_smoothing_keeps_a_part_of_the_phases_blend():
    rule = ExcessLoss(reference={"web": 0.0, "code": 1.0, "qa": 3.0}, step_size=50.0, smoothing=0.1)
    found, _ = turns(rule, 3)
    assert found[-1]["qa"] == pytest.approx(0.1 * START["qa"])


def test_sources_of_scores_below_their_target_get_more():
    rule = WeakScores({"eval/a/acc": ["code", "qa"], "eval/b/acc": ["qa"]}, {"eval/a/acc": 0.5, "eval/b/acc": 0.5})
    (found,), memory = turns(rule, 1, metrics={"eval/a/acc": 0.25, "eval/b/acc": 0.9})
    assert found == pytest.approx(scaled({"web": 0.6, "code": 0.3 * math.exp(0.5), "qa": 0.1 * math.exp(0.25)}))
    assert turns(rule, 1)[0] == [pytest.approx(START)]
    assert memory == {}


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Bandit(memory=1.0), "memory=1.0 must be at least 0 and below 1"),
    (lambda: ExcessLoss(smoothing=-0.1), "smoothing=-0.1 must be at least 0 and below 1"),
    (lambda: ExcessLoss(step_size=-1.0), "step_size=-1.0 must be at least 0"),
    (lambda: WeakScores({"x": ["web"]}, {}), "targets has nothing for x: give the score"),
    (lambda: WeakScores({"x": ["web"]}, {"x": 0.0}), "targets has x: 0.0; it must be above 0"),
    (lambda: WeakScores({"x": ["web"]}, {"x": 0.5}, strength=-1.0), "strength=-1.0 must be at least 0"),
])
def test_a_number_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
