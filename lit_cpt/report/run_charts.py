"""Charts of what runs did: losses against tokens, scores with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lit_cpt.report.canvas import COUNTS, PERCENT, printable
from lit_cpt.report.comparison import Row
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.runs import BASE, Points, Run, sources_of

POINTS = 80  # of a line; a longer one is drawn as mean and range of this many stretches


def losses_figure(runs: Mapping[str, Run], colours: Mapping[str, str]) -> Figure:
    """All loss panels on one sheet."""
    names = sources_of(runs)
    panels = ["training loss", *names]
    lines = -(-len(panels) // 3)
    figure = Figure(figsize=(9.6, 0.5 + 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, 3, squeeze=False).flat
    for axes, name in zip(grid, [None, *names], strict=False):
        draw_losses(axes, runs, colours, name)
    for axes in list(grid)[len(panels):]:
        axes.set_visible(False)
    handles = [Line2D([], [], color=LIGHT[colours[name]], linestyle=":" if name == BASE else "-", linewidth=1.8,
                      label=" " + printable(name)) for name in runs]
    figure.legend(handles=handles, loc="outside upper left", ncols=6)
    return figure


def loss_panel(runs: Mapping[str, Run], colours: Mapping[str, str], source: str | None, width: float) -> Figure:
    """One panel as a figure: a source's validation loss, or the training loss for None."""
    figure = Figure(figsize=(width, 0.65 * width), layout="constrained")
    draw_losses(figure.subplots(), runs, colours, source)
    return figure


def draw_losses(axes: Axes, runs: Mapping[str, Run], colours: Mapping[str, str], source: str | None) -> None:
    """Lines of all runs but the base, against tokens if all of them know their tokens, else against steps."""
    trained = {name: run for name, run in runs.items() if name != BASE}
    scales = {name: run.tokens_per_step for name, run in trained.items()}
    in_tokens = all(scales.values())
    for name, run in trained.items():
        points = run.scalars.get("train/loss", []) if source is None else run.validation.get(source, [])
        scale = (scales[name] or 1.0) if in_tokens else 1.0
        if points:
            draw_line(axes, points, scale, LIGHT[colours[name]], "o" if source is not None and len(points) < 3 else "")
        for event in run.events:
            if event.get("event") == "phase" and points:
                axes.axvline(event.get("step", 0) * scale, color=LIGHT[colours[name]], linewidth=0.8,
                             linestyle=(0, (3, 2)))
    if source is not None and BASE in runs and source in runs[BASE].validation:
        axes.axhline(runs[BASE].validation[source][-1][1], color=LIGHT["base"], linestyle=":", linewidth=1.6)
    axes.set_title("training loss" if source is None else printable(source))
    axes.set_xlabel("tokens seen" if in_tokens else "optimizer step")
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def score_panel(runs: Mapping[str, Run], colours: Mapping[str, str], family: str, width: float) -> Figure:
    """A family's score over a run; the base as a level where it ended."""
    figure = Figure(figsize=(width, 0.65 * width), layout="constrained")
    axes = figure.subplots()
    trained = {name: run for name, run in runs.items() if name != BASE}
    scales = {name: run.tokens_per_step for name, run in trained.items()}
    in_tokens = all(scales.values())
    for name, run in trained.items():
        if points := run.score_points(family):
            draw_line(axes, points, (scales[name] or 1.0) if in_tokens else 1.0, LIGHT[colours[name]], "o")
    if BASE in runs and (points := runs[BASE].score_points(family)):
        axes.axhline(points[-1][1], color=LIGHT["base"], linestyle=":", linewidth=1.6)
    axes.set_title(printable(family))
    axes.set_xlabel("tokens seen" if in_tokens else "optimizer step")
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def draw_line(axes: Axes, points: Points, scale: float, colour: str, marker: str) -> None:
    """One line; beyond `POINTS` points its mean, over a band from the least to the greatest of each stretch."""
    steps, values = np.array(points, dtype=np.float64).T
    values[~np.isfinite(values)] = np.nan  # a gap, where infinity would stretch the axis
    if len(values) > POINTS:
        cuts = np.array_split(np.arange(len(values)), -(-len(values) // -(-len(values) // POINTS)))
        low, high = [values[cut].min() for cut in cuts], [values[cut].max() for cut in cuts]
        steps, values = (np.array([each[cut].mean() for cut in cuts]) for each in (steps, values))
        axes.fill_between(steps * scale, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps * scale, values, color=colour, linewidth=1.5, marker=marker, markersize=4)


def scores_figure(rows: Sequence[Row], colours: Mapping[str, str], width: float) -> Figure:
    """Each family's scores with their intervals, the average last."""
    families = list(dict.fromkeys(row.family for row in rows))
    names = list(dict.fromkeys(row.run for row in rows))
    figure = Figure(figsize=(width, 0.6 + len(families) * (0.22 + 0.14 * len(names))), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        height = families.index(row.family) + 0.7 * ((names.index(row.run) + 0.5) / len(names) - 0.5)
        colour = LIGHT[colours[row.run]]
        axes.plot([100 * row.score.low, 100 * row.score.high], [height, height], color=colour, linewidth=1.6)
        axes.plot(100 * row.score.value, height, "o", color=colour, markersize=5.5)
    axes.set_yticks(range(len(families)), [printable(family) for family in families])
    axes.set_ylim(len(families) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    for line in range(1, len(families)):
        axes.axhline(line - 0.5, color=LIGHT["rule"], linewidth=0.6)
    return figure
