from __future__ import annotations

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_cpt.blends import Blend
from lit_cpt.recipe import PAPER_TRIGGERS, AdamW, Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Constant, Cosine, Curve, InverseSqrt, Linear, Rewarm, Warmup

GENERAL, LATE, LAST = Blend({"web": 0.7, "code": 0.3}), Blend({"web": 0.4, "qa": 0.6}), Blend({"qa": 1.0})


def recipe_of(*triggers, horizon=10_000, curve=None):
    """A recipe with one phase after another, p0, p1, ..."""
    phases = [Phase("p0", GENERAL), *(Phase(f"p{i + 1}", LATE, when) for i, when in enumerate(triggers))]
    return Recipe(horizon, curve or Cosine(1e-4), phases)


# Trigger -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trigger", "kind", "value", "text"), [
    (Trigger(eta_over_eta_max=0.2), "eta_over_eta_max", 0.2, "eta_over_eta_max=0.2"),
    (Trigger(eta=9e-6), "eta", 9e-6, "eta=9e-06"),
    (Trigger(tokens="250B"), "tokens", 250e9, "tokens=250B"),
    (Trigger(fraction=0.8), "fraction", 0.8, "fraction=0.8"),
    (Trigger(step=48), "step", 48.0, "step=48"),
    (Trigger(metric="val/qa/loss<1.2"), "metric", 1.2, "val/qa/loss < 1.2"),
    (Trigger(metric=" gain  >= -2e-1 "), "metric", -0.2, "gain >= -2e-1"),
])
def test_a_trigger_knows_its_kind_and_value_and_reads_as_in_a_recipe(trigger, kind, value, text):
    assert (trigger.kind, trigger.value, str(trigger)) == (kind, value, text)
    assert trigger.watches_eta == kind.startswith("eta")


@pytest.mark.parametrize(("given", "listed"), [({}, "none"), ({"eta": 1e-5, "step": 3}, "eta, step")])
def test_a_trigger_takes_exactly_one_of_its_kinds(given, listed):
    with pytest.raises(ValueError, match=rf"exactly one of eta_over_eta_max, eta, tokens, .*; given: {listed}\."):
        Trigger(**given)


@pytest.mark.parametrize(("given", "says"), [
    ({"eta_over_eta_max": 0.0}, r"eta_over_eta_max=0\.0 must lie in \(0, 1\)"),
    ({"eta_over_eta_max": 1.0}, r"eta_over_eta_max=1\.0 must lie in \(0, 1\)"),
    ({"fraction": 1.2}, r"fraction=1\.2 must lie in \(0, 1\)"),
    ({"fraction": float("nan")}, r"fraction=nan must lie in \(0, 1\)"),
    ({"step": 0}, "step=0 must be positive: the first phase has position 0 already"),
    ({"tokens": 0}, "tokens=0 must be positive"),
    ({"eta": -1e-5}, "eta=-1e-05 must be positive"),
    ({"eta": float("nan")}, "eta=nan must be positive"),
    ({"tokens": "lots"}, "tokens='lots' is not a count"),
    ({"metric": "val/qa/loss"}, "metric='val/qa/loss' is no comparison: write NAME < BOUND with one of <, <=, >, >="),
    ({"metric": "loss < low"}, 'metric=\'loss < low\' is no comparison: .* such as "val/qa/loss < 1.2"'),
    ({"metric": "loss < nan"}, "metric='loss < nan' is no comparison"),
    ({"metric": "loss == 1"}, "metric='loss == 1' is no comparison"),
    ({"metric": "< 1"}, "metric='< 1' is no comparison"),
    ({"metric": "1 < loss < 2"}, "metric='1 < loss < 2' is no comparison"),
])
def test_a_trigger_that_cannot_fire_is_refused_with_its_value(given, says):
    with pytest.raises(ValueError, match=says):
        Trigger(**given)


def test_a_threshold_is_fallen_to_at_it_and_below_it_and_a_rounding_above_it():
    trigger = Trigger(eta_over_eta_max=0.2)
    assert trigger.threshold(1e-4) == pytest.approx(2e-5)
    assert Trigger(eta=3e-6).threshold(1e-4) == 3e-6
    assert trigger.fell_to(2e-5, 1e-4)
    assert trigger.fell_to(1e-6, 1e-4)
    assert trigger.fell_to(2e-5 * (1 + 5e-10), 1e-4)
    assert not trigger.fell_to(2e-5 * (1 + 1e-8), 1e-4)


@pytest.mark.parametrize(("trigger", "tokens"), [
    (Trigger(fraction=0.1), 30), (Trigger(fraction=0.333), 100), (Trigger(tokens=77), 77), (Trigger(step=3), None),
    (Trigger(eta=1e-5), None)])
def test_a_token_count_is_whole_and_never_before_its_fraction(trigger, tokens):
    assert trigger.token_count(300) == tokens


@pytest.mark.parametrize(("sign", "below", "at", "above"), [("<", True, False, False), ("<=", True, True, False),
                                                            (">", False, False, True), (">=", False, True, True)])
def test_a_metric_crosses_its_bound_by_its_sign_and_never_as_nan(sign, below, at, above):
    trigger = Trigger(metric=f"val/qa/loss {sign} 1.5")
    assert trigger.metric_name == "val/qa/loss"
    assert [trigger.crossed_by(value) for value in (1.4, 1.5, 1.6)] == [below, at, above]
    assert not trigger.crossed_by(float("nan"))
    assert Trigger(step=3).metric_name is None
    assert not Trigger(step=3).crossed_by(0.0)


# Batch and AdamW -----------------------------------------------------------------------------------


def test_the_papers_batch_makes_its_steps():
    batch = Batch(sequence_length=4096, global_batch=1536, micro_batch=4)
    assert batch.tokens_per_step == 1536 * 4096
    assert batch.accumulation(64) == 6
    assert Batch(8, 12, 4).accumulation(1) == 3


def test_a_global_batch_that_does_not_divide_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"global_batch=10 is no multiple of micro_batch x ranks = 4 x 2 = 8\. "
                                         r"Choose a micro_batch that divides 10 / 2"):
        Batch(8, 10, 4).accumulation(2)


@pytest.mark.parametrize("name", ["sequence_length", "global_batch", "micro_batch"])
def test_a_batch_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Batch(**{"sequence_length": 8, "global_batch": 4, "micro_batch": 2, name: 0})


def test_adamw_takes_the_papers_settings_and_a_list_of_betas():
    assert AdamW() == AdamW(betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip=1.0)


@pytest.mark.parametrize(("given", "says"), [
    ({"betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\) must both lie in \[0, 1\)"),
    ({"betas": (-0.1, 0.9)}, r"betas=\(-0\.1, 0\.9\) must both lie"),
    ({"eps": -1e-8}, "eps=-1e-08 must be a finite number of at least 0"),
    ({"weight_decay": float("nan")}, "weight_decay=nan must be a finite number"),
    ({"clip": float("inf")}, "clip=inf must be a finite number"),
])
def test_settings_that_adamw_cannot_run_with_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        AdamW(**given)


def test_adamw_has_two_betas():
    with pytest.raises(ValueError, match=r"betas=\(0\.9, 0\.95, 0\.99\)"):
        AdamW(betas=(0.9, 0.95, 0.99))


# Where phases begin ----------------------------------------------------------------------------------


def test_the_papers_switch_falls_at_71_percent_of_its_horizon():
    recipe = recipe_of(PAPER_TRIGGERS[0], horizon="300B", curve=Cosine(4.5e-5))
    assert recipe.progress_of(recipe.phases[1]) == pytest.approx(0.7113, abs=5e-5)
    tokens_per_step = 1536 * 4096
    [_, switch] = recipe.start_steps(tokens_per_step)
    assert switch * tokens_per_step / 300e9 == pytest.approx(0.7113, abs=5e-5)
    assert recipe.eta_at(switch * tokens_per_step) <= 9e-6 < recipe.eta_at((switch - 1) * tokens_per_step)
    # The other figure of the paper, 250B of 300B, is another place on this curve.
    assert recipe_of(PAPER_TRIGGERS[1], horizon="300B").progress_of(
        recipe_of(PAPER_TRIGGERS[1], horizon="300B").phases[1]) == pytest.approx(250 / 300)


@pytest.mark.parametrize(("trigger", "step"), [
    (Trigger(eta_over_eta_max=0.2), 72), (Trigger(eta=2e-5), 72), (Trigger(tokens=3_000), 30),
    (Trigger(tokens=3_001), 31), (Trigger(fraction=0.5), 50), (Trigger(fraction=0.501), 51), (Trigger(step=7), 7)])
def test_each_kind_of_trigger_starts_its_phase_at_the_first_step_where_it_holds(trigger, step):
    assert recipe_of(trigger).start_steps(100) == [0, step]


RATIOS = st.floats(0.02, 0.98)


class Cubic(Curve):
    """A user's curve: eta only."""

    eta_max = 1e-4

    def eta(self, progress):
        return 1e-4 * (0.01 + 0.99 * (1 - progress) ** 3)


CURVES = st.sampled_from([
    Cosine(1e-4), Linear(1e-4), WSD(1e-4, decay=0.3), WSD(1e-4, decay=0.5, shape="linear"),
    WSD(1e-4, decay=1.0, shape="cosine"), InverseSqrt(1e-4), Warmup(Cosine(1e-4), 0.13), Cubic(),
    Rewarm(Linear(1e-4), 0.2, 1e-5), Rewarm(WSD(1e-4), 0.05, 0.0), Warmup(Cubic(), 0.3)])
TRIGGERS = st.one_of(
    st.builds(Trigger, eta_over_eta_max=RATIOS), st.builds(lambda ratio: Trigger(eta=ratio * 1e-4), RATIOS),
    st.builds(Trigger, fraction=RATIOS), st.builds(lambda ratio: Trigger(tokens=max(1, int(ratio * 20_000))), RATIOS),
    st.builds(Trigger, step=st.integers(1, 80)))


def holds(recipe, trigger, step, tokens_per_step):
    """Whether ``trigger`` holds before optimizer step ``step``: what a run would see."""
    tokens = step * tokens_per_step
    if trigger.watches_eta:
        return tokens / recipe.horizon >= recipe.curve.peak and recipe.eta_at(tokens) <= trigger.threshold(
            recipe.curve.eta_max) * (1 + 1e-9)
    if trigger.kind == "step":
        return step >= trigger.step
    return tokens >= (trigger.tokens or trigger.fraction * recipe.horizon - 1e-6)


@settings(max_examples=200, deadline=None)
@given(CURVES, TRIGGERS, st.integers(1, 900))
def test_the_first_step_is_the_one_that_a_loop_over_steps_would_find(curve, trigger, tokens_per_step):
    horizon = 20_000
    try:
        recipe = recipe_of(trigger, horizon=horizon, curve=curve)
    except ValueError:
        assume(False)
    steps = recipe.steps(tokens_per_step)
    looped = next(step for step in range(max(steps, 80) + 1) if holds(recipe, trigger, step, tokens_per_step))
    assert recipe.first_step(recipe.phases[1], tokens_per_step) == looped


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 10**8))
def test_steps_cover_the_horizon_and_no_step_more(horizon, tokens_per_step):
    steps = recipe_of(horizon=horizon).steps(tokens_per_step)
    assert (steps - 1) * tokens_per_step < horizon <= steps * tokens_per_step


@pytest.mark.parametrize(("ratio", "share"), [(0.2, 0.5), (0.5, 0.25)])
def test_a_warm_up_below_the_threshold_starts_no_phase(ratio, share):
    recipe = recipe_of(Trigger(eta_over_eta_max=ratio), curve=Warmup(Cosine(1e-4), share))
    [_, switch] = recipe.start_steps(100)
    assert switch >= share * 100
    assert recipe.eta_at(0) < ratio * 1e-4


def test_the_rate_past_the_horizon_is_the_rate_at_its_end():
    recipe = recipe_of(curve=Linear(1e-4, 1e-6))
    assert recipe.eta_at(0) == 1e-4
    assert recipe.eta_at(recipe.horizon + 77) == recipe.eta_at(recipe.horizon) == pytest.approx(1e-6)


def test_three_phases_begin_in_the_order_written():
    recipe = recipe_of(Trigger(fraction=0.25), Trigger(eta_over_eta_max=0.2), Trigger(step=90))
    assert recipe.start_steps(100) == [0, 25, 72, 90]
    assert recipe.sources == ["code", "qa", "web"]


def test_a_run_of_one_phase_is_a_recipe():
    assert recipe_of(curve=Constant(1e-5)).start_steps(100) == [0]


def test_nothing_behind_a_metric_is_foretold():
    recipe = recipe_of(Trigger(fraction=0.25), Trigger(metric="val/qa/loss < 1.2"), Trigger(step=90))
    assert recipe.start_steps(100) == [0, 25, None, None]
    assert recipe.foretold(100) == [0, 25]
    assert recipe.progress_of(recipe.phases[2]) is None


def test_phases_around_a_metric_must_still_begin_in_order():
    with pytest.raises(ValueError, match=r"phase 'p3' \(fraction=0\.2\) begins at 0\.2000 .*\(0\.2500\)"):
        recipe_of(Trigger(fraction=0.25), Trigger(metric="loss < 1"), Trigger(fraction=0.2))
    with pytest.raises(ValueError, match="phase 'p1' would run from step 100 to 100: no step at all"):
        recipe_of(Trigger(step=100), Trigger(metric="loss < 1")).start_steps(100)


# Refusals --------------------------------------------------------------------------------------------


def test_a_rate_that_the_curve_never_reaches_is_refused():
    with pytest.raises(ValueError, match=r"eta=1e-07 is never reached: this curve runs from 0\.0001 to 1e-06"):
        recipe_of(Trigger(eta=1e-7))
    with pytest.raises(ValueError, match="eta=2e-06 is never reached: this curve runs from 1e-05 to 1e-05"):
        recipe_of(Trigger(eta_over_eta_max=0.2), curve=Constant(1e-5))


@pytest.mark.parametrize(("triggers", "says"), [
    ((Trigger(fraction=0.8), Trigger(eta_over_eta_max=0.2)),
     r"phase 'p2' \(eta_over_eta_max=0\.2\) begins at 0\.7113 of the horizon; .*\(0\.8000\)"),
    ((Trigger(fraction=0.5), Trigger(tokens=5_000)), r"phase 'p2' \(tokens=5k\) begins at 0\.5000"),
    ((Trigger(tokens=10_000),), r"phase 'p1' \(tokens=10k\) begins at 1\.0000 of the horizon"),
    ((Trigger(tokens="1T"),), r"phase 'p1' \(tokens=1T\) begins at 100000000\.0000"),
    ((Trigger(eta=1e-4),), r"phase 'p1' \(eta=0\.0001\) begins at 0\.0000"),
    ((Trigger(eta=1e-6),), r"phase 'p1' \(eta=1e-06\) begins at 1\.0000"),
])
def test_phases_out_of_order_or_past_the_end_are_refused_with_where_they_fall(triggers, says):
    with pytest.raises(ValueError, match=says):
        recipe_of(*triggers)


@pytest.mark.parametrize(("triggers", "tokens_per_step", "says"), [
    ((Trigger(step=100),), 100, "phase 'p1' would run from step 100 to 100: no step at all"),
    ((Trigger(step=60), Trigger(fraction=0.5)), 100, "phase 'p1' would run from step 60 to 50: no step at all"),
    ((Trigger(fraction=0.51), Trigger(fraction=0.52)), 1_000, "phase 'p1' would run from step 6 to 6: no step at all"),
])
def test_a_phase_without_a_step_of_its_own_is_refused_at_this_batch(triggers, tokens_per_step, says):
    with pytest.raises(ValueError, match=f"{says}. Lower global_batch"):
        recipe_of(*triggers).start_steps(tokens_per_step)


@pytest.mark.parametrize(("phases", "says"), [
    ([], "a recipe needs at least one phase"),
    ([Phase("a", GENERAL, Trigger(step=3))], "the first phase, 'a', has when: step=3; it begins the run"),
    ([Phase("a", GENERAL), Phase("b", LATE)], "phase 'b' has no trigger: give it one"),
    ([Phase("a", GENERAL), Phase("a", LATE, Trigger(step=3))], "two phases are called 'a'"),
])
def test_phases_that_say_no_order_of_events_are_refused(phases, says):
    with pytest.raises(ValueError, match=says):
        Recipe("1M", Cosine(1e-4), phases)


@pytest.mark.parametrize(("horizon", "says"), [(0, "token_horizon=0 trains on nothing"),
                                               ("long", "token_horizon='long' is not a count"),
                                               (-5, "token_horizon=-5 is not a count")])
def test_a_horizon_of_nothing_is_refused(horizon, says):
    with pytest.raises(ValueError, match=says):
        recipe_of(horizon=horizon)


# describe --------------------------------------------------------------------------------------------


def test_a_described_recipe_is_plain_json():
    recipe = Recipe("1M", Warmup(Cosine(1e-4), 0.1),
                    [Phase("a", GENERAL), Phase("b", LAST, Trigger(eta_over_eta_max=0.2))], AdamW(clip=0.5))
    described = recipe.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["token_horizon"] == 1_000_000
    assert described["curve"]["class_path"] == "Warmup"
    assert described["curve"]["init_args"]["curve"] == {"class_path": "Cosine",
                                                       "init_args": {"eta_max": 1e-4, "eta_min": 1e-6}}
    assert described["phases"] == [{"name": "a", "blend": {"weights": {"web": 0.7, "code": 0.3}}},
                                   {"name": "b", "blend": {"weights": {"qa": 1.0}}, "when": {"eta_over_eta_max": 0.2}}]
    assert described["optimizer"]["clip"] == 0.5


def test_a_metric_is_described_as_it_is_written():
    [_, phase] = recipe_of(Trigger(metric="val/qa/loss<1.2")).describe()["phases"]
    assert phase["when"] == {"metric": "val/qa/loss < 1.2"}
    assert Trigger(**phase["when"]) == Trigger(metric="val/qa/loss < 1.2")


def test_two_recipes_that_differ_are_described_differently():
    assert recipe_of(Trigger(step=3)).describe() == recipe_of(Trigger(step=3)).describe()
    assert recipe_of(Trigger(step=3)).describe() != recipe_of(Trigger(step=4)).describe()
    assert recipe_of(curve=Cosine(1e-4)).describe() != recipe_of(curve=Linear(1e-4)).describe()


class Hand(Curve):
    """A user's curve that is no dataclass."""

    def __init__(self, eta_max):
        self.eta_max = eta_max

    def eta(self, progress):
        return self.eta_max * (1 - 0.9 * progress)


def test_a_users_own_curve_runs_and_is_described():
    recipe = recipe_of(Trigger(eta_over_eta_max=0.55), curve=Hand(1e-4))
    assert recipe.start_steps(100) == [0, 50]
    assert math.isclose(recipe.eta_at(5_000), 5.5e-5)
    assert json.loads(json.dumps(recipe.describe()))["curve"] == {"class_path": "Hand", "init_args": {"eta_max": 1e-4}}
