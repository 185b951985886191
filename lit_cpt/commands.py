"""Commands that are no training: prepare, data, export, report, quickstart. Each imports what it needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cpt.arguments import command_parser, divided, parse
from lit_cpt.cli import print_json
from lit_cpt.publishing import taken_back
from lit_cpt.recipe import Recipe
from lit_cpt.settings import find_config, read_config

if TYPE_CHECKING:
    from lit_cpt.data import BlendDataModule

DTYPES = ("float32", "bfloat16", "float16")


def prepare_command(arguments: list[str]) -> None:
    """`lit-cpt prepare`."""
    from lit_cpt.prepare import prepare

    parser = command_parser("prepare", (prepare.__doc__ or "").split("Args:")[0],
                            "prepare --input 'wiki/*.txt' --txt-document line --tokenizer my-model --output data/wiki",
                            "prepare --input qa.jsonl --text-template '{question} {answer}' --tokenizer my-model "
                            "--output data/qa")
    parser.add_argument("--input", nargs="+", type=str, required=True,
                        help="Files, folders (read recursively) and globs, e.g. 'data/*.jsonl.gz'.")
    parser.add_function_arguments(prepare, as_group=False, skip={"input"})
    prepare(**parse(parser, arguments[1:]))


def data_command(arguments: list[str]) -> None:
    """`lit-cpt data check`.

    Raises:
        ValueError: No such subcommand, or what was read is not what was foretold.
    """
    _, words = divided(arguments, {"check": "CONFIG [CONFIG ...]"})
    parser = command_parser("data check", "Reads a run's stream, without a model, and shows that its guarantees hold: "
                            "realised shares, epochs, the switch, a resume, and how fast it is.",
                            "data check run.yaml --steps 100")
    parser.add_argument("configs", nargs="+", type=str, metavar="CONFIG", help="The run's configs, as for fit.")
    parser.add_argument("--steps", type=int, default=100, help="Optimizer steps to read.")
    parser.add_argument("--json", action="store_true", help="Print the check as JSON.")
    given = parse(parser, words)
    from lit_cpt.data_check import check_data, render_check

    data = data_module(given["configs"])
    data.check_chunks()
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
    parser = command_parser("export", "Writes the model of a checkpoint as a Hugging Face folder, tokenizer included.",
                            "export --checkpoint runs/first --output my-model --dtype bfloat16")
    parser.add_argument("--checkpoint", type=str, required=True, metavar="FILE|RUN", help="A checkpoint of a run, or "
                        "the run's folder or mirror (its newest checkpoint).")
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
    with taken_back(output.parent, (), output.exists):
        output.parent.mkdir(parents=True, exist_ok=True)
        subject = open_subject(given["checkpoint"], given["tokenizer"], getattr(torch, given["dtype"]), output.parent)
        export_huggingface(subject.model, output, subject.tokenizer)
    count = sum(weight.numel() for weight in subject.model.parameters())
    print(f"{output}: {count:,} parameters in {given['dtype']}, of {subject.name} at step {subject.step:,}")


def report_command(arguments: list[str]) -> None:
    """`lit-cpt report`."""
    from lit_cpt.report import write_report
    from lit_cpt.report.runs import named

    parser = command_parser("report", "One self-contained page for a run, or a comparison of several.",
                            "report runs/first runs/second --control first --output report.html")
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN_DIR", help="Folders that fit wrote.")
    parser.add_argument("--output", type=str, default="report.html", help="The page; pictures go beside it.")
    parser.add_argument("--control", type=str, help="Name of the run that the others are compared with.")
    parser.add_argument("--title", type=str, default="Continued pretraining", help="Headline of the page.")
    given = parse(parser, arguments[1:])
    if Path(given["output"]).is_dir():
        page = Path(given["output"], "report.html")
        raise ValueError(f"--output {given['output']} is a folder; name the page, such as {page}.")
    print(write_report(named(given["runs"]), Path(given["output"]), given["title"], given["control"]))


def quickstart_command(arguments: list[str]) -> None:
    """`lit-cpt quickstart`."""
    from lit_cpt.quickstart import quickstart

    parser = command_parser("quickstart", (quickstart.__doc__ or "").split("Args:")[0],
                            "quickstart --out quickstart --short")
    parser.add_function_arguments(quickstart, as_group=False)
    quickstart(**parse(parser, arguments[1:]))
