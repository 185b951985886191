"""Commands that are no training: prepare, plan, data, export, report, quickstart. Each imports what it needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cpt.arguments import command_parser, divided, parse
from lit_cpt.cli import print_json
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.remote import is_remote
from lit_cpt.settings import expand_configs, find_config, read_config

if TYPE_CHECKING:
    from lit_cpt.data import BlendDataModule
    from lit_cpt.outlook import Outlook

# What `plan` reads of a run's `data`: the data module's own defaults hold for the rest.
PLANNED_DATA = {"sources": dict[str, str], "sequence_length": int, "global_batch": int, "seed": int,
                "remote": dict[str, Any]}
PLAN_ONLY = {"--json": False, "--plot": True, "--gpu": True, "--mfu": True, "--price": True}  # True: with a value
DTYPES = ("float32", "bfloat16", "float16")
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
    parser.add_argument("--gpu", type=str, metavar="NAME|GB,TFLOPS", help="Also tell memory and hours on as many of "
                        "these as --trainer.devices and --trainer.num_nodes name, such as H100.")
    parser.add_argument("--mfu", type=float, default=0.4, help="Share of the GPU's peak that training reaches.")
    parser.add_argument("--price", type=float, help="Of one GPU for an hour.")
    parser.add_class_arguments(Recipe, "recipe")
    for name, kind in PLANNED_DATA.items():
        parser.add_argument(f"--data.{name}", type=kind, help=f"As for fit: {name.replace('_', ' ')}.")
    given = parse(parser, planned_arguments(arguments[1:]), build=True)
    data = {name: value for name, value in vars(given["data"]).items() if value is not None}
    batch = Batch(data.get("sequence_length", 2048), data.get("global_batch", 64))
    blocks = source_blocks(staged(data), batch.sequence_length)
    result = plan(given["recipe"], batch, blocks, data.get("seed", 42))
    scale = scale_of(arguments[1:], given, batch) if given["gpu"] else None
    if given["plot"]:
        from lit_cpt.report import plot_plan

        plot_plan(result.describe(), given["plot"])
    if given["json"]:
        print_json({**result.describe(), **({"scale": scale[0].describe()} if scale else {})})
    else:
        print(render(result) + (f"\n\n{scale[1]}" if scale else ""))


def scale_of(arguments: list[str], given: dict[str, Any], batch: Batch) -> tuple[Outlook, str]:
    """What the run asks of its GPUs, and in words; this reads the config as fit does, with torch and Lightning."""
    from lit_cpt.outlook import Budget, outlook, render_outlook
    from lit_cpt.training import ReadingCLI, quieten

    quieten()
    budget = Budget(given["gpu"], given["mfu"], given["price"])
    found = outlook(ReadingCLI(["fit", *fit_arguments(arguments)]).settings, batch, given["recipe"].horizon, budget)
    return found, render_outlook(found, budget)


def fit_arguments(arguments: list[str]) -> list[str]:
    """``arguments`` without those that only a plan has."""
    kept: list[str] = []
    words = iter(expand_configs(arguments))
    for word in words:
        name, equals, _ = word.partition("=")
        if name in PLAN_ONLY:
            if PLAN_ONLY[name] and not equals:
                next(words, None)
        else:
            kept.append(word)
    return kept


def staged(data: dict[str, Any]) -> dict[str, str]:
    """Folders with the sources' metadata: of remote ones it comes into the cache."""
    sources: dict[str, str] = data.get("sources", {})
    if not any(map(is_remote, sources.values())):
        return sources
    from lit_cpt.stream import Remote  # with torch; a plan of local sources does without

    return Remote(**(data.get("remote") or {})).staged(sources)


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


def data_command(arguments: list[str]) -> None:
    """`lit-cpt data check`.

    Raises:
        ValueError: No such subcommand, or what was read is not what was foretold.
    """
    _, words = divided(arguments, {"check": "CONFIG [CONFIG ...]"})
    parser = command_parser("data check", "Reads a run's stream, without a model, and shows that its guarantees hold: "
                            "realised shares, epochs, the switch, a resume, and how fast it is.")
    parser.add_argument("configs", nargs="+", type=str, metavar="CONFIG", help="The run's configs, as for fit.")
    parser.add_argument("--steps", type=int, default=100, help="Optimizer steps to read.")
    parser.add_argument("--json", action="store_true", help="Print the check as JSON.")
    given = parse(parser, words)
    from lit_cpt.data_check import check_data, render_check

    data = data_module(given["configs"])
    found = check_data(data, given["steps"])
    print_json({**asdict(found), "passed": found.passed}) if given["json"] else print(render_check(found, data))
    if not found.passed:
        raise ValueError("the stream differs from what its seed foretells: see DIFFERENT above. Has a source been "
                         "written to while it was read?")


def data_module(configs: list[str]) -> BlendDataModule:
    """The data module that ``configs`` describe, as fit builds it.

    Raises:
        ValueError: They hold no recipe or no sources.
    """
    from lit_cpt.data import BlendDataModule

    parser = command_parser("data check", "")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(BlendDataModule, "data")
    parser.link_arguments("recipe", "data.recipe", apply_on="instantiate")
    read = [read_config(find_config(name)) for name in configs]
    for part, mend in (("recipe", "--config recipes/paper"), ("data", "a file with data: {sources: {NAME: FOLDER}}")):
        if not any(part in config for config in read):
            raise ValueError(f"{', '.join(configs)}: no {part} in these configs; add one, such as {mend}.")
    words = [word for config in read for word in
             ("--config", json.dumps({part: config[part] for part in ("recipe", "data") if part in config}))]
    module: BlendDataModule = parse(parser, words, build=True)["data"]
    return module


def export_command(arguments: list[str]) -> None:
    """`lit-cpt export`.

    Raises:
        FileExistsError: The output is there.
        ValueError: An unknown precision, or a checkpoint that cannot be read.
    """
    parser = command_parser("export", "Writes the model of a checkpoint as a Hugging Face folder, tokenizer included. "
                            "Example: lit-cpt export --checkpoint runs/first --output my-model --dtype bfloat16")
    parser.add_argument("--checkpoint", type=str, required=True, metavar="FILE|RUN", help="A checkpoint of a run, or "
                        "the run's folder (its newest checkpoint).")
    parser.add_argument("--output", type=str, required=True, metavar="HF_DIR", help="The folder to write.")
    parser.add_argument("--dtype", type=str, default="float32", help="Of the weights: float32, bfloat16 or float16.")
    parser.add_argument("--tokenizer", type=str, help="Folder or hub name; left out, that of the run's model.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a folder that is there.")
    given = parse(parser, arguments[1:])
    if given["dtype"] not in DTYPES:
        raise ValueError(f"--dtype {given['dtype']}: choose {', '.join(DTYPES)}.")
    output = Path(given["output"])
    if output.exists() and not (given["overwrite"] and output.is_dir()):
        raise FileExistsError(f"--output {output} is there already; name another, or replace a folder with "
                              "--overwrite.")
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lit_cpt.export import export_huggingface
    from lit_cpt.standalone import open_subject

    disable_progress_bar()
    output.parent.mkdir(parents=True, exist_ok=True)
    subject = open_subject(given["checkpoint"], given["tokenizer"], getattr(torch, given["dtype"]), output.parent)
    export_huggingface(subject.model, output, subject.tokenizer)
    count = sum(weight.numel() for weight in subject.model.parameters())
    print(f"{output}: {count:,} parameters in {given['dtype']}, of {subject.name} at step {subject.step:,}")


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
