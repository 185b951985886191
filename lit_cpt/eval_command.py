"""`lit-cpt eval`: scores a saved model, or compares two results."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_cpt.arguments import command_parser, parse
from lit_cpt.evaluations import Evaluation
from lit_cpt.harness.suite import Effort, Suite
from lit_cpt.publishing import publish_text
from lit_cpt.score_changes import compare, render_comparison, render_evaluation

DESCRIPTION = """Scores a model on MMLU, HellaSwag, HumanEval, MGSM or any task of lm-eval, with the tasks' own prompts,
filters and metrics. Several processes share the work: torchrun --nproc-per-node 8 -m lit_cpt eval ..."""
CALLS = ("eval --checkpoint runs/first --tasks mmlu,mgsm --data eval-data --limit 100 --json first.json",
         "eval --compare base.json first.json")

IN_A_RUN = ("gather_weights", "most_failures")  # of an effort, what has no meaning for one evaluation alone


def eval_command(arguments: list[str]) -> None:
    """`lit-cpt eval`.

    Raises:
        ValueError: No checkpoint, a file that is no evaluation, or a family whose data are not here.
        SystemExit: With 1, where a family failed otherwise.
    """
    parser = command_parser("eval", DESCRIPTION, *CALLS)
    parser.add_argument("--checkpoint", type=str, metavar="FILE|RUN|HF", help="A checkpoint of a run, the run's folder "
                        "(its newest checkpoint), or a Hugging Face folder or hub name.")
    parser.add_argument("--tasks", type=str, default=",".join(Suite().tasks), help="Families or lm-eval tasks, "
                        "separated by commas; mgsm:all or mgsm:de+fr for other languages than es, ja, th.")
    parser.add_argument("--data", type=str, metavar="MIRROR", help="What `lit-cpt eval-data fetch` made; left out, "
                        "$LIT_CPT_EVAL_DATA, else the hub.")
    parser.add_argument("--limit", type=int | dict[str, int] | None, metavar="N", help="Documents of each task, drawn "
                        "by --seed; also by family: '{mmlu: 20, hellaswag: 500}'. Left out, all.")
    parser.add_argument("--seed", type=int, default=Suite().seed, help="Of the draw.")
    parser.add_argument("--shots", type=dict[str, int], default={}, help="Worked examples where others than the "
                        "paper's are wanted: '{mmlu: 0}'.")
    parser.add_argument("--max_gen_toks", type=dict[str, int], default={}, help="New tokens of an answer, by family: "
                        "'{mgsm: 256}'.")
    parser.add_argument("--folder", type=str, help="Folder of lm-eval task files that define the tasks.")
    parser.add_argument("--tokenizer", type=str, help="Folder or hub name; left out, the model's own.")
    parser.add_argument("--precision", type=str, default="auto", help="float32, bfloat16, or auto: bfloat16 on a GPU.")
    parser.add_class_arguments(Effort, as_group=False, skip=set(IN_A_RUN))
    parser.add_argument("--json", type=str, metavar="FILE", help="Write the result, document by document.")
    parser.add_argument("--compare", nargs=2, type=str, metavar=("A.json", "B.json"),
                        help="Compare two results instead, document by document.")
    given = parse(parser, arguments[1:], build=True)
    if given["compare"]:
        return compare_files(given["compare"], given["json"])
    if not given["checkpoint"]:
        raise ValueError("--checkpoint is missing: name a checkpoint, a run's folder or a Hugging Face model; or give "
                         "--compare A.json B.json.")
    return evaluate_and_print(given)


def compare_files(files: list[str], output: str | None) -> None:
    """Print how the second result differs from the first; ``output`` takes the same as JSON.

    Raises:
        ValueError: They have nothing in common.
    """
    first, second = (Evaluation.read(file) for file in files)
    found = compare(first, second)
    if not found.rows:
        raise ValueError(f"nothing can be compared: {files[0]} has scores of {families(first)}, {files[1]} of "
                         f"{families(second)}. Give two results that asked the same documents.")
    print(render_comparison(found, names_of(files)))
    if output:
        publish_text(Path(output), json.dumps(found.describe(), indent=1, allow_nan=False))


def families(found: Evaluation) -> str:
    """Which have a score."""
    return ", ".join(one.family for one in found.scores) or "no family"


def names_of(files: list[str]) -> tuple[str, str]:
    """Two short names that tell the files apart."""
    short = [Path(file).stem for file in files]
    return (short[0], short[1]) if short[0] != short[1] else (files[0], files[1])


def evaluate_and_print(given: dict[str, Any]) -> None:
    """Evaluate, print the table, write the file; fail if a family did."""
    from transformers.utils.logging import disable_progress_bar

    from lit_cpt.standalone import evaluate_saved, is_first

    disable_progress_bar()  # of its loading, between our own lines
    if given["precision"] not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"--precision {given['precision']}: choose auto, float32 or bfloat16.")
    suite = Suite(tuple(name for name in given["tasks"].replace(" ", "").split(",") if name), given["data"],
                  given["limit"], given["seed"], given["shots"], given["max_gen_toks"], given["folder"])
    output = Path(given["json"]) if given["json"] else None
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"--json {output}: there is no folder {output.parent}.")
    if output is not None and output.is_dir():
        raise ValueError(f"--json {output} is a folder; name a file, such as {output}/first.json.")
    effort = Effort(**{item.name: given[item.name] for item in fields(Effort) if item.name not in IN_A_RUN})
    found = evaluate_saved(given["checkpoint"], suite, effort, given["tokenizer"], given["precision"])
    if not is_first():
        return
    print(render_evaluation(found))
    if output is not None:
        publish_text(output, json.dumps(found.describe(), separators=(",", ":"), allow_nan=False))
        print(f"written: {output}")
    if not found.scores and all(one.status == "unavailable" for one in found.failures):
        raise ValueError("nothing could be evaluated: " + "; ".join(one.reason for one in found.failures))
    if found.failures:
        raise SystemExit(1)


