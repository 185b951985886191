"""Where treatments go over to their last blend, and which of them differ in nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lit_cpt.lab.treatments import Treatments, first_trials
from lit_cpt.report.runs import Run


@dataclass(frozen=True)
class Switch:
    """Where the last phase begins.

    Args:
        eta_share: Its learning rate over the highest of the run, in (0, 1].
        progress: Share of the token horizon seen, in [0, 1).
    """

    eta_share: float
    progress: float


Line = dict[str, Switch]  # treatments that are joined, in order of progress


def switch_lines(treatments: Treatments) -> list[Line]:
    """The treatments that differ only in when the last phase begins, line by line.

    One that trains on the last blend of others from its first step on, and is else like them, is their switch at the
    start. What waits for a metric, has no plan in its folder, or differs from all others otherwise, is on no line.
    """
    lines: dict[str, dict[str, Line]] = {}  # by all but the phases before the last, then by those
    firsts = {name: trial for name, trial in first_trials(treatments).items() if trial.run.plan}
    for name, trial in firsts.items():
        if (switch := switch_of(trial.run)) is not None:
            alike, before = split_config(trial.arm.config)
            lines.setdefault(alike, {}).setdefault(before, {})[name] = switch
    found = []
    for beginnings in lines.values():
        at_once = beginnings.pop("[]", {})
        found += [{**at_once, **line} for line in beginnings.values()]
    return [dict(sorted(line.items(), key=lambda item: item[1].progress)) for line in found if len(line) > 1]


def switch_of(run: Run) -> Switch | None:
    """Where a planned run begins its last phase; None if that cannot be foretold."""
    start = run.plan["phases"][-1]["start"]
    return Switch(start["eta"] / max(eta for _, eta in run.plan["curve"]), start["fraction"]) if start else None


def split_config(config: Mapping[str, Any]) -> tuple[str, str]:
    """A config without its switch, as text: with only the last phase, and the phases before that."""
    rest = deepcopy(dict(config))
    *before, last = rest["recipe"]["phases"]
    rest["recipe"]["phases"] = {name: value for name, value in last.items() if name != "when"}
    return json.dumps(rest, sort_keys=True), json.dumps(before, sort_keys=True)


def places(lines: Sequence[Line]) -> tuple[dict[str, float], bool]:
    """Where each treatment stands, and whether that is by its learning rate.

    It is not where the learning rate of some line does not fall from each switch to the next: then it is by progress.
    """
    by_eta = all(later.eta_share < earlier.eta_share for line in lines
                 for earlier, later in zip(line.values(), list(line.values())[1:], strict=False))
    return {name: switch.eta_share if by_eta else switch.progress for line in lines
            for name, switch in line.items()}, by_eta
