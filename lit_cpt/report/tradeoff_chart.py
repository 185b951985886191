"""The chart of forgetting against gain."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lit_cpt.report.canvas import ROOMY, ticks
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.run_charts import keys
from lit_cpt.report.tradeoff import Balance
from lit_cpt.units import format_count

SIGNED = FuncFormatter(lambda value, _: f"{value:+.4g}".replace("-", "\u2212") if abs(value) > 1e-9 else "0")
TOLD = 12  # points of a path that are told by their step


def tradeoff_figure(found: Mapping[str, Balance], colours: Mapping[str, str], width: float,
                    named: bool = False) -> Figure:
    """Each run's path from where it began, to the right what it forgot, upwards what it gained.

    Args:
        found: Run to balance.
        colours: Run to the name of its colour.
        width: Inches.
        named: Whether the runs are named below, for a picture that stands alone.
    """
    figure = Figure(figsize=(width, min(4.2, 0.85 * width)), layout="constrained")
    axes = figure.subplots()
    for name, one in found.items():
        colour, heights = LIGHT[colours[name]], [0.0, *(100 * gained for gained in one.gained)]
        axes.plot([0.0, *one.forgotten], heights, color=colour, linewidth=1.1, marker="o", markersize=3)
        axes.plot([one.forgotten[-1]] * 2, [100 * one.gain.low, 100 * one.gain.high], color=colour, linewidth=1.6)
        axes.plot(one.forgotten[-1], heights[-1], "o", color=colour, markersize=7.5)
        if len(found) == 1 and len(one.steps) <= TOLD:
            for step, x, y in zip(one.steps, one.forgotten, heights[1:], strict=True):
                axes.annotate(format_count(step), (x, y), (5, 5), textcoords="offset points", color=LIGHT["muted"],
                              fontsize=8)
    for line in (axes.axhline, axes.axvline):
        line(0, color=LIGHT["muted"], linewidth=0.9)
    axes.margins(0.1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.5), max(high, 0.5))  # else nothing would fill the chart
    right = axes.get_xlim()[1]
    axes.axvspan(0, right, color=LIGHT["shade"], zorder=0)
    axes.set_xlim(right=right)
    axes.set_xlabel("change of the loss on the old blend, nats" + (
        "; shaded: forgotten" if width > ROOMY else "\nshaded: forgotten"))
    axes.set_ylabel("change of the average score, points")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticks(5))
        axis.set_major_formatter(SIGNED)
    if named:
        figure.legend(handles=keys(found, colours, "o"), loc="outside upper left", ncols=4)
    return figure
