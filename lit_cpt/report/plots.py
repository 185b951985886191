"""The two pictures as files, for the command line and beside the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_cpt.report.canvas import save
from lit_cpt.report.comparison import CONTROL
from lit_cpt.report.palette import run_colours
from lit_cpt.report.plan_chart import plan_figure
from lit_cpt.report.run_charts import losses_figure
from lit_cpt.report.runs import Run


def plot_plan(plan: dict[str, Any], file: str | Path) -> Path:
    """The picture of a recipe: the learning rate, and below it the blend, against tokens.

    Args:
        plan: The object of `plan.json`.
        file: A ``.png`` or ``.svg`` to write.
    """
    return save(lambda: plan_figure(plan, 8.0), file)


def plot_losses(runs: Mapping[str, Run], file: str | Path, control: str | None = None) -> Path:
    """Training loss, then validation loss source by source; one line a run.

    Args:
        runs: Name to run; one called "base" is a dotted level, not a line.
        file: A ``.png`` or ``.svg`` to write.
        control: The run drawn in grey; left out, the one called "baseline".
    """
    colours = run_colours(runs, control or CONTROL)
    return save(lambda: losses_figure(runs, colours), file)
