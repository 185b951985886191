"""`lit-cpt ablate`: a grid of runs from one file: its cost, its training, and one table of what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lit_cpt.arguments import command_parser, parse
from lit_cpt.cli import print_json
from lit_cpt.lab.grid import Arm, Grid, read_grid
from lit_cpt.lab.trunk import Budget, Course, Legs, budget, plan_legs, render_legs
from lit_cpt.plan_command import plan_parser, planned_part, speed_of
from lit_cpt.publishing import publish_text
from lit_cpt.recipe import Batch

OWN = ("run", "mirror", "ckpt_path")
ABOUT = ("A grid of runs from one file: arms share what they train alike, and are compared in one table. The same "
         "command goes on where it was stopped.")
EXAMPLES = ("ablate grid.yaml --plan --tokens_per_second 15000", "ablate grid.yaml --output lab --workers 2")


def ablate_command(arguments: list[str]) -> None:
    """`lit-cpt ablate`.

    Raises:
        ValueError: A bad grid, a number that is none, or no folder to work in.
        ArmFailed: An arm failed; the others have been trained.
    """
    given = parse(ablate_parser(), arguments[1:])
    grid = read_grid(given["grid"])
    courses = {arm.name: course_of(arm) for arm in grid.arms}
    legs = plan_legs(courses)
    cost = budget(legs, speed_of(given["tokens_per_second"], None))
    if given["plan"] and given["json"]:
        print_json({**cost.describe(), "arms": {name: vars(leg) for name, leg in legs.items()}})
        return
    if not given["json"]:
        print(render_legs(legs, cost), flush=True)
    if not given["plan"]:
        work(given, grid, courses, legs, cost)


def ablate_parser() -> ArgumentParser:
    """What the command takes."""
    parser = command_parser("ablate", ABOUT, *EXAMPLES)
    parser.add_argument("grid", type=str, metavar="GRID.yaml", help="base, axes, replicates, control: see "
                        "docs/ablations.md.")
    parser.add_argument("--output", type=str, metavar="DIR", help="Configs, run folders, logs and results go here.")
    parser.add_argument("--plan", action="store_true", help="Only tell what would be trained, and what it costs.")
    parser.add_argument("--json", action="store_true", help="Print plan or results as JSON.")
    parser.add_argument("--workers", type=int, default=1, help="Arms to train at once.")
    parser.add_argument("--devices", nargs="+", type=str, default=[], metavar="GPU", help="An arm at once on each of "
                        "these (CUDA_VISIBLE_DEVICES); 0,1 gives it two.")
    parser.add_argument("--tokens_per_second", type=float, help="Speed of one arm: tells the hours.")
    return parser


def work(given: dict[str, Any], grid: Grid, courses: dict[str, Course], legs: Legs, cost: Budget) -> None:
    """Train the arms and compare them."""
    slots = places(given["workers"], given["devices"])
    if given["output"] is None:
        raise ValueError("--output names no folder: give one for the runs, such as --output lab, or ask for --plan.")
    from lit_cpt.lab.arms_table import compare_arms, outcome_of, render_arms
    from lit_cpt.lab.running import Bench, train_arms, write_arms

    bench = Bench(Path(given["output"]), courses, legs)
    write_arms(bench, grid.arms)
    train_arms(bench, slots)
    found = compare_arms([outcome_of(arm, bench.run(arm.name)) for arm in grid.arms], grid.control)
    results = {"budget": cost.describe(), **found.describe()}
    publish_text(bench.root / "results.json", json.dumps(results, indent=1))
    publish_text(bench.root / "results.txt", render_arms(found) + "\n")
    page = write_page(bench.root, grid, {arm.name: bench.run(arm.name) for arm in grid.arms})
    print_json(results) if given["json"] else print(f"\n{render_arms(found)}\n\nreport: {page}")


def write_page(root: Path, grid: Grid, runs: dict[str, Path]) -> Path:
    """`lit-cpt report` over the arms of the control's first replicate: rates, losses and scores over tokens."""
    from lit_cpt.report import write_report

    control = next(arm for arm in grid.arms if arm.treatment == grid.control)
    shown = {arm.name: runs[arm.name] for arm in grid.arms if arm.pair == control.pair}
    notes = ["One replicate: results.txt has the means over all of them, and what they allow to say."]
    return write_report(shown, root / "report.html", f"Arms of {control.pair or 'the grid'}", control.name, notes)


def places(workers: int, devices: list[str]) -> list[dict[str, str]]:
    """What each arm that is trained at the same time finds in its environment.

    Raises:
        ValueError: No place at all.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1 arm is trained at once.")
    return [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}] * workers


def course_of(arm: Arm) -> Course:
    """What decides an arm's training, checked as `fit` will check it.

    Raises:
        ValueError: The arm's config holds no recipe, or one that is none; the message names the arm.
    """
    try:
        if "recipe" not in arm.config:
            raise ValueError("no recipe: add one to base, such as recipes/paper.")
        if shared := [key for key in OWN if key in arm.config]:
            raise ValueError(f"{shared[0]} is each run's own, and arms get theirs from --output: take it out.")
        given = parse(plan_parser(), ["--config", json.dumps(planned_part(arm.config, "its config"))], build=True)
        data, recipe = vars(given["data"]), given["recipe"]
        batch = Batch(data["sequence_length"], data["global_batch"], data["micro_batch"])
        recipe.start_steps(batch.tokens_per_step)
    except ValueError as error:
        raise ValueError(f"arm {arm.name}: {error}") from None
    rest = {group: members for group, members in arm.config.items() if group != "recipe"}
    return Course(recipe, batch.tokens_per_step, rest)
