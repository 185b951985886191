"""The commands that are no training: prepare, plan, report, quickstart. Each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_cpt.arguments import command_parser, parse
from lit_cpt.cli import print_json
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.settings import expand_configs, read_config

# What `plan` reads of a run's `data`: the data module's own defaults hold for the rest.
PLANNED_DATA = {"sources": dict[str, str], "sequence_length": int, "global_batch": int, "seed": int}
FIT_ONLY = ("model", "trainer", "run", "ckpt_path", "seed_everything", "weights_only", "verbose")


def prepare_command(arguments: list[str]) -> None:
    """`lit-cpt prepare`."""
    from lit_cpt.prepare import prepare

    parser = command_parser("prepare", (prepare.__doc__ or "").split("Args:")[0])
    parser.add_argument("--input", nargs="+", type=str, required=True,
                        help="Files, folders (read recursively) and globs, e.g. 'data/*.jsonl.gz'.")
    parser.add_function_arguments(prepare, as_group=False, skip={"input"})
    prepare(**parse(parser, arguments[1:]))


def plan_command(arguments: list[str]) -> None:
    """`lit-cpt plan`: takes the arguments of `fit`, and ignores those that move no token."""
    from lit_cpt.plan import plan, render, source_blocks

    parser = command_parser("plan", "What a run will do: the switch, tokens and epochs of each source in each phase.")
    parser.add_argument("--config", action="config", metavar="FILE|NAME", help="A config of the run, as for fit; "
                        "repeat it for each.")
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")
    parser.add_argument("--plot", type=str, metavar="FILE.png", help="Draw learning rate and blend against tokens.")
    parser.add_class_arguments(Recipe, "recipe")
    for name, kind in PLANNED_DATA.items():
        parser.add_argument(f"--data.{name}", type=kind, help=f"As for fit: {name.replace('_', ' ')}.")
    given = parse(parser, planned_arguments(arguments[1:]), build=True)
    data = {name: value for name, value in vars(given["data"]).items() if value is not None}
    batch = Batch(data.get("sequence_length", 2048), data.get("global_batch", 64))
    blocks = source_blocks(data.get("sources", {}), batch.sequence_length)
    result = plan(given["recipe"], batch, blocks, data.get("seed", 42))
    if given["plot"]:
        from lit_cpt.report import plot_plan

        plot_plan(result.describe(), given["plot"])
    if given["json"]:
        print_json(result.describe())
    else:
        print(render(result))


def planned_arguments(arguments: list[str]) -> list[str]:
    """Arguments of `fit` cut down to what a plan reads, in their order: the parser merges configs as fit's does."""
    kept: list[str] = []
    drop = found = False
    words = iter(expand_configs(arguments))
    for word in words:
        key, equals, value = word.partition("=")
        if key in ("--config", "-c"):
            path = value if equals else next(words, None)
            config = {} if path is None else read_config(path)
            found = found or "recipe" in config
            kept += ["--config"] if path is None else ["--config", json.dumps(planned_part(config))]
        elif word.startswith("--"):
            drop = ignored(key.removesuffix("+"))
            kept += [] if drop else [word]
        elif not drop:
            kept.append(word)
    if "--config" in kept and not found and not any(word.startswith("--recipe") for word in kept):
        raise ValueError("these configs hold no recipe: add one, such as --config recipes/paper.")
    return kept


def planned_part(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config that move a token."""
    data = {key: value for key, value in (config.get("data") or {}).items() if key in PLANNED_DATA}
    return {**({"recipe": config["recipe"]} if "recipe" in config else {}), **({"data": data} if data else {})}


def ignored(option: str) -> bool:
    """Whether ``option`` is one of fit's that move no token."""
    group, _, key = option.removeprefix("--").partition(".")
    return group in FIT_ONLY or (group == "data" and key != "" and key.split(".")[0] not in PLANNED_DATA)


def report_command(arguments: list[str]) -> None:
    """`lit-cpt report`."""
    from lit_cpt.report import write_report

    parser = command_parser("report", "One self-contained page for a run, or a comparison of several.")
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN_DIR", help="Folders that fit wrote.")
    parser.add_argument("--output", type=str, default="report.html", help="The page; pictures go beside it.")
    parser.add_argument("--control", type=str, help="Name of the run that the others are compared with.")
    parser.add_argument("--title", type=str, default="Continued pretraining", help="Headline of the page.")
    given = parse(parser, arguments[1:])
    short = [Path(run).resolve().name for run in given["runs"]]
    runs = {name if short.count(name) == 1 else run: Path(run) for name, run in zip(short, given["runs"], strict=True)}
    print(write_report(runs, Path(given["output"]), given["title"], given["control"]))


def quickstart_command(arguments: list[str]) -> None:
    """`lit-cpt quickstart`."""
    from lit_cpt.quickstart import quickstart

    parser = command_parser("quickstart", (quickstart.__doc__ or "").split("Args:")[0])
    parser.add_function_arguments(quickstart, as_group=False)
    quickstart(**parse(parser, arguments[1:]))
