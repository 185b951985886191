"""`lit-cpt ablate`: a grid of runs from one file: its cost, its training, and one table of what came of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lit_cpt.arguments import command_parser, parse
from lit_cpt.cli import print_json
from lit_cpt.lab.grid import Arm, Grid, read_grid, rehearsed, runs_of
from lit_cpt.lab.trunk import Course, Legs, budget, dealt, plan_legs, render_legs, trees
from lit_cpt.plan_command import plan_parser, planned_part, speed_of
from lit_cpt.publishing import publish_text
from lit_cpt.recipe import Batch

OWN = ("run", "mirror", "ckpt_path")
ABOUT = ("A grid of runs from one file: arms share what they train alike, and are compared in one table. The same "
         "command goes on where it was stopped.")
EXAMPLES = ("ablate grid.yaml --plan --tokens_per_second 15000", "ablate grid.yaml --output lab --workers 2",
            "ablate ablations/first_three ablations/switch_point --set worlds=worlds --output lab --workers 2")


def ablate_command(arguments: list[str]) -> None:
    """`lit-cpt ablate`.

    Raises:
        ValueError: A bad grid, a number that is none, or no folder to work in.
        ArmFailed: An arm failed; the others have been trained.
    """
    given = parse(ablate_parser(), arguments[1:])
    grids = grids_of(given["grids"], dict(pair("set", word) for word in given["set"]), given["rehearse"])
    grids = restricted(grids, [pair("only", word) for word in given["only"]])
    runs, placed = runs_of(grids)
    courses = {run: course_of(arm) for run, arm in runs.items()}
    legs = plan_legs(courses)
    again = [run for run, arm in runs.items() if arm.again]
    cost = budget(legs, speed_of(given["tokens_per_second"], None), again)
    chosen = arms_of_task(legs, given["task"])
    if given["plan"] and given["json"]:
        arms = {name: vars(leg) for name, leg in legs.items()}
        print_json({**cost.describe(), "trees": len(trees(legs)), "arms": arms})
        return
    if not given["json"]:
        print(render_legs(legs, cost), flush=True)
    if given["plan"]:
        return
    slots = places(given["workers"], given["devices"])
    if given["output"] is None:
        raise ValueError("--output names no folder: give one for the runs, such as --output lab, or ask for --plan.")
    if chosen == []:
        say(given, f"nothing falls to task {given['task']}: the grid has work for {len(trees(legs))}")
        return
    from lit_cpt.lab.claims import read_claims
    from lit_cpt.lab.conclusion import conclude, judge_claims
    from lit_cpt.lab.running import Bench, finished, train_arms, write_arms

    if given["claims"]:
        read_claims(given["claims"])  # what is wrong there is told before hours of training
    bench = Bench(Path(given["output"]), courses, legs)
    write_arms(bench, runs)
    train_arms(bench, slots, chosen)
    if left := [run for run in legs if not finished(bench, run)]:  # only with --task
        say(given, f"{len(left)} of {len(legs)} arms are left to other tasks; the last of them writes the results")
        return
    found = {name: conclude(name, grid, bench.root / name if len(grids) > 1 else bench.root,
                            {arm: bench.run(run) for arm, run in placed[name].items()}, cost)
             for name, grid in grids.items()}
    summaries = [one.summary for one in found.values()]
    if given["claims"]:
        summaries.insert(0, judge_claims(given["claims"], found))
    publish_text(bench.root / "summary.md", "\n\n".join(summaries) + "\n")
    if given["json"]:
        told = {name: one.results for name, one in found.items()}
        print_json(told if len(grids) > 1 else next(iter(told.values())))
    else:
        print("\n\n".join([*(one.text for one in found.values()), *summaries[:1] * bool(given["claims"])]))


def ablate_parser() -> ArgumentParser:
    """What the command takes."""
    parser = command_parser("ablate", ABOUT, *EXAMPLES)
    parser.add_argument("grids", nargs="+", type=str, metavar="GRID", help="File, or name of a grid that lit_cpt ships "
                        "(ablations/first_three); arms that several grids have in common are trained once. See "
                        "docs/ablations.md.")
    parser.add_argument("--output", type=str, metavar="DIR", help="Configs, run folders, logs and results go here.")
    parser.add_argument("--plan", action="store_true", help="Only tell what would be trained, and what it costs.")
    parser.add_argument("--json", action="store_true", help="Print plan or results as JSON.")
    parser.add_argument("--workers", type=int, default=1, help="Arms to train at once.")
    parser.add_argument("--devices", nargs="+", type=str, default=[], metavar="GPU", help="An arm at once on each of "
                        "these (CUDA_VISIBLE_DEVICES); 0,1 gives it two.")
    parser.add_argument("--set", nargs="+", type=str, default=[], metavar="NAME=VALUE", help="What stands for {NAME} "
                        "in the grids, in place of their own variables.")
    parser.add_argument("--only", nargs="+", type=str, default=[], metavar="AXIS=VALUE", help="Of an axis only these "
                        "values, such as world=0 world=1.")
    parser.add_argument("--claims", type=str, metavar="FILE", help="Claims that were written down beforehand, and that "
                        "the grids decide (docs/preregistration.md is one).")
    parser.add_argument("--rehearse", type=float, default=1.0, metavar="SHARE", help="Train only this share of each "
                        "arm's tokens, such as 0.01, to see the grid through before it is paid for.")
    parser.add_argument("--task", type=str, metavar="I/N", help="Train only what falls to task I of N, counted from 0: "
                        "for arrays of jobs (configs/launch/slurm_array.sh). The last one to end writes the results.")
    parser.add_argument("--tokens_per_second", type=float, help="Speed of one arm: tells the hours.")
    return parser


def pair(option: str, word: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``.

    Raises:
        ValueError: It is none.
    """
    name, equals, value = word.partition("=")
    if not (name and equals):
        example = "world=0" if option == "only" else "worlds=runs/worlds"
        raise ValueError(f"--{option} {word}: write NAME=VALUE, such as {example}.")
    return name, value


def restricted(grids: dict[str, Grid], wanted: list[tuple[str, str]]) -> dict[str, Grid]:
    """``grids`` with those of their arms that have one of the wanted values on each axis that is named.

    Raises:
        ValueError: No arm is left of a grid, or nothing that the others could be compared with.
    """
    for name, grid in grids.items():
        arms = tuple(arm for arm in grid.arms if all(
            (axis, label) in wanted or axis not in dict(wanted)
            for axis, label in {**arm.labels, **arm.replicate}.items()))
        if not any(grid.is_control(arm) for arm in arms):
            raise ValueError(f"--only {' '.join('='.join(one) for one in wanted)} leaves {name} without its control.")
        grids = {**grids, name: replace(grid, arms=arms)}
    return grids


def say(given: dict[str, Any], text: str) -> None:
    """Print a sentence in the form that was asked for."""
    print_json({"told": text}) if given["json"] else print(text)


def arms_of_task(legs: Legs, task: str | None) -> list[str] | None:
    """The arms that ``I/N`` means, the I-th of N tasks from 0; None for all.

    Raises:
        ValueError: It is no such thing.
    """
    if task is None:
        return None
    number, slash, count = task.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"--task {task}: write I/N, the I-th of N tasks, counted from 0, such as 0/4.")
    return dealt(legs, int(count))[int(number)]


def grids_of(names: list[str], variables: dict[str, str], share: float) -> dict[str, Grid]:
    """The grids that were asked for, by the stems of their files.

    Raises:
        ValueError: Two of one name, or a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--rehearse {share:g}: give a share of the arms' tokens, above 0 and at most 1.")
    grids = {Path(name).stem: read_grid(name, variables) for name in names}
    if len(grids) < len(names):
        raise ValueError(f"{', '.join(names)}: two of these grids have one name; call their files differently.")
    if share < 1:
        grids = {name: replace(grid, arms=tuple(rehearsed(arm, share, course_of(arm).tokens_per_step)
                                                for arm in grid.arms)) for name, grid in grids.items()}
    return grids


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
