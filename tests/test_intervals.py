from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.intervals import (
    Interval,
    average_difference,
    average_interval,
    cluster_interval,
    paired_difference,
)

ITEMS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 9)), min_size=1, max_size=60).map(
    lambda rows: tuple(list(column) for column in zip(*rows, strict=True))
)
quick = settings(max_examples=40, deadline=None)


@quick
@given(ITEMS)
def test_an_interval_is_ordered_and_stays_in_the_range_of_the_hits(items):
    hits, _, clusters = items
    interval = cluster_interval(hits, clusters, resamples=200)
    assert interval.value == pytest.approx(sum(hits) / len(hits))
    assert min(hits) - 1e-12 <= interval.low <= interval.high <= max(hits) + 1e-12


@quick
@given(ITEMS)
def test_a_difference_turns_its_sign_with_its_sides(items):
    hits_a, hits_b, clusters = items
    forward = paired_difference(hits_a, hits_b, clusters, resamples=200)
    backward = paired_difference(hits_b, hits_a, clusters, resamples=200)
    assert backward.value == pytest.approx(-forward.value)
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))


@quick
@given(ITEMS, st.integers(2, 4))
def test_copies_of_an_item_in_its_cluster_add_no_certainty(items, copies):
    hits, _, clusters = items
    once = cluster_interval(hits, clusters, resamples=200)
    often = cluster_interval(hits * copies, clusters * copies, resamples=200)
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))


@quick
@given(ITEMS)
def test_names_of_clusters_do_not_matter(items):
    hits, _, clusters = items
    named = [f"cluster {cluster}" for cluster in clusters]
    assert cluster_interval(hits, named, resamples=200) == cluster_interval(hits, clusters, resamples=200)


@quick
@given(ITEMS)
def test_nothing_differs_from_itself(items):
    hits, _, clusters = items
    assert paired_difference(hits, hits, clusters, resamples=200) == Interval(0.0, 0.0, 0.0)


def test_items_of_their_own_give_the_normal_interval_of_a_share():
    hits = [1, 0] * 200
    interval = cluster_interval(hits, range(400))
    half_width = 1.96 * math.sqrt(0.25 / 400)
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - half_width, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half_width, abs=0.006)


def test_items_that_fall_together_widen_the_interval_by_the_root_of_their_number():
    hits = [1] * 4 * 50 + [0] * 4 * 50
    alone = cluster_interval(hits, range(400))
    together = cluster_interval(hits, [index // 4 for index in range(400)])
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(2, abs=0.15)


def test_one_cluster_leaves_nothing_to_resample():
    assert cluster_interval([1, 0, 0, 0], ["same"] * 4) == Interval(0.25, 0.25, 0.25)


def test_a_large_cluster_weighs_by_its_items():
    # Both clusters are drawn in half of all resamples, and then nine of ten items are hits.
    assert cluster_interval([1] * 9 + [0], ["large"] * 9 + ["small"], level=0.2) == Interval(0.9, 0.9, 0.9)


def test_pairing_takes_out_what_both_sides_share():
    hard = [index % 2 for index in range(200)]
    better = [*hard[:-2], 1, 1]
    assert paired_difference(better, hard, range(200)).high < 0.02
    assert cluster_interval(better, range(200)).high - cluster_interval(hard, range(200)).low > 0.1


def test_families_count_alike_whatever_their_size():
    hits = {"small": [1.0], "large": [0.0] * 99}
    clusters = {"small": ["a"], "large": list(range(99))}
    assert average_interval(hits, clusters) == Interval(0.5, 0.5, 0.5)


def test_an_average_is_surer_than_its_families():
    hits = {name: [1, 0] * 50 for name in ("a", "b", "c", "d")}
    clusters = {name: list(range(100)) for name in hits}
    one, all_four = cluster_interval(hits["a"], clusters["a"]), average_interval(hits, clusters)
    assert (one.high - one.low) / (all_four.high - all_four.low) == pytest.approx(2, abs=0.2)


def test_an_average_difference_of_one_family_is_its_difference():
    hits_a, hits_b, clusters = [1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 2]
    averaged = average_difference({"code": hits_a}, {"code": hits_b}, {"code": clusters})
    assert averaged == paired_difference(hits_a, hits_b, clusters)


def test_the_seed_decides_the_interval_and_not_the_value():
    hits, clusters = [1, 0, 0, 1, 1, 0, 1], [0, 0, 1, 2, 3, 4, 4]
    assert cluster_interval(hits, clusters, seed=1) == cluster_interval(hits, clusters, seed=1)
    values = [index**0.5 for index in range(50)]
    assert cluster_interval(values, range(50), seed=1) != cluster_interval(values, range(50), seed=2)
    narrow = cluster_interval(hits, clusters, seed=1, level=0.5)
    assert narrow.value == cluster_interval(hits, clusters, seed=2).value
    assert narrow.high - narrow.low < cluster_interval(hits, clusters, seed=1).high


def test_an_interval_says_whether_the_sign_is_sure_and_prints_points():
    assert Interval(0.128, 0.097, 0.157).excludes_zero
    assert Interval(-0.1, -0.2, -0.05).excludes_zero
    assert not Interval(0.01, -0.01, 0.03).excludes_zero
    assert str(Interval(0.128, 0.097, -0.157)) == "+12.8 [+9.7, -15.7]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_interval([], []), "0 values, 0 clusters"),
        (lambda: cluster_interval([1, 0], ["a"]), "2 values, 1 clusters"),
        (lambda: cluster_interval([1, math.nan], [0, 1]), "values hold nan"),
        (lambda: cluster_interval([1], [0], level=1.0), r"level=1\.0"),
        (lambda: cluster_interval([1], [0], resamples=0), "resamples=0"),
        (lambda: paired_difference([1], [1, 0], [0]), "1 items against 2"),
        (lambda: average_interval({}, {}), r"hits of \[\]"),
        (lambda: average_interval({"a": [1]}, {"b": [1]}), r"hits of \['a'\] but clusters of \['b'\]"),
        (lambda: average_difference({"a": [1]}, {"b": [1]}, {"a": [1]}), r"families \['a'\] against \['b'\]"),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
