from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.spikes import NORMAL, Watch

noise = st.lists(st.floats(1.875, 2.125, width=32), min_size=20, max_size=60)


def scores(watch, values):
    return [watch.judge(torch.tensor([value])).item() for value in values]


@given(noise, st.floats(4.0, 1e6, width=32))
@settings(deadline=None, max_examples=8)
def test_a_value_far_above_the_noise_is_a_spike_and_the_noise_after_it_is_none(values, far):
    watch = Watch(("loss",))
    scores(watch, values)
    assert scores(watch, [far])[0] > watch.limits[0]
    assert scores(watch, [statistics.median_low(values)])[0] <= watch.limits[0]


@given(noise, st.sampled_from([math.nan, math.inf, -math.inf]))
@settings(deadline=None, max_examples=8)
def test_what_is_not_finite_scores_infinity_and_never_enters_the_window(values, wrong):
    watch, clean = Watch(("loss",)), Watch(("loss",))
    scores(watch, values)
    assert scores(watch, [wrong, wrong]) == [math.inf, math.inf]
    scores(clean, values)
    assert scores(watch, [5.0]) == scores(clean, [5.0])


def test_the_score_is_the_distance_from_the_median_in_median_absolute_deviations():
    watch = Watch(("loss",), window=5, least=5)
    scores(watch, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert scores(watch, [9.0])[0] == pytest.approx((9 - 3) / (NORMAL * 1))


def test_values_that_hardly_differ_are_no_spikes_of_each_other():
    watch = Watch(("loss",))
    assert max(scores(watch, [2.0] * 20 + [2.05])) < watch.limits[0]


def test_nothing_is_a_spike_before_enough_was_seen():
    assert scores(Watch(("loss",), least=4), [1.0, 100.0, 1.0, 1.0]) == [0.0] * 4


def test_a_fall_is_no_spike_and_a_new_level_is_learnt():
    watch = Watch(("loss",), window=16)
    scores(watch, [2.0, 2.1] * 16)
    assert scores(watch, [0.5])[0] < 0
    new = scores(watch, [4.0, 4.1] * 40)
    assert new[0] > watch.limits[0]
    assert new[-1] < watch.limits[0]


def test_each_value_has_its_own_past():
    watch = Watch(("loss", "norm"))
    for _ in range(20):
        watch.judge(torch.tensor([2.0, 100.0]))
    assert (watch.judge(torch.tensor([2.0, 900.0])) > watch.limits[0]).tolist() == [False, True]


def test_of_a_skewed_value_the_logarithm_is_judged_and_by_twice_the_threshold():
    watch = Watch(("norm",), window=5, least=5, skewed=("norm",))
    scores(watch, [math.exp(value) for value in (1, 2, 3, 4, 5)])
    assert watch.limits.tolist() == [12.0]
    assert scores(watch, [math.exp(9)])[0] == pytest.approx((9 - 3) / (NORMAL * 1), rel=1e-5)


def test_a_skewed_value_that_is_nothing_is_finite_and_one_that_is_not_finite_is_told():
    watch = Watch(("norm",), skewed=("norm",))
    assert scores(watch, [0.0, math.inf, math.nan])[1:] == [math.inf, math.inf]
    assert scores(watch, [0.0])[0] == 0


HEALTHY = Path(__file__).parent / "data" / "quickstart_norms.json"


def test_the_healthy_pretraining_of_the_quickstart_is_told_once_in_a_thousand_steps_and_a_wrong_step_is_seen():
    """Steps 201 to 1,200 as they were trained; then each of the last forty, by itself, made worse."""
    rows = torch.tensor(json.loads(HEALTHY.read_text()))
    watch = Watch(("loss", "norm"), skewed=("norm",))
    found = torch.stack([watch.judge(row) for row in rows]) > watch.limits
    assert found.any(dim=1).sum() <= 2
    for wrong in ([2.0, 2.0], [1.0, 10.0]):
        seen = 0
        for place in range(-40, 0):
            other = Watch(("loss", "norm"), skewed=("norm",))
            other.past, other.seen = watch.past.clone(), watch.seen.clone()
            seen += bool((other.judge(rows[place] * torch.tensor(wrong)) > other.limits).any())
        assert seen >= 38


def test_a_window_goes_on_from_its_state_and_is_forgotten_with_another_size():
    watch, resumed, other = Watch(("loss",)), Watch(("loss",)), Watch(("loss",), window=64)
    scores(watch, [2.0, 2.2, math.nan] * 10)
    resumed.load_state_dict(watch.state_dict())
    other.load_state_dict(watch.state_dict())
    assert scores(resumed, [3.0]) == scores(watch, [3.0])
    assert scores(other, [3.0]) == [0.0]
