"""Charts of what runs did: losses, scores and other figures against tokens, scores with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter

from lit_cpt.report.canvas import COUNTS, PERCENT, ROOMY, printable, ticks
from lit_cpt.report.comparison import Row
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.runs import BASE, Points, Run, sources_of

POINTS = 80  # of a line; a longer one is drawn as mean and range of this many stretches
ON_A_LINE = 3  # panels of a sheet
LETTERS_PER_INCH, KEY_LETTERS = 11.5, 7  # of a key's names, and how many its line and gap take


def losses_figure(runs: Mapping[str, Run], colours: Mapping[str, str]) -> Figure:
    """All loss panels on one sheet."""
    return sheet([partial(draw_losses, runs=runs, colours=colours, source=name) for name in (None, *sources_of(runs))],
                 keys(runs, colours))


def sheet(panels: Sequence[Callable[[Axes], None]], handles: Sequence[Any]) -> Figure:
    """Panels in rows, below their key."""
    lines = -(-len(panels) // ON_A_LINE)
    figure = Figure(figsize=(9.6, 0.5 + 2.4 * lines), layout="constrained")
    grid = list(figure.subplots(lines, ON_A_LINE, squeeze=False).flat)
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    if handles:
        draw_key(figure, handles)
    return figure


def draw_key(figure: Figure, handles: Sequence[Any]) -> None:
    """The key above the panels, in as many columns as there is room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(figure.get_figwidth() * LETTERS_PER_INCH / (longest + KEY_LETTERS))
    figure.legend(handles=list(handles), loc="outside upper left", ncols=max(1, min(5, columns)))


def keys(names: Iterable[str], colours: Mapping[str, str], marker: str = "") -> list[Line2D]:
    """Names of runs beside their colours, for a picture that stands alone."""
    return [Line2D([], [], color=LIGHT[colours[name]], linestyle="-" if marker or name != BASE else ":", linewidth=1.8,
                   marker=marker, label=" " + printable(name, 40)) for name in names]


def loss_panel(runs: Mapping[str, Run], colours: Mapping[str, str], source: str | None, width: float) -> Figure:
    """One panel as a figure: a source's validation loss, or the training loss for None."""
    return panel(lambda axes: draw_losses(axes, runs, colours, source), width)


def score_panel(runs: Mapping[str, Run], colours: Mapping[str, str], family: str, width: float) -> Figure:
    """A family's score over a run; the base as a level where it ended."""
    return panel(lambda axes: draw_lines(axes, runs, colours, lambda run: run.score_points(family), family,
                                         formatter=PERCENT, dots=POINTS), width)


def panel(draw: Callable[[Axes], None], width: float) -> Figure:
    """What ``draw`` draws, as a figure of its own."""
    figure = Figure(figsize=(width, min(4.2, 0.65 * width)), layout="constrained")
    draw(figure.subplots())
    return figure


def draw_losses(axes: Axes, runs: Mapping[str, Run], colours: Mapping[str, str], source: str | None) -> None:
    """A source's validation loss, or the training loss for None."""
    if source is None:
        draw_lines(axes, runs, colours, lambda run: run.scalars.get("train/loss", []), "training loss", base=False)
    else:
        draw_lines(axes, runs, colours, lambda run: run.validation.get(source, []), source, dots=2)


def draw_lines(axes: Axes, runs: Mapping[str, Run], colours: Mapping[str, str], points_of: Callable[[Run], Points],
               title: str, formatter: Formatter | None = None, *, base: bool = True, dots: int = 0) -> None:
    """Lines of all runs but the base, against tokens if all of them know their tokens, else against steps.

    Args:
        axes: Where to.
        runs: Name to run.
        colours: Run to the name of its colour.
        points_of: A run's points.
        title: Of the panel.
        formatter: Of the values.
        base: Whether the base is a level where it ended.
        dots: Lines of at most as many points show them.
    """
    trained = {name: run for name, run in runs.items() if name != BASE}
    scales = {name: run.tokens_per_step for name, run in trained.items()}
    in_tokens = all(scales.values())
    for name, run in trained.items():
        points, scale = points_of(run), (scales[name] or 1.0) if in_tokens else 1.0
        if points:
            draw_line(axes, points, scale, LIGHT[colours[name]], "o" if len(points) <= dots else "")
            draw_switches(axes, run, scale, LIGHT[colours[name]])
    if base and BASE in runs and (points := points_of(runs[BASE])):
        axes.axhline(points[-1][1], color=LIGHT["base"], linestyle=":", linewidth=1.6)
    axes.set_title(printable(title))
    axes.set_xlabel("tokens seen" if in_tokens else "optimizer step")
    axes.xaxis.set_major_formatter(COUNTS)
    axes.xaxis.set_major_locator(ticks(4))
    axes.yaxis.set_major_locator(ticks(4))
    if formatter is not None:
        axes.yaxis.set_major_formatter(formatter)


def draw_switches(axes: Axes, run: Run, scale: float, colour: str) -> None:
    """A dashed line where a run switched its blend."""
    for step in {event["step"] for event in run.events
                 if event.get("event") == "phase" and isinstance(event.get("step"), int)}:
        axes.axvline(step * scale, color=colour, linewidth=0.8, linestyle=(0, (3, 2)))


def draw_line(axes: Axes, points: Points, scale: float, colour: str, marker: str) -> None:
    """One line; beyond `POINTS` points its mean, over a band from the least to the greatest of each stretch.

    What is not finite is left out: alone it leaves a gap.
    """
    steps, values = np.array(points, dtype=np.float64).T
    known = np.ma.masked_invalid(values)
    if len(values) > POINTS:
        cuts = np.array_split(np.arange(len(values)), -(-len(values) // -(-len(values) // POINTS)))
        low, high, known = (np.ma.stack([np.ma.atleast_1d(take(known[cut]))[0] for cut in cuts])
                            for take in (np.ma.min, np.ma.max, np.ma.mean))
        steps = np.array([steps[cut].mean() for cut in cuts])
        axes.fill_between(steps * scale, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps * scale, known.filled(np.nan), color=colour, linewidth=1.5, marker=marker, markersize=4)


def scores_figure(rows: Sequence[Row], colours: Mapping[str, str], width: float, named: bool = False) -> Figure:
    """Each family's scores with their intervals, the average last; the runs are ``named`` where it stands alone."""
    families = list(dict.fromkeys(row.family for row in rows))
    names = list(dict.fromkeys(row.run for row in rows))
    figure = Figure(figsize=(width, 0.6 + len(families) * (0.22 + 0.14 * len(names))), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        height = families.index(row.family) + 0.7 * ((names.index(row.run) + 0.5) / len(names) - 0.5)
        colour = LIGHT[colours[row.run]]
        axes.plot([100 * row.score.low, 100 * row.score.high], [height, height], color=colour, linewidth=1.6)
        axes.plot(100 * row.score.value, height, "o", color=colour, markersize=5.5)
    axes.set_yticks(range(len(families)), [printable(family, 26 if width > ROOMY else 14) for family in families])
    axes.set_ylim(len(families) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(ticks(5))
    axes.grid(axis="y", visible=False)
    for line in range(1, len(families)):
        axes.axhline(line - 0.5, color=LIGHT["rule"], linewidth=0.6)
    if named:
        figure.legend(handles=keys(names, colours, "o"), loc="outside upper left", ncols=4)
    return figure
