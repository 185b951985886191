"""What is drawn of a grid, one panel a function: treatments in their colours, intervals over replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import LOSS
from lit_cpt.lab.scaling import Trend
from lit_cpt.lab.switch_points import Line, places, switch_of
from lit_cpt.lab.treatments import Treatments, Trial, first_trials, mean_of, values_of
from lit_cpt.report.canvas import COUNTS, PERCENT, printable, scientific, ticks
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.runs import Points
from lit_cpt.report.tradeoff_chart import SIGNED

Colours = Mapping[str, str]
PLACES = 200  # of a drawn law
TOUCHING = 0.12  # share of an axis that a figure takes


def draw_switch_points(axes: Axes, treatments: Treatments, lines: Sequence[Line], measure: str,
                       colours: Colours) -> None:
    """A measure against the switch point: a mark for each treatment, faint lines for the replicates.

    A treatment that stands on no line is a dotted level.
    """
    where, by_eta = places(lines)
    values = {name: values_of(trials, measure) for name, trials in treatments.items()}
    for line in lines:
        known = [name for name in line if values[name]]
        for pair in dict.fromkeys(pair for name in known for pair in values[name]):
            own = [name for name in known if pair in values[name]]
            axes.plot([where[name] for name in own], [values[name][pair][1] for name in own], color=LIGHT["rule"],
                      linewidth=1.2)
        means = {name: mean_of(values[name].values()) for name in known}
        axes.plot([where[name] for name in known], [one.value for one in means.values()], color=LIGHT["muted"],
                  linewidth=1.4)
        for name, mean in means.items():
            axes.plot([where[name]] * 2, [mean.low, mean.high], color=LIGHT[colours[name]], linewidth=1.6)
            axes.plot(where[name], mean.value, "o", color=LIGHT[colours[name]], markersize=6)
    for name in [name for name in treatments if name not in where and values[name]]:
        axes.axhline(mean_of(values[name].values()).value, color=LIGHT[colours[name]], linestyle=":", linewidth=1.6)
    axes.set_title(printable(measure))
    set_switch_axis(axes, sorted(set(where.values())), by_eta)
    axes.yaxis.set_major_locator(ticks(4))
    if not measure.startswith(LOSS):
        axes.yaxis.set_major_formatter(PERCENT)


def set_switch_axis(axes: Axes, marks: Sequence[float], by_eta: bool) -> None:
    """Later switches to the right, each told by its value."""
    if not by_eta:
        axes.set_xlabel("share of the tokens seen at the switch")
        axes.xaxis.set_major_locator(ticks(4))
        return
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("η at the switch / η max")
    axes.margins(x=0.08)
    shown = apart(marks)
    axes.set_xticks(shown, [f"{mark:.2g}" for mark in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def apart(marks: Sequence[float]) -> list[float]:
    """Those of ascending ``marks`` whose figures do not touch on a logarithmic axis.

    >>> apart([0.1, 0.49, 0.5, 1.0])
    [0.1, 0.49, 1.0]
    """
    shown = list(marks[:1])
    for mark in marks[1:]:
        if np.log(mark / shown[-1]) > TOUCHING * np.log(marks[-1] / marks[0]):
            shown.append(mark)
    return shown


def draw_tradeoff(axes: Axes, found: Mapping[str, tuple[Interval, Interval]], colours: Colours) -> None:
    """A mark for each treatment: to the right what it forgot, upwards what it gained, bars over replicates.

    Args:
        axes: Where to.
        found: Treatment to what it forgot, in nats, and what it gained, in points.
        colours: Treatment to the name of its colour.
    """
    for name, (forgotten, gained) in found.items():
        colour = LIGHT[colours[name]]
        axes.plot([forgotten.value] * 2, [gained.low, gained.high], color=colour, linewidth=1.6)
        axes.plot([forgotten.low, forgotten.high], [gained.value] * 2, color=colour, linewidth=1.6)
        axes.plot(forgotten.value, gained.value, "o", color=colour, markersize=7)
    for line in (axes.axhline, axes.axvline):
        line(0, color=LIGHT["muted"], linewidth=0.9)
    axes.set(xlabel="change of the loss on the old blend, nats", ylabel="change of the score, points")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticks(5))
        axis.set_major_formatter(SIGNED)


def draw_rates(axes: Axes, treatments: Treatments, colours: Colours) -> None:
    """The planned learning rate against tokens; a dot where the last of several phases begins."""
    for name, trial in first_trials(treatments).items():
        if plan := trial.run.plan:
            tokens, eta = zip(*plan["curve"], strict=True)
            axes.plot(tokens, eta, color=LIGHT[colours[name]], linewidth=1.5)
            if len(plan["phases"]) > 1 and (switch := switch_of(trial.run)) is not None:
                axes.plot(switch.progress * plan["token_horizon"], switch.eta_share * max(eta), "o", markersize=5.5,
                          color=LIGHT[colours[name]])
    axes.set(xlabel="tokens seen", ylabel="learning rate η")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(ticks(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))


def draw_losses(axes: Axes, treatments: Treatments, source: str, colours: Colours) -> None:
    """A source's validation loss against tokens: mean over replicates, in a band from the least to the greatest."""
    for name, trials in treatments.items():
        points = [in_tokens(trial, source) for trial in trials.values() if source in trial.run.validation]
        shared = sorted(set.intersection(*(set(one) for one in points))) if points else []
        if shared:
            values = np.array([[one[tokens] for tokens in shared] for one in points])
            axes.fill_between(shared, values.min(axis=0), values.max(axis=0), color=LIGHT[colours[name]], alpha=0.12,
                              linewidth=0)
            axes.plot(shared, values.mean(axis=0), color=LIGHT[colours[name]], linewidth=1.5,
                      marker="o" if len(shared) < 3 else "", markersize=4)
    axes.set_title(printable(source))
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(ticks(4))
    axes.yaxis.set_major_locator(ticks(4))


def in_tokens(trial: Trial, source: str) -> dict[float, float]:
    """Tokens seen to validation loss; steps in their place where the run does not tell its tokens."""
    points: Points = trial.run.validation[source]
    return {step * (trial.run.tokens_per_step or 1.0): loss for step, loss in points}


def draw_trends(axes: Axes, trends: Mapping[str, Trend], source: str, colours: Colours) -> None:
    """End losses against trained tokens, the law through them, and dashed what it tells beyond them."""
    for name, trend in trends.items():
        colour = LIGHT[colours[name]]
        for place, tokens in enumerate(trend.tokens):
            axes.plot([tokens] * len(trend.losses), [losses[place] for _, losses in trend.losses], "o", color=colour,
                      markersize=4)
        if trend.laws:
            for first, last, style in ((trend.tokens[0], trend.tokens[-1], "-"),
                                       (trend.tokens[-1], trend.further, (0, (4, 2)))):
                draw_law(axes, trend, np.geomspace(first, last, PLACES), colour, style)
    axes.set(xscale="log", yscale="log", xlabel="tokens trained")
    if beyond := [trend.tokens[-1] for trend in trends.values() if trend.laws]:
        right = axes.get_xlim()[1]
        axes.axvspan(max(beyond), right, color=LIGHT["shade"], zorder=0)
        axes.set_xlim(right=right)
        axes.text(0.99, 0.98, "extrapolated", transform=axes.transAxes, ha="right", va="top", fontsize=8.5,
                  color=LIGHT["muted"])
    axes.set_title(printable(source))
    horizons = sorted({tokens for trend in trends.values() for tokens in trend.tokens})
    axes.set_xticks(horizons, [COUNTS(tokens) for tokens in horizons])
    low, high = axes.get_ylim()
    losses = [mark for mark in ticks(4).tick_values(low, high) if low <= mark <= high]
    axes.set_yticks(losses, [f"{mark:.4g}" for mark in losses])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())


def draw_law(axes: Axes, trend: Trend, tokens: np.ndarray, colour: str, style: Any) -> None:
    """The mean of the laws, in the band of its interval over replicates."""
    told = [trend.at(each) for each in tokens]
    axes.plot(tokens, [one.value for one in told], color=colour, linewidth=1.5, linestyle=style)
    axes.fill_between(tokens, [one.low for one in told], [one.high for one in told], color=colour, alpha=0.12,
                      linewidth=0)
