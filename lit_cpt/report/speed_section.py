"""How fast the runs were, as `ThroughputCallback` logged it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from statistics import mean, median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_cpt.report.canvas import COUNTS, PERCENT
from lit_cpt.report.course import wall_seconds
from lit_cpt.report.figures import legend, panels
from lit_cpt.report.markup import Cell, section, table
from lit_cpt.report.run_charts import draw_lines, keys, panel, sheet
from lit_cpt.report.runs import BASE, Points, Run
from lit_cpt.units import format_count, format_seconds

# Tag to title, and whether it is a share.
DRAWN = {"speed/tokens_per_second": ("tokens a second", False), "speed/data_wait": ("waiting for data", True),
         "speed/paused": ("paused", True), "speed/mfu": ("MFU", True)}


def measured(run: Run, tag: str) -> Points:
    """The finite points of a tag, shares in per cent."""
    factor = 100.0 if DRAWN.get(tag, ("", False))[1] else 1.0
    return [(step, factor * value) for step, value in run.scalars.get(tag, []) if math.isfinite(value)]


def timed(runs: Mapping[str, Run]) -> list[str]:
    """Tags that some run but the base has."""
    return [tag for tag in DRAWN if any(measured(run, tag) for name, run in runs.items() if name != BASE)]


def speed_section(runs: Mapping[str, Run], colours: Mapping[str, str]) -> str:
    """Table, then a panel for each figure."""
    if not timed(runs):
        return ""
    shown = [name for name in runs if name != BASE]
    return section("Speed", speed_table(runs), legend(shown, colours),
                   panels([(partial(speed_panel, runs, colours, tag), DRAWN[tag][0]) for tag in timed(runs)], "speed"))


def speed_table(runs: Mapping[str, Run]) -> str:
    """Runs × figures."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        rate, wait, paused, mfu = (([value for _, value in measured(run, tag)]) for tag in DRAWN)
        memory = [value for _, value in measured(run, "speed/memory_gib")]
        planned = (run.plan.get("scale") or {}).get("tokens_per_second")
        took = wall_seconds(run)
        lines.append([name, Cell(format_count(median(rate)) if rate else "–",
                                 f"planned {format_count(planned)}" if planned else ""),
                      *(f"{mean(part):.1f} %" if part else "–" for part in (wait, paused)),
                      f"{median(mfu):.3g} %" if mfu else "–", f"{max(memory):.1f} GiB" if memory else "–",
                      format_seconds(took) if took else "–"])
    return table("Tokens a second and MFU are medians, without the pauses (validation, evaluation, saving)",
                 ["run", "tokens/s", "waiting for data", "paused", "MFU", "most memory", "took"], lines)


def speed_panel(runs: Mapping[str, Run], colours: Mapping[str, str], tag: str, width: float) -> Figure:
    """One figure over the runs."""
    return panel(lambda axes: draw_speed(axes, runs, colours, tag), width)


def speed_figure(runs: Mapping[str, Run], colours: Mapping[str, str]) -> Figure:
    """All figures on one sheet."""
    trained = {name: run for name, run in runs.items() if name != BASE}
    return sheet([partial(draw_speed, runs=runs, colours=colours, tag=tag) for tag in timed(runs)],
                 keys(trained, colours))


def draw_speed(axes: Axes, runs: Mapping[str, Run], colours: Mapping[str, str], tag: str) -> None:
    """Lines from zero up."""
    title, share = DRAWN[tag]
    draw_lines(axes, runs, colours, lambda run: measured(run, tag), title, PERCENT if share else COUNTS, base=False,
               dots=2)
    axes.set_ylim(0, 1.06 * axes.dataLim.ymax if axes.dataLim.ymax > 0 else 1)
