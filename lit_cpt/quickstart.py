"""The whole idea in minutes: a small world, a model pretrained in it, then continued three ways and compared.

Everything runs through what users run: ``prepare``, ``fit`` with YAML configs, checkpoints, an exported model
folder, a grid as of ``ablate``, ``report``. The world, its proportions and its schedule were fixed before any
comparison was seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lit_cpt.ablate_command import course_of
from lit_cpt.lab.arms_table import LOSS, Line, compare_arms, outcome_of
from lit_cpt.lab.grid import Arm, Grid, grid_of, spelled
from lit_cpt.lab.running import Bench, train_arms, write_arms
from lit_cpt.lab.trunk import plan_legs
from lit_cpt.settings import find_config, read_config
from lit_cpt.units import format_seconds
from lit_cpt.worlds import (
    ENDED,
    LENGTH,
    PRETRAINING,
    SEQUENCES,
    STEPS,
    build_world,
    checkpoint,
    export_base,
    fit_arguments,
    prepare_sources,
    pretraining_config,
    run_config,
)

RUNS = ("base", "baseline", "general", "recipe")
LEADS = ("general", "recipe")  # what is compared with the baseline
NOTES = [
    "One small world, one base model, one order of the data: the intervals cover the drawing of the probes, not "
    "another world or seed. What is stable over the worlds tried is that new blends beat continuing on the "
    "pretraining blend.",
    "Not shown at this scale: that eta_max/5 is the best point to switch. In five harder worlds, at this length, "
    "eta_max/2 was 2 points ahead (docs/results.md).",
    "Forgetting is the rise of the validation loss on the pretraining sources, most of all web, which the new "
    "blends cut from 70 % to 22 % and 8 %.",
]


@dataclass(frozen=True)
class Lengths:
    """Optimizer steps of pretraining and of each continuation."""

    pretraining: int = STEPS
    continuation: int = 1600


SHORT = Lengths(150, 50)


def quickstart(out: str = "quickstart", seed: int = 0, short: bool = False, with_real_text: bool = False) -> None:
    """Pretrain a tiny model, continue it by the recipe and on its old blend, and compare: offline, on a CPU.

    A second run in the same folder goes on where the first stopped.

    Args:
        out: Folder for text, tokens, models, runs and the report.
        seed: Seed of the world and of the training.
        short: Minutes less and no meaning in the figures: shows that everything works.
        with_real_text: Add text and code that every CPython carries as one more source of pretraining.
    """
    import torch

    begun, root, lengths = time.monotonic(), Path(out), SHORT if short else Lengths()
    check_folder(root, {"seed": seed, "short": short, "with_real_text": with_real_text})
    torch.set_num_threads(1)  # the model is so small that a second thread only waits
    say(1, "a world of text, and questions that no text answers directly")
    world = build_world(root, seed, with_real_text)
    say(2, "prepare: text to tokens")
    prepare_sources(root, [*world.documents, "qa_held_out"])
    say(3, "pretrain a model of half a million parameters from scratch")
    pretrained = pretraining_blend(with_real_text)
    train(root, "base", pretraining_config(root, pretrained, lengths.pretraining, seed))
    export_base(root, "base", root / "model")
    say(4, "continue it three ways: on its old blend, on the general blend, and by the recipe (then QA at eta_max/5)")
    grid = continuations(root, pretrained, lengths.continuation, seed)
    train_grid(root, grid)
    say(5, "what all four models answered to the same questions")
    print(score_table(root, grid))
    page = write_page(root, short)
    print(f"\nreport: {page}\n{format_seconds(time.monotonic() - begun)} in all"
          + ("; the short form trains too little for the figures to mean anything" if short else ""))


def check_folder(root: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the folder, or refuse to go on with others than it was begun with."""
    note = root / "quickstart.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise ValueError(f"{root} was begun with {json.loads(note.read_text())}, not {settings}: name another --out.")
    if root.is_file() or (root.is_dir() and not note.exists() and any(root.iterdir())):
        raise ValueError(f"--out {root} is a file or holds something else: name a new or empty folder.")
    root.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings))


def say(number: int, what: str) -> None:
    """Announce a step."""
    print(f"\n[{number}/5] {what}", flush=True)


def pretraining_blend(with_real_text: bool) -> dict[str, float]:
    """The blend of pretraining; real text takes a tenth of the web's part."""
    return {**PRETRAINING, "web": 0.63, "real": 0.07} if with_real_text else PRETRAINING


def train(root: Path, name: str, config: dict[str, Any]) -> None:
    """`lit-cpt fit` on a config, unless this run is finished; a run cut short is resumed."""
    from lit_cpt.training import training_command

    if arguments := fit_arguments(root, name, config):
        training_command(arguments)


def continuations(root: Path, pretrained: dict[str, float], steps: int, seed: int) -> Grid:
    """Three ways on from the base's weights and optimizer state: no warm-up, cosine to 1/100, QA at eta_max/5.

    The recipe goes on from the general run, with which it is one up to there.
    """
    ways = {"baseline": [{"name": "pretraining", "blend": {"weights": pretrained}}],
            "general": ready_phases("arms/general"), "recipe": ready_phases("microworld")}
    recipe = {"token_horizon": steps * SEQUENCES * LENGTH, "phases": [],
              "curve": {"class_path": "Cosine", "init_args": {"eta_max": ENDED}}}
    model = {"pretrained": str(root / "model"), "optimizer_state": str(checkpoint(root / "runs" / "base"))}
    return grid_of({"base": ["base", "hardware/cpu", run_config(root, recipe, model, seed)],
                    "axes": {"way": {name: {"recipe.phases": phases} for name, phases in ways.items()}},
                    "control": {"way": "baseline"}})


def ready_phases(name: str) -> list[dict[str, Any]]:
    """The phases that the ready grids share, or one of their arms'."""
    phases: list[dict[str, Any]] = read_config(find_config(f"ablations/{name}"))["recipe"]["phases"]
    return phases


def train_grid(root: Path, grid: Grid) -> None:
    """Train the arms as ``runs/WAY``, as many at once as there are cores; what they say goes to ``logs/WAY.txt``.

    Raises:
        ArmFailed: A run failed; its log is named.
    """
    arms = {arm.labels["way"]: arm for arm in grid.arms}
    courses = {way: course_of(arm) for way, arm in arms.items()}
    bench = Bench(root, courses, plan_legs(courses))
    write_arms(bench, arms)
    train_arms(bench, [{}] * (os.cpu_count() or 1))


def score_table(root: Path, grid: Grid) -> str:
    """Scores in per cent and validation losses of the base and of what came of it, and differences with intervals."""
    ways = {arm.treatment: arm.labels["way"] for arm in grid.arms}
    base = outcome_of(Arm({}, {}, {}), root / "runs" / "base")
    arms = [outcome_of(arm, root / "runs" / ways[arm.treatment]) for arm in grid.arms]
    lines = {(line.measure, ways[line.treatment]): line
             for line in compare_arms(arms, grid.controls, spelled(grid.control)).lines}
    measures = dict.fromkeys(measure for measure, _ in lines)
    scores = [[measure, f"{base.measure(measure):.1f}", *(f"{lines[measure, way].mean:.1f}" for way in ways.values()),
               *(told(lines[measure, way]) for way in LEADS)]
              for measure in measures if not measure.startswith(LOSS)]
    losses = [[name, *(f"{one.losses[name]:.3f}" for one in (base, *arms))] for name in sorted(base.losses)]
    losses.append(["pretraining blend", *(f"{pretraining_loss(one.losses):.3f}" for one in (base, *arms))])
    return "\n".join([
        "", tabulate(scores, ["% right", "base", *ways.values(), *(f"{way} - baseline" for way in LEADS)],
                     disable_numparse=True),
        "", tabulate(losses, ["validation loss", "base", *ways.values()], disable_numparse=True),
        "", "In brackets 95 % intervals over the questions; transfer is not in the average.",
    ])


def told(line: Line) -> str:
    """A difference in points with its interval over questions."""
    assert line.over_items is not None
    return f"{line.over_items.value:+.1f} [{line.over_items.low:+.1f}, {line.over_items.high:+.1f}]"


def pretraining_loss(losses: Mapping[str, float]) -> float:
    """Validation loss on the blend of pretraining: what a run forgot shows here."""
    return sum(weight * losses[source] for source, weight in PRETRAINING.items())


def write_page(root: Path, short: bool) -> Path:
    """`lit-cpt report` over the four runs."""
    from lit_cpt.report import write_report

    notes = ["Short form: trained too little for any figure to mean anything.", *NOTES] if short else NOTES
    return write_report({run: root / "runs" / run for run in RUNS}, root / "report.html",
                        "Continued pretraining in a small world", "baseline", notes)
