"""The chart of the ledger: which share each source had, over the tokens of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_cpt.report.canvas import COUNTS, PERCENT, printable, ticks
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.run_charts import POINTS, draw_switches, sheet
from lit_cpt.report.runs import Run


def shares_figure(run: Run, colours: Mapping[str, str], width: float, named: bool = False) -> Figure:
    """The shares of one run, ``width`` inches wide."""
    figure = Figure(figsize=(width, min(2.6, 0.65 * width)), layout="constrained")
    draw_shares(figure.subplots(), run, colours, printable(run.name) if named else "")
    return figure


def ledger_figure(runs: Mapping[str, Run], colours: Mapping[str, str]) -> Figure:
    """The shares of all runs on one sheet."""
    return sheet([partial(draw_shares, run=run, colours=colours, title=printable(run.name)) for run in runs.values()],
                 [Patch(color=LIGHT[colour], label=" " + printable(name)) for name, colour in colours.items()])


def draw_shares(axes: Axes, run: Run, colours: Mapping[str, str], title: str = "") -> None:
    """Stacked shares between the lines of the ledger; a triangle where a stretch was passed over."""
    edges, shares = intervals(run.ledger, list(colours))
    floor = np.zeros(len(edges) - 1)
    for name, share in zip(colours, shares, strict=True):
        axes.stairs(floor + share, edges, baseline=floor, fill=True, facecolor=LIGHT[colours[name]],
                    edgecolor=LIGHT["page"], linewidth=0.4)
        floor = floor + share
    if per_step := run.tokens_per_step:
        draw_switches(axes, run, per_step, LIGHT["ink"])
    for place in passed_places(run):
        axes.plot(place, 100.0, "v", color=LIGHT["ink"], markersize=6, clip_on=False, zorder=5)
    axes.set(ylim=(0, 100), xlim=(0, edges[-1]), xlabel="tokens trained")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(ticks(4))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_yticks([0, 50, 100])
    axes.grid(visible=False)


def intervals(ledger: list[dict[str, Any]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens at the edges of at most `POINTS` intervals, and shares in per cent, shape (sources, intervals)."""
    told = np.array([[0] * len(names), *([line["tokens"].get(name, 0) for name in names] for line in ledger)])
    told = told[np.unique(np.linspace(0, len(told) - 1, POINTS + 1).round().astype(int))]
    gains = np.diff(told, axis=0)
    some = gains.sum(axis=1) > 0  # a line that tells of no further step has no share
    edges = np.concatenate([[0.0], np.cumsum(gains.sum(axis=1)[some])])
    return edges, 100 * (gains[some] / gains[some].sum(axis=1, keepdims=True)).T


def passed_places(run: Run) -> list[float]:
    """Tokens trained before each stretch that was passed over; none where no plan tells how long a sample is."""
    length, before, places = sample_length(run), 0, []
    for first, stop in sorted(run.ledger[-1].get("passed_over", ())) if length else ():
        places.append((first - before) * (length or 0))
        before += stop - first
    return places


def sample_length(run: Run) -> float | None:
    """Tokens trained in a sample of the stream, as the plan has it."""
    drawn = (source for phase in run.plan.get("phases", []) for source in phase["sources"])
    return next((source["tokens"] / source["samples"] for source in drawn if source["samples"]), None)
