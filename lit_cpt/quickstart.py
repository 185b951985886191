"""The whole idea in minutes: a small world, a model pretrained in it, then continued two ways and compared.

Everything runs through what users run: ``prepare``, ``fit`` with YAML configs, checkpoints, an exported model
folder, ``report``. The world, its proportions and its schedule were fixed before any comparison was seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lit_cpt.evaluations import evaluations_in, write_evaluation
from lit_cpt.events import read_events
from lit_cpt.intervals import Interval
from lit_cpt.lab.side_by_side import Job, run_side_by_side
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
    suite_settings,
)

GENERAL = {"web": 0.22, "books": 0.34, "code": 0.12, "multi": 0.32}
QA = {"web": 0.08, "books": 0.32, "code": 0.10, "multi": 0.22, "qa": 0.28}
RUNS = ("base", "baseline", "general", "recipe")
NOTES = [
    "One small world, one base model, one order of the data: the intervals cover the drawing of the probes, not "
    "another world or seed. What is stable over the worlds tried is that new blends beat continuing on the "
    "pretraining blend.",
    "Not shown at this scale: that eta_max/5 is the best point to switch. In the two worlds of the "
    "design study, at three times this length, eta_max/2 was nominally ahead.",
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
    prepare_sources(root, world)
    say(3, "pretrain a model of half a million parameters from scratch")
    pretrained = pretraining_blend(with_real_text)
    train(root, "base", pretraining_config(root, pretrained, lengths.pretraining, seed))
    export_base(root, "base", root / "model")
    say(4, "continue it three ways: on its old blend, on the general blend, and by the recipe (then QA at eta_max/5)")
    ways = {"baseline": [("pretraining", pretrained)], "general": [("general", GENERAL)],
            "recipe": [("general", GENERAL), ("qa", QA)]}
    train_side_by_side(root, {name: continuation_config(root, blends, lengths.continuation, seed)
                              for name, blends in ways.items()})
    say(5, "what all four models answered to the same questions")
    for run in RUNS:
        complete_evaluations(root, run)
    print(score_table(root))
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


def continuation_config(root: Path, blends: list[tuple[str, dict[str, float]]], steps: int,
                        seed: int) -> dict[str, Any]:
    """A run from the base's weights and optimizer state: no warm-up, cosine to 1/100, later blends at eta_max/5."""
    phases: list[dict[str, Any]] = [{"name": name, "blend": {"weights": weights}} for name, weights in blends]
    for phase in phases[1:]:
        phase["when"] = {"eta_over_eta_max": 0.2}
    recipe = {"token_horizon": steps * SEQUENCES * LENGTH, "phases": phases,
              "curve": {"class_path": "Cosine", "init_args": {"eta_max": ENDED}}}
    model = {"pretrained": str(root / "model"), "optimizer_state": str(checkpoint(root / "runs" / "base"))}
    return run_config(root, recipe, model, seed)


def train(root: Path, name: str, config: dict[str, Any]) -> None:
    """`lit-cpt fit` on a config, unless this run is finished; a run cut short is resumed."""
    from lit_cpt.training import training_command

    if arguments := fit_arguments(root, name, config):
        training_command(arguments)


def train_side_by_side(root: Path, configs: dict[str, dict[str, Any]]) -> None:
    """`train` several runs, as many at once as there are cores; what they say goes to ``RUN/log.txt``.

    Raises:
        ArmFailed: A run failed; its log is named.
    """
    waiting = {name: arguments for name, config in configs.items() if (arguments := fit_arguments(root, name, config))}
    run_side_by_side({name: Job(root / "runs" / name / "log.txt", partial(list, arguments))
                      for name, arguments in waiting.items()}, [{}] * (os.cpu_count() or 1))


def complete_evaluations(root: Path, run: str) -> None:
    """Evaluate the end of a run that was killed between its last step and its last evaluation."""
    from lit_cpt.harness import Effort, Suite
    from lit_cpt.standalone import evaluate_saved

    folder = root / "runs" / run
    done, _ = evaluations_in(folder)
    if not done or done[-1].step < read_events(folder)[-1]["step"]:
        write_evaluation(folder, evaluate_saved(str(checkpoint(folder)), Suite(**suite_settings(root)), Effort()))


def score_table(root: Path, names: Sequence[str] = RUNS) -> str:
    """Scores in per cent with their 95 % intervals, the recipe's lead, and validation losses per source."""
    from lit_cpt.report import compare, load_run

    runs = {name: load_run(root / "runs" / name) for name in names}
    rows = compare(runs, "baseline")
    cells = {(row.family, row.run): row for row in rows}
    scores = [[family, *(per_cent(cells[family, run].score) for run in names), str(cells[family, "recipe"].difference)]
              for family in dict.fromkeys(row.family for row in rows)]
    sources = sorted({source for run in runs.values() for source in run.validation})
    losses = [[source, *(f"{runs[run].validation[source][-1][1]:.3f}" for run in names)] for source in sources]
    losses.append(["pretraining blend", *(f"{pretraining_loss(runs[run].validation):.3f}" for run in names)])
    return "\n".join([
        "", tabulate(scores, ["% right", *names, "recipe - baseline"], disable_numparse=True),
        "", tabulate(losses, ["validation loss", *names], disable_numparse=True),
        "", "In brackets 95 % intervals over the questions; transfer is not in the average.",
    ])


def pretraining_loss(validation: dict[str, list[tuple[int, float]]]) -> float:
    """Last validation loss on the blend of pretraining: what a run forgot shows here."""
    return sum(weight * validation[source][-1][1] for source, weight in PRETRAINING.items())


def per_cent(score: Interval) -> str:
    """A score with its interval, in per cent."""
    return f"{100 * score.value:5.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def write_page(root: Path, short: bool) -> Path:
    """`lit-cpt report` over the three runs."""
    from lit_cpt.report import write_report

    notes = ["Short form: trained too little for any figure to mean anything.", *NOTES] if short else NOTES
    return write_report({run: root / "runs" / run for run in RUNS}, root / "report.html",
                        "Continued pretraining in a small world", "baseline", notes)
