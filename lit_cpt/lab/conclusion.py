"""What grids came to, once their arms have been trained: a table and a page for each, and the claims they decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_cpt.lab.arms_table import AVERAGE, Outcome, compare_arms, noise, outcome_of_run, render_arms
from lit_cpt.lab.claims import judge, read_claims, render_claims
from lit_cpt.lab.grid import Grid, spelled
from lit_cpt.lab.grid_page import write_grid_page
from lit_cpt.lab.summary import render_summary
from lit_cpt.lab.trunk import Budget
from lit_cpt.publishing import publish_text
from lit_cpt.report import load_run, write_report


@dataclass(frozen=True)
class Conclusion:
    """What a grid came to.

    Args:
        outcomes: Of its arms.
        results: As plain values.
        text: For a terminal.
        summary: In Markdown.
    """

    outcomes: tuple[Outcome, ...]
    results: dict[str, Any]
    text: str
    summary: str


def conclude(name: str, grid: Grid, folder: Path, runs: Mapping[str, Path], cost: Budget) -> Conclusion:
    """Compare the arms of a grid and write what came of it.

    Args:
        name: Of the grid.
        grid: Whose arms have been trained.
        folder: For the results.
        runs: Arm to its run folder.
        cost: Of all that was trained together.
    """
    loaded = {arm.name: load_run(runs[arm.name]) for arm in grid.arms}
    outcomes = tuple(outcome_of_run(arm, loaded[arm.name]) for arm in grid.arms)
    found = compare_arms(outcomes, grid.controls, spelled(grid.control))
    results = {"budget": cost.describe(), **found.describe()}
    publish_text(folder / "results.json", json.dumps(results, indent=1))
    publish_text(folder / "results.txt", render_arms(found) + "\n")
    pages = f"grid: {write_grid_page(folder, grid, loaded, found)}\nreport: {write_page(folder, grid, runs)}"
    return Conclusion(outcomes, results, f"\n{render_arms(found)}\n\n{pages}", render_summary(name, found))


def write_page(folder: Path, grid: Grid, runs: Mapping[str, Path]) -> Path:
    """`lit-cpt report` over the arms of the control's first replicate: rates, losses and scores over tokens."""
    control = next(arm for arm in grid.arms if grid.is_control(arm))
    shown = {arm.name: runs[arm.name] for arm in grid.arms if arm.pair == control.pair and not arm.again}
    notes = ["One replicate: results.txt has the means over all of them, and what they allow to say."]
    return write_report(shown, folder / "report.html", f"Arms of {control.pair or 'the grid'}", control.name, notes)


def judge_claims(path: str, conclusions: Mapping[str, Conclusion]) -> str:
    """What the arms of grids say of the claims of a file, in Markdown, with the noise of each grid.

    Args:
        path: Of the claims.
        conclusions: By the grid's name.

    Raises:
        ValueError: The file holds no claims.
    """
    outcomes: dict[str, dict[str, Outcome]] = {}
    for name, conclusion in conclusions.items():
        for one in conclusion.outcomes:
            if not one.again:
                outcomes.setdefault(f"{name}/{one.treatment}", {})[one.pair] = one
    floors = {name: noise(AVERAGE, one.outcomes) for name, one in conclusions.items()}
    told = ", ".join(f"{name} {'-' if floor is None else f'{floor:.2f}'}" for name, floor in floors.items())
    return (f"{render_claims(judge(read_claims(path), outcomes), path)}\n\n"
            f"Noise floor (s.d. of one arm over seeds) of the average, in points: {told}.")
