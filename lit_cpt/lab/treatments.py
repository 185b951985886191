"""The arms of a grid as treatments and their replicates, each with the run that was made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import Outcome, counted, outcome_of_run
from lit_cpt.lab.grid import Arm, Grid
from lit_cpt.lab.significance import t_interval
from lit_cpt.report.runs import Run


@dataclass(frozen=True)
class Trial:
    """One arm and what came of it."""

    arm: Arm
    run: Run
    outcome: Outcome


Treatments = dict[str, dict[str, Trial]]  # treatment to replicate to trial


def treatments_of(grid: Grid, runs: Mapping[str, Run]) -> Treatments:
    """The grid's arms but for the repetitions that only tell its noise.

    Args:
        grid: Whose arms have been trained.
        runs: Arm to its run.
    """
    found: Treatments = {}
    for arm in grid.arms:
        if not arm.again:
            run = runs[arm.name]
            found.setdefault(arm.treatment, {})[arm.pair] = Trial(arm, run, outcome_of_run(arm, run))
    return found


def first_trials(treatments: Treatments) -> dict[str, Trial]:
    """One trial of each treatment, all of one replicate."""
    return {name: next(iter(trials.values())) for name, trials in treatments.items()}


def mean_of(values: Iterable[tuple[str, float]]) -> Interval:
    """The mean of (block, value) pairs with its 95 % t interval; one value has no interval (NaN).

    >>> mean_of([("", 2.0)])
    Interval(value=2.0, low=nan, high=nan)
    """
    known = list(values)
    return t_interval(counted(known)) or Interval(fmean(value for _, value in known), math.nan, math.nan)


def values_of(trials: Mapping[str, Trial], measure: str) -> dict[str, tuple[str, float]]:
    """Replicate to (block, value) of a measure, where it has one."""
    found = {pair: (trial.outcome.block, trial.outcome.measure(measure)) for pair, trial in trials.items()}
    return {pair: (block, value) for pair, (block, value) in found.items() if value is not None}
