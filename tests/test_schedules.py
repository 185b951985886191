from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_cpt.schedules import WSD, Constant, Cosine, Curve, InverseSqrt, Linear, Rewarm, Warmup

RATES = st.floats(1e-6, 1e-2)
RATIOS = st.floats(1e-3, 0.9)
SHARES = st.floats(0.01, 0.99)
MAKERS = {
    "cosine": lambda peak, floor, share: Cosine(peak, floor),
    "linear": lambda peak, floor, share: Linear(peak, floor),
    "inverse sqrt": lambda peak, floor, share: InverseSqrt(peak, floor),
    "wsd linear": lambda peak, floor, share: WSD(peak, floor, share, "linear"),
    "wsd 1-sqrt": lambda peak, floor, share: WSD(peak, floor, share, "1-sqrt"),
    "wsd cosine": lambda peak, floor, share: WSD(peak, floor, share, "cosine"),
    "warmup": lambda peak, floor, share: Warmup(Cosine(peak, floor), share),
    "rewarm": lambda peak, floor, share: Rewarm(Linear(peak, floor), share, floor),
    "rewarmed warmup": lambda peak, floor, share: Rewarm(Warmup(Cosine(peak, floor), 0.2), share, floor),
    "warmup wsd": lambda peak, floor, share: Warmup(WSD(peak, floor, 0.5, "1-sqrt"), share),
}
DECAYS = [name for name in MAKERS if "warm" not in name]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(peak=RATES, ratio=RATIOS, share=SHARES, height=st.floats(0.001, 0.999))
def test_eta_at_the_inverse_is_the_rate_asked_for(name, peak, ratio, share, height):
    curve = MAKERS[name](peak, peak * ratio, share)
    eta = peak * ratio + (peak - peak * ratio) * height
    progress = curve.progress(eta)
    assert curve.peak <= progress <= 1.0
    assert math.isclose(curve.eta(progress), eta, rel_tol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(peak=RATES, ratio=RATIOS, share=SHARES, place=SHARES)
def test_the_inverse_of_eta_is_the_progress_where_the_curve_falls(name, peak, ratio, share, place):
    curve = MAKERS[name](peak, peak * ratio, share)
    falls_from = 1.0 - share if name.startswith("wsd") else curve.peak
    progress = falls_from + (1.0 - falls_from) * place
    assume(name != "warmup wsd" or progress > share + (1 - share) * 0.51)
    # Near its ends a cosine or a square root is so flat that a rate's last bit spans 1e-7 of progress.
    assert math.isclose(curve.progress(curve.eta(progress)), progress, abs_tol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(peak=RATES, ratio=RATIOS, share=SHARES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_past_its_peak_a_curve_only_falls_and_stays_above_its_floor(name, peak, ratio, share, low, high):
    curve = MAKERS[name](peak, peak * ratio, share)
    low, high = sorted(max(curve.peak, place) for place in (low, high))
    slack = 1 + 1e-12
    assert peak * ratio <= curve.eta(high) * slack
    assert curve.eta(high) <= curve.eta(low) * slack
    assert curve.eta(low) <= peak * slack


@pytest.mark.parametrize("name", DECAYS)
def test_a_decay_runs_from_eta_max_to_eta_min_and_the_inverse_knows_both_ends(name):
    curve = MAKERS[name](4.5e-5, 4.5e-7, 0.25)
    assert curve.eta(0.0) == 4.5e-5
    assert curve.eta(1.0) == pytest.approx(4.5e-7, rel=1e-9)
    assert curve.progress(4.5e-5) == 0.0
    assert curve.progress(4.5e-7) == pytest.approx(1.0, abs=1e-7)
    assert curve.peak == 0.0


@pytest.mark.parametrize("maker", [Cosine, Linear, WSD, InverseSqrt])
def test_the_floor_is_a_hundredth_of_the_peak_where_none_is_given(maker):
    assert maker(4.5e-5).eta_min == 4.5e-5 / 100


def test_the_papers_cosine_is_down_to_a_fifth_at_71_percent():
    assert round(Cosine(4.5e-5).progress(4.5e-5 / 5), 4) == 0.7113
    assert Cosine(4.5e-5).eta(1.0) == pytest.approx(4.5e-7)


def test_a_wsd_is_flat_until_its_decay_begins():
    curve = WSD(1e-4, 1e-6, decay=0.2)
    assert curve.eta(0.8) == 1e-4
    assert curve.eta(0.81) < 1e-4
    assert curve.progress(0.999e-4) > 0.8


@pytest.mark.parametrize(("shape", "halfway"),
                         [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)])
def test_each_wsd_shape_is_the_one_it_is_called_after(shape, halfway):
    assert WSD(1.0, 0.0, 0.5, shape).eta(0.75) == pytest.approx(halfway)


def test_an_inverse_square_root_is_one():
    curve = InverseSqrt(1.0, 0.1)
    for progress in (0.0, 0.3, 0.7, 1.0):
        assert curve.eta(progress) == pytest.approx(1 / math.sqrt(1 + 99 * progress))


def test_a_warm_up_climbs_in_a_straight_line_and_has_its_peak_where_the_climb_ends():
    curve = Warmup(Cosine(1e-3), 0.1)
    assert (curve.eta(0.0), curve.eta(0.05), curve.eta(0.1)) == (0.0, pytest.approx(5e-4), 1e-3)
    assert curve.peak == 0.1
    assert curve.eta_max == 1e-3
    assert curve.progress(1e-3) == pytest.approx(0.1)


def test_the_inverse_of_a_rewarmed_curve_lies_on_its_fall_and_not_on_its_climb():
    curve = Rewarm(Cosine(1e-3), 0.1, eta_start=1e-5)
    assert curve.eta(0.0) == 1e-5
    assert curve.progress(2e-4) == pytest.approx(0.1 + 0.9 * Cosine(1e-3).progress(2e-4))
    assert curve.progress(1e-5) == pytest.approx(1.0)


def test_a_constant_reaches_nothing_but_itself():
    curve = Constant(3e-5)
    assert (curve.eta(0.0), curve.eta(1.0), curve.peak, curve.progress(3e-5)) == (3e-5, 3e-5, 0.0, 0.0)
    with pytest.raises(ValueError, match="eta=6e-06 is never reached: this curve runs from 3e-05 to 3e-05"):
        curve.progress(6e-6)


class Bent(Curve):
    """A user's curve: a climb, then a fall as a cube; nothing but eta and the peak."""

    def __init__(self, eta_max, climb=0.0):
        self.eta_max, self.climb = eta_max, climb

    @property
    def peak(self):
        return self.climb

    def eta(self, progress):
        if progress < self.climb:
            return self.eta_max * progress / self.climb
        return self.eta_max * (0.05 + 0.95 * (1 - (progress - self.climb) / (1 - self.climb)) ** 3)


@settings(max_examples=60, deadline=None)
@given(RATES, st.floats(0, 0.5), st.floats(0.051, 0.999))
def test_a_users_curve_with_only_eta_gets_its_inverse_by_bisection(peak, climb, ratio):
    curve = Bent(peak, climb)
    closed_form = climb + (1 - climb) * (1 - ((ratio - 0.05) / 0.95) ** (1 / 3))
    assert curve.progress(peak * ratio) == pytest.approx(closed_form, abs=1e-12)
    assert curve.eta(curve.progress(peak * ratio)) <= peak * ratio


def test_bisection_knows_both_ends_and_refuses_what_lies_beyond_them():
    curve = Bent(1e-3, 0.2)
    assert curve.progress(1e-3) == 0.2
    assert curve.progress(curve.eta(1.0)) == pytest.approx(1.0, abs=1e-5)  # a cube is flat at its end
    with pytest.raises(ValueError, match=r"eta=1e-05 is never reached: this curve runs from 0\.001 to 5e-05"):
        curve.progress(1e-5)
    with pytest.raises(ValueError, match=r"eta=0\.002 is never reached"):
        curve.progress(2e-3)


@pytest.mark.parametrize("name", MAKERS)
def test_a_rate_above_the_peak_or_below_the_floor_is_refused_with_the_range(name):
    curve = MAKERS[name](1e-4, 1e-6, 0.3)
    for eta in (2e-4, 5e-7):
        with pytest.raises(ValueError, match=f"eta={eta:g} is never reached.*from 0.0001 to 1e-06"):
            curve.progress(eta)


@pytest.mark.parametrize("curve", [Cosine(1e-4), WSD(1e-4), InverseSqrt(1e-4), Constant(1e-4),
                                   Warmup(Cosine(1e-4), 0.1)])
@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_the_horizon_is_refused(curve, progress):
    with pytest.raises(ValueError, match=f"progress={progress} is outside"):
        curve.eta(progress)


@dataclass(frozen=True)
class Refusal:
    """What is built, and what the error says."""

    build: object
    says: str


@pytest.mark.parametrize("refusal", [
    Refusal(lambda: Cosine(0.0), r"eta_max=0\.0 must be a positive finite number"),
    Refusal(lambda: Cosine(float("inf")), "eta_max=inf must be a positive finite number"),
    Refusal(lambda: Constant(-1e-4), r"eta_max=-0\.0001 must be a positive finite number"),
    Refusal(lambda: Linear(1e-4, 1e-3), r"eta_min=0\.001 must lie in \[0, eta_max=0\.0001\]"),
    Refusal(lambda: Linear(1e-4, -1e-6), r"eta_min=-1e-06 must lie in \[0, eta_max=0\.0001\]"),
    Refusal(lambda: WSD(1e-4, decay=0.0), r"decay=0\.0 must lie in \(0, 1\]"),
    Refusal(lambda: WSD(1e-4, decay=1.5), r"decay=1\.5 must lie in \(0, 1\]"),
    Refusal(lambda: WSD(1e-4, shape="sqrt"), "shape='sqrt' is unknown: choose 'linear', '1-sqrt'"),
    Refusal(lambda: InverseSqrt(1e-4, 0.0), r"eta_min=0\.0 must lie in \(0, eta_max=0\.0001\)"),
    Refusal(lambda: InverseSqrt(1e-4, 1e-4), r"eta_min=0\.0001 must lie in \(0, eta_max=0\.0001\)"),
    Refusal(lambda: Rewarm(Cosine(1e-4), 0.0, 1e-6), r"fraction=0\.0 must lie in \(0, 1\)"),
    Refusal(lambda: Warmup(Cosine(1e-4), 1.0), r"fraction=1\.0 must lie in \(0, 1\)"),
    Refusal(lambda: Rewarm(Cosine(1e-4), 0.1, 1e-3), r"eta_start=0\.001 must lie in \[0, eta_max=0\.0001\]"),
    Refusal(lambda: Rewarm(Cosine(1e-4), 0.1, -1.0), r"eta_start=-1\.0 must lie in \[0, eta_max=0\.0001\]"),
], ids=lambda refusal: refusal.says[:24])
def test_a_curve_that_cannot_be_run_cannot_be_built(refusal):
    with pytest.raises(ValueError, match=refusal.says):
        refusal.build()


@settings(max_examples=60, deadline=None)
@given(RATES, st.floats(0, 1))
def test_a_floor_at_the_peak_makes_a_flat_curve(peak, progress):
    curve = Linear(peak, peak)
    assert curve.eta(progress) == pytest.approx(peak)
    assert curve.progress(peak) == 0.0
    assert curve.progress(peak * (1 - 5e-10)) == 0.0  # within the slack for rounding
