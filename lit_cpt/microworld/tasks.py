"""The world's questions as lm-eval tasks: a folder of task files that stock lm-eval loads, without a network.

Knowledge goes by the log-likelihood of the options, completion by log-likelihood per character (its options differ in
length), code by interpreting the greedy continuation, math and transfer by its first integer. Each prompt follows one
end-of-text token, as each document did in training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lit_cpt.microworld.probes import ChoiceProbe, CodeProbe, NumberProbe, Probe
from lit_cpt.microworld.world import World

CODE_TOKENS, NUMBER_TOKENS = 24, 10

FUNCTIONS = '''"""What the task files beside this one call."""

from pathlib import Path

from lit_cpt.microworld.tasks import grade_code, grade_number, questions  # noqa: F401


def documents(family, **_):
    """The questions of a family, from the file beside this one."""
    return {"test": questions(Path(__file__).parent / f"{family}.jsonl")}
'''


def write_tasks(world: World, directory: str | Path, end_of_text: str) -> list[str]:
    """Write a task for each family of ``world.probes`` that has probes; the folder may be moved.

    Args:
        world: Whose questions.
        directory: Made if missing; give it to lm-eval as ``include_path``, or to a `Suite` as ``folder``.
        end_of_text: Text of the tokenizer's end-of-text token.

    Returns:
        Names of the tasks written, of knowledge, completion, code, math and transfer.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.py").write_text(FUNCTIONS, encoding="utf-8")
    # lm-eval cannot run a task without documents: a family without probes has none.
    asked = {family: probes for family, probes in world.probes.items() if probes}
    for family, probes in asked.items():
        lines = [json.dumps(row(probe, end_of_text), ensure_ascii=False) + "\n" for probe in probes]
        (folder / f"{family}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        (folder / f"{family}.yaml").write_text(task_file(family, probes), encoding="utf-8")
    return list(asked)


def row(probe: Probe, end_of_text: str) -> dict[str, Any]:
    """A probe as a document; what differs in type from probe to probe is text in it."""
    fields = {name: value for name, value in asdict(probe).items() if name != "traces"}
    if isinstance(probe, CodeProbe):
        fields["arguments"] = json.dumps(fields["arguments"])
    return {**fields, "text": end_of_text + probe.prompt}


def task_file(family: str, probes: Sequence[Probe]) -> str:
    """The YAML of a family's task; ``probes`` are all of one kind, and at least one."""
    kind = type(probes[0])
    task = {"task": family, "custom_dataset": Function("questions.documents"), "dataset_kwargs": {"family": family},
            "test_split": "test", "doc_to_text": "text", "num_fewshot": 0, "metadata": {"version": 1.0}}
    if kind is ChoiceProbe:
        metric = "acc_norm" if family == "completion" else "acc"
        task |= {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "answer",
                 "target_delimiter": ""}
    else:
        metric, code = "acc", kind is CodeProbe
        task |= {"output_type": "generate_until", "doc_to_target": "reference" if code else "answer",
                 "target_delimiter": "" if code else " ",
                 "process_results": Function(f"questions.{'grade_code' if code else 'grade_number'}"),
                 # What stands behind these strings is not graded.
                 "generation_kwargs": {"do_sample": False, "until": ["\ndef"] if code else ["\n"],
                                       "max_gen_toks": CODE_TOKENS if code else NUMBER_TOKENS}}
    task["metric_list"] = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    return yaml.dump(task, Dumper=Writer, sort_keys=False, allow_unicode=True)


class Function(str):
    """A function that a task file names."""


class Writer(yaml.SafeDumper):
    """Writes `Function` as lm-eval reads it."""


Writer.add_representer(Function, lambda writer, name: writer.represent_scalar("!function", str(name)))


def questions(path: Path) -> Any:
    """A family's documents, as lm-eval wants them."""
    import datasets

    return datasets.Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def grade_code(document: Mapping[str, Any], answers: Sequence[str]) -> dict[str, int]:
    """1 when the body that the answer begins with returns what the reference does, every time."""
    arguments = tuple(tuple(each) if isinstance(each, list) else each for each in json.loads(document["arguments"]))
    probe = CodeProbe(document["prompt"], document["reference"], document["function"], arguments,
                      document["cluster"], ())
    return {"acc": probe.grade(answers[0])}


def grade_number(document: Mapping[str, Any], answers: Sequence[str]) -> dict[str, int]:
    """1 when the first integer of the answer's first line is the right one."""
    return {"acc": NumberProbe(document["prompt"], document["answer"], document["cluster"], ()).grade(answers[0])}
