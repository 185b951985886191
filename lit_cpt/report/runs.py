"""A run folder as plain data; what is missing is named, not guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_cpt.events import read_events
from lit_cpt.ledger import read_ledger

if TYPE_CHECKING:
    from lit_cpt.report.frames import Frames

BASE = "base"  # a run of this name is where the others start from: a reference, not a contender
PARTS = ("events.out.tfevents*", "events.jsonl", "plan.json", "evals/", "ledger.jsonl")
PLAN_KEYS = ("token_horizon", "tokens_per_step", "curve", "phases")
EVAL_KEYS = ("step", "families", "average")
VALIDATION = re.compile(r"val/(.+)/loss")

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """What one run wrote.

    Attributes:
        name: What it is called in tables and charts.
        path: Its folder.
        scalars: TensorBoard tag to its (optimizer step, value), steps ascending.
        events: The diary, in the order it was written.
        plan: `plan.json`; empty if there is none.
        evals: The evaluations, steps ascending.
        ledger: Lines of `ledger.jsonl`, in order (`TokenLedgerCallback`).
        recipe: Text of `recipe.yaml`, or of `config.yaml` without it; may be empty.
        missing: What the folder lacks or what in it cannot be read, each as half a sentence.
    """

    name: str
    path: Path
    scalars: dict[str, Points]
    events: list[dict[str, Any]]
    plan: dict[str, Any]
    evals: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    recipe: str = ""
    missing: tuple[str, ...] = ()

    @property
    def frames(self) -> Frames:
        """The same as tidy pandas frames."""
        from lit_cpt.report.frames import Frames  # which is made of runs

        return Frames({self.name: self})

    @property
    def validation(self) -> dict[str, Points]:
        """Source to its validation loss over steps, finite values only."""
        found = {match[1]: self.scalars[tag] for tag in self.scalars if (match := VALIDATION.fullmatch(tag))}
        finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in found.items()}
        return {name: points for name, points in finite.items() if points}

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The evaluations that have a score."""
        return [eval_ for eval_ in self.evals if any(one["score"] is not None for one in eval_["families"].values())]

    def score_points(self, family: str) -> Points:
        """(step, per cent) of a family, or of the ``average``, over the evaluations."""
        found = [(eval_["step"], eval_["average"] if family == "average" else eval_["families"].get(family))
                 for eval_ in self.scored]
        return [(step, 100 * one["score"]) for step, one in found if one and one["score"] is not None]

    @property
    def failures(self) -> list[tuple[int, str, dict[str, Any]]]:
        """(step, family, what is known) of every family that an evaluation could not score."""
        return [(eval_["step"], family, failure) for eval_ in self.evals
                for family, failure in eval_.get("failures", {}).items()]

    @property
    def steps(self) -> int:
        """Optimizer steps made, as far as any of its files tell."""
        told = [points[-1][0] for points in self.scalars.values()] + [one["step"] for one in self.evals]
        return max([*told, *(int(event.get("step", 0)) for event in self.events), 0])

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens of an optimizer step: from the plan, else from the last count logged; None if neither is there."""
        if self.plan:
            return float(self.plan["tokens_per_step"])
        counted = [(step, tokens) for step, tokens in self.scalars.get("train/tokens_seen", []) if step > 0]
        counted += [(eval_["step"], eval_.get("tokens_seen") or 0) for eval_ in self.evals if eval_["step"] > 0]
        return counted[-1][1] / counted[-1][0] if counted and counted[-1][1] else None


def load_run(path: str | Path) -> Run:
    """Read a run folder, whatever parts of it are there.

    Args:
        path: The folder that training wrote (``trainer.default_root_dir``).

    Raises:
        ValueError: The folder holds nothing that a run writes.
    """
    path = Path(path)
    scalars, events = read_scalars(path), read_events(path)
    plans, spoilt_plan = read_json([path / "plan.json"], PLAN_KEYS)
    evals, spoilt_evals = read_json(sorted(path.glob("evals/step*.json")), EVAL_KEYS)
    ledger = read_ledger(path)
    parts = dict(zip(PARTS, (scalars, events, plans, evals, ledger), strict=True))
    if not any(parts.values()):
        raise ValueError(f"{path} is no run folder: it has none of {', '.join(PARTS)}. {cure(path)}")
    missing = [f"no {part}" for part, found in parts.items() if not found] + spoilt_plan + spoilt_evals
    recipe = next((file.read_text(encoding="utf-8", errors="replace")
                   for file in (path / "recipe.yaml", path / "config.yaml") if file.is_file()), "")
    return Run(path.resolve().name, path, scalars, events, plans[0] if plans else {},
               sorted(evals, key=lambda eval_: eval_["step"]), ledger, recipe, tuple(missing))


def named(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Each folder by the shortest end of its path that none of the others has.

    >>> list(named(["runs/a/first", "runs/b/first", "runs/second"]))
    ['a/first', 'b/first', 'second']
    """
    given = {Path(path).resolve(): Path(path) for path in paths}

    def end(path: Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    return {next(end(path, length) for length in range(1, len(path.parts) + 1)
                 if sum(end(other, length) == end(path, length) for other in given) == 1): told
            for path, told in given.items()}


def cure(path: Path) -> str:
    """Where to look instead."""
    inside = sorted(str(child) for child in path.glob("*/")
                    if any(any(child.glob(part.rstrip("/"))) for part in PARTS))
    if inside:
        return f"These inside it are: {', '.join(inside)}."
    return "Give the folder that `lit-cpt fit` wrote, its trainer.default_root_dir."


def sources_of(runs: Mapping[str, Run]) -> list[str]:
    """Every source with a validation loss, in order of first sight."""
    return list(dict.fromkeys(source for run in runs.values() for source in run.validation))


def read_scalars(path: Path) -> dict[str, Points]:
    """Scalars of all event files in ``path``; where a resumed run goes over old steps, its later file wins."""
    files = [EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
             for file in path.glob("events.out.tfevents*")]
    files = [file for file in files if file.Tags()["scalars"]]
    merged: dict[str, Points] = {}
    for file in sorted(files, key=lambda file: float(file.FirstEventTimestamp())):
        for tag in file.Tags()["scalars"]:
            points = sorted({event.step: event.value for event in file.Scalars(tag)}.items())
            merged[tag] = [point for point in merged.get(tag, []) if point[0] < points[0][0]] + points
    return merged


def read_json(files: list[Path], keys: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of those ``files`` that exist and have ``keys``, and what is wrong with the others."""
    good, spoilt = [], []
    for file in files:
        if not file.is_file():
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            lacking = [key for key in keys if key not in value]
        except (ValueError, TypeError):
            spoilt.append(f"{file.name} cannot be read")
            continue
        if lacking:
            spoilt.append(f"{file.name} lacks {', '.join(lacking)}")
        else:
            good.append(value)
    return good, spoilt
