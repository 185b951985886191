"""A family's requests: rendered once and kept between evaluations, with the documents they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import Task

from lit_cpt.harness.families import Family
from lit_cpt.harness.mirror import files_of
from lit_cpt.harness.tasks import FEWSHOT_SEED, LoadedTasks, compiled_templates, load_tasks, sample_documents

GENERATES = "generate_until"
BLOCK = 256  # documents read at once


@dataclass
class Document:
    """One document of a task, with what is asked about it.

    Args:
        number: Its row in the split.
        content: Its columns.
        asked: Upstream's requests.
        gold: Index in ``asked`` of the right choice, or a request of our own for the text of a right answer;
            None where the task names no answer.
    """

    number: int
    content: dict[str, Any]
    asked: list[Instance]
    gold: int | Instance | None


@dataclass
class FamilyRequests:
    """All requests of a family, by task."""

    loaded: LoadedTasks
    documents: dict[str, list[Document]]

    def instances(self, kind: str, golds: bool = False) -> list[Instance]:
        """Upstream's requests of one kind, or our own for golds, in the order of tasks and documents."""
        documents = [one for listed in self.documents.values() for one in listed]
        if golds:
            return [one.gold for one in documents if isinstance(one.gold, Instance)]
        return [asked for one in documents for asked in one.asked if asked.request_type == kind]

    def forget_answers(self) -> None:
        """Make the requests new again."""
        for listed in self.documents.values():
            for one in listed:
                for request in [*one.asked, *([one.gold] if isinstance(one.gold, Instance) else [])]:
                    request.resps, request.filtered_resps = [], {}


@dataclass
class RequestStore:
    """Loaded tasks and rendered requests, kept between evaluations of one process.

    A changed mirror, seed, shot count or max_gen_toks makes new requests, and the old ones are dropped; those of each
    limit are kept, since a run asks now a sample and now all.
    """

    kept: dict[tuple[str, int | None], tuple[Any, FamilyRequests]] = field(default_factory=dict)
    rendered: int = 0

    def get(self, family: Family, data: Path | None, limit: int | None, seed: int,
            check: Callable[[], None] = lambda: None) -> FamilyRequests:
        """The family's requests, rendered now unless they are there.

        Args:
            family: Which tasks, shots, room.
            data: Root of the mirror.
            limit: Documents a task; None takes all.
            seed: Of the sample where ``limit`` is given.
            check: Called between documents; may raise to stop.
        """
        asked = (family, data, seed)
        known = self.kept.get((family.name, limit))
        if known is not None and known[0] == (asked, _state(data, known[1].loaded.hashes)):
            known[1].forget_answers()
            return known[1]
        check()
        loaded = load_tasks(family, data)
        check()
        documents = {}
        for name, task in loaded.tasks.items():
            documents[name] = render(task, sample_documents(name, len(task_documents(task)), limit, seed),
                                     family.gold, check)
            self.rendered += len(documents[name])
        made = FamilyRequests(loaded, documents)
        self.kept[family.name, limit] = ((asked, _state(data, loaded.hashes)), made)
        return made


def _state(data: Path | None, repositories: Iterable[str]) -> tuple[Any, ...]:
    """Sizes and times of the files that were read: what says that the mirror has changed."""
    if data is None:
        return ()
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path in files_of(data, repositories)
                 for state in [path.stat()])


def task_documents(task: Task) -> Any:
    """The split that is evaluated, processed once: `Task.eval_docs` would process it anew at each look."""
    return getattr(task, "task_docs", None) or task.eval_docs


def render(task: Task, numbers: list[int], gold: str | None, check: Callable[[], None]) -> list[Document]:
    """Documents ``numbers`` of a task with their requests, exactly as a full run of lm-eval would make them.

    Random shots are drawn for left-out documents too, so that a document's prompt does not depend on the limit.
    """
    task.set_fewshot_seed(FEWSHOT_SEED)
    shots, wanted = task.get_config("num_fewshot") or 0, set(numbers)
    sampler = getattr(task, "sampler", None)
    draws = shots > 0 and sampler is not None and not isinstance(sampler, FirstNSampler)
    documents = task_documents(task)
    chosen = range(max(numbers, default=-1) + 1) if draws else numbers
    made: list[Document] = []
    with compiled_templates(), shots_rendered_once(task):
        for number, content in rows(documents, chosen, check):
            if number in wanted:
                made.append(_document(task, number, content, shots, gold))
            elif sampler is not None:
                sampler.sample(n=shots, eval_doc=_excluded(task, content))
    return made


def rows(documents: Any, numbers: Sequence[int], check: Callable[[], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, document), read by the block: a `datasets.Dataset` is slow row by row."""
    for first in range(0, len(numbers), BLOCK):
        check()
        block = numbers[first : first + BLOCK]
        if isinstance(documents, datasets.Dataset):
            columns = documents[list(block)]
            yield from ((number, {name: values[place] for name, values in columns.items()})
                        for place, number in enumerate(block))
        else:
            yield from ((number, documents[number]) for number in block)


@contextlib.contextmanager
def shots_rendered_once(task: Any) -> Iterator[None]:
    """Within it, the texts of worked examples are kept: upstream renders all of them for every document."""
    shots = {id(shot): shot for shot in getattr(getattr(task, "sampler", None), "df", None) or []}
    methods = {name: getattr(task, name) for name in ("doc_to_text", "doc_to_target", "doc_to_choice")}

    def remember(method: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[tuple[int, str], Any] = {}

        def remembered(content: Any, template: Any = None) -> Any:
            arguments = (content,) if template is None else (content, template)
            if id(content) not in shots:
                return method(*arguments)
            key = (id(content), repr(template))
            if key not in known:
                known[key] = method(*arguments)
            return known[key]

        return remembered

    try:
        for name, method in methods.items():
            setattr(task, name, remember(method))
        yield
    finally:
        for name in methods:
            delattr(task, name)


def _excluded(task: Task, content: dict[str, Any]) -> dict[str, Any] | None:
    """The document itself where shots come from the evaluated split, as upstream leaves it out."""
    split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    return content if split == task.get_config("test_split") else None


def _document(task: Task, number: int, content: dict[str, Any], shots: int, gold: str | None) -> Document:
    context = task.fewshot_context(content, num_fewshot=shots, gen_prefix=task.doc_to_prefix(content))
    repeats = task.get_config("repeats") or 1
    asked = task.construct_requests(doc=content, ctx=context, metadata=(task.task_name, number, repeats))
    asked = asked if isinstance(asked, list) else [asked]
    return Document(number, content, asked, _gold(task, content, asked, gold))


def _gold(task: Task, content: dict[str, Any], asked: list[Instance], column: str | None) -> int | Instance | None:
    """Which request holds the right answer, or a request for it."""
    first = asked[0]
    if first.request_type == "loglikelihood":
        if task.OUTPUT_TYPE != "multiple_choice":
            return 0
        right: Any = task.doc_to_text(content) if getattr(task, "multiple_input", 0) else task.doc_to_target(content)
        right = right[0] if isinstance(right, list) and right else right
        if isinstance(right, str):
            choices = task.doc_to_choice(content)
            right = choices.index(right) if right in choices else None
        return right if isinstance(right, int) and 0 <= right < len(asked) else None
    if first.request_type != GENERATES:
        return None
    target: Any = content[column] if column else task.doc_to_target(content)
    target = target[0] if isinstance(target, list) and target else target
    if target is None or str(target) == "":
        return None
    context = first.args[0]
    delimiter = "" if column or context[-1:].isspace() else task.get_config("target_delimiter") or ""
    return Instance("loglikelihood", content, (context, f"{delimiter}{target}"), 0, first.metadata)
