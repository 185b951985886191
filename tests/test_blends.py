from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.blends import (
    GOLDEN,
    RING,
    Blend,
    BlendHistory,
    floor_sum,
    mixed,
    name_key,
    rotations_below,
    shuffled,
)

NAMES = ("a", "b", "c", "d")
GENERAL = {"web": 0.46, "code": 0.15, "books": 0.39}
LATE = {"web": 0.20, "code": 0.15, "books": 0.35, "qa": 0.30}
WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0, 2.5]), min_size=4, max_size=4).filter(any)
LEGS = st.lists(st.tuples(st.integers(1, 400), WEIGHTS), max_size=3)
quick = settings(max_examples=40, deadline=None)


def named(weights):
    return dict(zip(NAMES, weights, strict=True))


def history_of(first, legs, seed=7):
    """A history with ``legs`` (length of the one before, weights) after the first blend."""
    history = BlendHistory(NAMES, named(first), seed)
    start, future = 0, []
    for length, weights in legs:
        start += length
        future.append((start, named(weights)))
    history.plan(0, future)
    return history


# Blend ---------------------------------------------------------------------------------------------


def test_a_blend_is_shares_that_sum_to_one():
    assert Blend({"web": 0.7, "code": 0.3}).weights == {"web": 0.7, "code": 0.3}
    assert Blend({"web": 1, "code": 0}).weights["code"] == 0


@quick
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4))
def test_a_normalized_blend_keeps_the_ratios(weights):
    blend = Blend.normalized(dict(zip(NAMES, weights, strict=False)))
    assert math.isclose(math.fsum(blend.weights.values()), 1.0, rel_tol=1e-12)
    assert blend.weights["a"] == pytest.approx(weights[0] / math.fsum(weights))


def test_weights_that_do_not_sum_to_one_are_refused_with_their_sum_and_the_cure():
    with pytest.raises(ValueError, match=r"sum to 0\.9000 \(web 0\.7, code 0\.2\).*`Blend\.normalized"):
        Blend({"web": 0.7, "code": 0.2})


@pytest.mark.parametrize("build", [Blend, Blend.normalized, lambda weights: BlendHistory(NAMES, weights, 0)])
@pytest.mark.parametrize(("weights", "says"), [
    ({}, "a blend needs at least one source"),
    ({"a": -0.5, "b": 1.5}, r"weight of source 'a' is -0\.5: a weight is finite and at least 0"),
    ({"a": float("nan")}, "weight of source 'a' is nan"),
    ({"a": 1.0, "b": float("inf")}, "weight of source 'b' is inf"),
    ({"a": "0.5"}, "weight of source 'a' is '0.5': give a number"),
    ({"a": True}, "weight of source 'a' is True: give a number"),
    ({"a": 0.0, "b": 0}, r"all weights are 0 \(a, b\): at least one source needs a positive weight"),
])
def test_weights_that_are_no_blend_are_refused_by_the_source_at_fault(build, weights, says):
    with pytest.raises(ValueError, match=says):
        build(weights)


def test_numpy_weights_are_numbers():
    assert Blend({"a": np.float32(0.5), "b": np.float64(0.5)}).weights["a"] == 0.5


# Integer arithmetic ----------------------------------------------------------------------------------


@quick
@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_floor_sum_is_the_sum_it_names(count, modulus, slope, offset):
    assert floor_sum(count, modulus, slope, offset) == sum((slope * i + offset) // modulus for i in range(count))


@quick
@given(st.integers(-2, 200), st.integers(0, RING - 1), st.integers(-5, RING + 5))
def test_points_below_a_bound_are_counted_as_a_loop_would(count, start, bound):
    looped = sum((start + i * GOLDEN) % RING < bound for i in range(max(0, count)))
    assert rotations_below(count, start, bound) == looped


def test_mixed_numbers_are_the_same_everywhere_and_for_ever():
    assert mixed(0) == 16294208416658607535
    assert mixed(42, 0) == 6332618229526065668
    assert mixed(1, 2) != mixed(2, 1)
    assert mixed(-1) == mixed(RING - 1)
    assert name_key("web") == 13349284935976312395
    assert name_key("web") != name_key("Web")


@quick
@given(st.integers(0, 300), st.integers(0, 2**70))
def test_shuffled_is_a_permutation(count, key):
    assert sorted(shuffled(count, key)) == list(range(count))


def test_shuffled_differs_by_key_and_by_nothing_else():
    assert shuffled(100, 1, 2).tolist() == shuffled(100, 1, 2).tolist()
    orders = {tuple(shuffled(100, 42, key)) for key in range(50)}
    assert len(orders) == 50
    assert shuffled(8, 42, 7).tolist() == [0, 1, 4, 7, 2, 5, 3, 6]


# BlendHistory ----------------------------------------------------------------------------------------


def test_the_stream_never_changes_silently():
    history = BlendHistory(["web", "code", "books", "qa"], GENERAL, seed=42)
    history.plan(0, [(20, LATE)])
    assert history.sources == ("books", "code", "qa", "web")
    assert history.choose(0, 40).tolist() == PINNED_SOURCES
    assert history.counts(1_000_000_007).tolist() == PINNED_COUNTS


PINNED_SOURCES = [0, 3, 3, 0, 3, 1, 0, 3, 0, 3, 1, 0, 3, 0, 3, 3, 0, 3, 1, 0, 2, 0, 2, 1, 0, 2, 0, 3, 1, 0,
                  2, 0, 3, 2, 0, 3, 1, 0, 2, 0]
PINNED_COUNTS = [350000004, 150000004, 299999995, 200000004]


@pytest.mark.parametrize("weights", [
    GENERAL, LATE, {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.01, "b": 0.99}, {"a": 0.5, "b": 0.5, "c": 0.0},
    dict.fromkeys("abcdefghij", 0.1), {"a": 0.33, "b": 0.33, "c": 0.34}, {"only": 1.0},
])
@pytest.mark.parametrize("seed", [0, 42])
def test_realised_counts_are_within_two_samples_of_the_share_at_a_million(weights, seed):
    count = 1_000_000
    history = BlendHistory(list(weights), weights, seed)
    realised = np.bincount(history.choose(0, count), minlength=len(weights))
    wanted = np.array([weights[name] for name in history.sources]) * count
    assert np.abs(realised - wanted).max() <= 2
    assert history.counts(count).tolist() == realised.tolist()


@quick
@given(WEIGHTS, LEGS, st.integers(0, 1500), st.integers(0, 2**64))
def test_counts_in_closed_form_equal_counting(first, legs, position, seed):
    history = history_of(first, legs, seed)
    counted = np.bincount(history.choose(0, position), minlength=len(NAMES))
    assert history.counts(position).tolist() == counted.tolist()


@quick
@given(WEIGHTS, LEGS, st.integers(0, 900), st.integers(0, 300))
def test_draw_numbers_are_consecutive_per_source_from_any_start(first, legs, start, length):
    history = history_of(first, legs)
    chosen, draws = history.draws(start, start + length, history.counts(start))
    seen = history.counts(start)
    for source, draw in zip(chosen, draws, strict=True):
        assert draw == seen[source]
        seen[source] += 1
    assert seen.tolist() == history.counts(start + length).tolist()


@quick
@given(WEIGHTS, LEGS, st.lists(st.integers(0, 1200), min_size=2, max_size=5))
def test_a_stream_read_in_pieces_is_the_stream_read_whole(first, legs, cuts):
    history, cuts = history_of(first, legs), sorted(cuts)
    pieces = [history.choose(low, high) for low, high in pairwise(cuts)]
    assert np.concatenate(pieces).tolist() == history.choose(cuts[0], cuts[-1]).tolist()


@quick
@given(WEIGHTS, LEGS)
def test_a_source_that_rests_is_never_drawn(first, legs):
    history = history_of(first, legs)
    for leg, low, high in history.spans(0, 1500):
        resting = {source for source, weight in enumerate(leg.weights) if weight == 0}
        assert not resting & set(history.choose(low, high).tolist())


def test_weights_that_do_not_sum_to_one_draw_by_their_ratio():
    whole, scaled = (BlendHistory(["a", "b"], weights, 1) for weights in ({"a": 0.75, "b": 0.25}, {"a": 3, "b": 1}))
    assert whole.choose(0, 500).tolist() == scaled.choose(0, 500).tolist()


def test_positions_far_out_cost_no_more_than_near_ones():
    history = BlendHistory(NAMES, named([0.1, 0.2, 0.3, 0.4]), 3)
    far = 10**15
    counts = history.counts(far)
    assert counts.sum() == far
    assert np.abs(counts - np.array([0.1, 0.2, 0.3, 0.4]) * far).max() <= 20
    assert (history.counts(far + 50) - counts).tolist() == np.bincount(history.choose(far, far + 50),
                                                                       minlength=4).tolist()


def test_two_seeds_give_two_streams_of_the_same_shares():
    one, other = (BlendHistory(NAMES, named([1, 1, 1, 1]), seed) for seed in (1, 2))
    assert one.choose(0, 200).tolist() != other.choose(0, 200).tolist()
    assert np.abs(one.counts(10_000) - other.counts(10_000)).max() <= 8


def test_a_plan_keeps_the_past_and_replaces_the_future():
    history = history_of([1, 0, 0, 0], [(100, [0, 1, 0, 0]), (100, [0, 0, 1, 0])])
    past = history.choose(0, 150).tolist()
    assert history.plan(150, [(160, named([0, 0, 0, 1]))])
    assert history.choose(0, 150).tolist() == past
    assert [leg.start for leg in history.legs] == [0, 100, 160]
    assert set(history.choose(160, 400)) == {3}
    assert history.weights_at(159)["b"] == 1
    assert history.weights_at(160)["d"] == 1


def test_a_planned_leg_that_is_left_out_is_dropped():
    history = history_of([1, 0, 0, 0], [(100, [0, 1, 0, 0])])
    assert history.plan(99, [])
    assert set(history.choose(0, 500)) == {0}


def test_a_plan_that_was_made_already_changes_nothing():
    history = history_of([1, 0, 0, 0], [(100, [0, 1, 0, 0])])
    assert not history.plan(0, [(100, {"b": 1.0})])
    assert not history.plan(100, [(100, {"b": 1.0})])
    assert not history.plan(5000, [])
    assert len(history.legs) == 2


def test_a_plan_from_the_first_sample_replaces_the_first_blend():
    history = history_of([1, 0, 0, 0], [])
    assert history.plan(0, [(0, {"c": 1.0})])
    assert [leg.start for leg in history.legs] == [0]
    assert set(history.choose(0, 50)) == {2}


@pytest.mark.parametrize("starts", [[149], [160, 155], [160, 160], [0]])
def test_a_start_in_the_past_or_out_of_order_is_refused_and_nothing_changes(starts):
    history = history_of([1, 0, 0, 0], [(100, [0, 1, 0, 0])])
    before = history.state()
    listed = ", ".join(map(str, starts))
    with pytest.raises(ValueError, match=rf"planned starts \[{listed}\] must rise, from position 150"):
        history.plan(150, [(start, {"c": 1.0}) for start in starts])
    assert history.state() == before


def test_weights_for_a_source_that_is_not_there_are_refused_with_those_that_are():
    history = history_of([1, 0, 0, 0], [])
    with pytest.raises(ValueError, match="weights name 'qa', which no source is called; .* 'a', 'b', 'c', 'd'"):
        history.plan(0, [(10, {"a": 0.5, "qa": 0.5})])
    assert len(history.legs) == 1


@quick
@given(WEIGHTS, LEGS)
def test_a_history_restored_from_json_draws_the_same(first, legs):
    history = history_of(first, legs)
    copy = BlendHistory(NAMES, {"a": 1.0}, 7)
    copy.restore(json.loads(json.dumps(history.state())))
    assert copy.legs == history.legs
    assert copy.choose(0, 600).tolist() == history.choose(0, 600).tolist()


def test_a_history_goes_on_with_more_sources_but_not_without_one_it_drew_on():
    state = history_of([1.0, 0.0, 2.0, 0.0], [(30, [0.0, 0.0, 1.0, 0.0])]).state()
    wider = BlendHistory(("A", *NAMES, "z"), {"z": 1.0}, 7)
    wider.restore(state)
    before = history_of([1.0, 0.0, 2.0, 0.0], [(30, [0.0, 0.0, 1.0, 0.0])])
    names = [NAMES[source] for source in before.choose(0, 60)]
    assert [wider.sources[source] for source in wider.choose(0, 60)] == names
    BlendHistory(("a", "c"), {"a": 1.0}, 7).restore(state)  # b and d only rested
    with pytest.raises(ValueError, match=r"draws on source 'c', which is not among this one's sources \('a', 'b'\)"):
        BlendHistory(("a", "b"), {"a": 1.0}, 7).restore(state)


def test_a_leg_that_was_only_planned_is_given_up_with_its_source():
    state = history_of([1.0, 0.0, 0.0, 0.0], [(30, [0.5, 0.5, 0.0, 0.0]), (60, [0.0, 0.0, 1.0, 0.0])]).state()
    narrower = BlendHistory(("a", "b"), {"b": 1.0}, 7)
    narrower.restore(state, position=89)
    assert [leg.start for leg in narrower.legs] == [0, 30]
    with pytest.raises(ValueError, match="draws on source 'c'"):
        narrower.restore(state, position=90)


def test_what_is_ahead_begins_after_a_position():
    history = BlendHistory(("a", "b"), {"a": 1.0}, 7)
    history.plan(0, [(20, {"b": 1.0}), (40, {"a": 0.5, "b": 0.5})])
    assert history.ahead(20) == [(40, {"a": 0.5, "b": 0.5})]
    assert [start for start, _ in history.ahead(19)] == [20, 40]
