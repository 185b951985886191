"""Trains the arms of a grid: ordinary `fit` runs in ``DIR/runs``, each from a checkpoint of the one it shares with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from lit_cpt.checkpoints import damage, newest_whole, step_of, step_path
from lit_cpt.events import finished_at
from lit_cpt.lab.branching import branch
from lit_cpt.lab.grid import Arm
from lit_cpt.lab.side_by_side import Environment, Job, run_side_by_side
from lit_cpt.lab.trunk import Course, Legs, branch_points, changed_fields
from lit_cpt.publishing import publish_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """A grid in its folder.

    Args:
        root: The folder.
        courses: What each arm trains.
        legs: What of it by itself.
    """

    root: Path
    courses: Mapping[str, Course]
    legs: Legs

    def run(self, arm: str) -> Path:
        """The run folder of an arm."""
        return self.root / "runs" / arm

    def config(self, arm: str) -> Path:
        """The config of an arm, as `fit` takes it."""
        return self.root / "arms" / f"{arm}.yaml"


def write_arms(bench: Bench, arms: Mapping[str, Arm]) -> None:
    """Write each arm's config.

    Raises:
        FileExistsError: The folder holds an arm of this name with another config.
    """
    for name, arm in arms.items():
        path = bench.config(name)
        if path.exists() and yaml.safe_load(path.read_text(encoding="utf-8")) != arm.config:
            raise FileExistsError(f"{path} is the config of another run than this grid's {name}: name another "
                                  "--output, or restore the grid.")
    for name, arm in arms.items():
        publish_text(bench.config(name), yaml.safe_dump(arm.config, sort_keys=False))


def train_arms(bench: Bench, slots: Sequence[Environment], arms: Sequence[str] | None = None) -> None:
    """Train what is not trained yet.

    Args:
        bench: The grid.
        slots: Places to train in.
        arms: Only these, with what they go on from; None means all.

    Raises:
        ArmFailed: An arm failed; the others have been trained.
    """
    asked = list(bench.legs) if arms is None else arms
    left = [arm for arm in asked if not finished(bench, arm)]
    log.info("%d of %d arms are trained already", len(asked) - len(left), len(asked))
    run_side_by_side({arm: Job(bench.root / "logs" / f"{arm}.txt", partial(fit_arguments, bench, arm),
                               partial(ready, bench, arm)) for arm in left}, slots)


def finished(bench: Bench, arm: str) -> bool:
    """Whether an arm was trained to its end."""
    return finished_at(bench.run(arm), bench.legs[arm].steps)


def ready(bench: Bench, arm: str) -> bool:
    """Whether what an arm goes on from is there."""
    leg = bench.legs[arm]
    if leg.parent is None or own_checkpoint(bench, arm):
        return True
    path = step_path(bench.run(leg.parent) / "checkpoints", leg.start)
    whole = path.exists() and damage(path) is None
    return whole or finished(bench, leg.parent)  # before this arm was asked for: what is earlier has to do


def own_checkpoint(bench: Bench, arm: str) -> bool:
    """Whether an arm was begun and saved."""
    return newest_whole(bench.run(arm) / "checkpoints")[0] is not None


def fit_arguments(bench: Bench, arm: str) -> list[str]:
    """The arguments of `lit-cpt` that train an arm, or go on with it; its folder gets the records of its trunk."""
    arguments = ["fit", "--config", str(bench.config(arm)), "--run", str(bench.run(arm))]
    if points := branch_points(bench.legs, arm):
        keeper = {"class_path": "lit_cpt.callbacks.BranchPointCallback", "init_args": {"steps": points}}
        arguments += [f"--trainer.callbacks+={json.dumps(keeper)}"]
    if own_checkpoint(bench, arm):
        return [*arguments, "--ckpt_path", "last"]
    leg = bench.legs[arm]
    found = leg.parent and newest_whole(bench.run(leg.parent) / "checkpoints", before=leg.start + 1)[0]
    if not found:
        return arguments
    assert leg.parent is not None
    step, courses = step_of(found) or 0, bench.courses
    branch(bench.run(leg.parent), bench.run(arm), step, step * leg.tokens_per_step)
    for field in changed_fields(courses[leg.parent].recipe, courses[arm].recipe):
        arguments += ["--allow-change", field]
    return [*arguments, "--ckpt_path", str(found)]
