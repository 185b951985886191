"""Upstream's task definitions on a local mirror: loaded offline, templates compiled once, `code_eval` replaced."""

from __future__ import annotations

import contextlib
import difflib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.filters import build_filter_ensemble
from lm_eval.utils import env as templates

from lit_cpt.harness.families import FAMILIES, Family
from lit_cpt.harness.mirror import data_hash, folder_hash, read_configs
from lit_cpt.harness.programs import NoSandbox, ProgramScorer

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234  # lm-eval's own: it decides MGSM's order of shots, and every published number was made with it
FOLDERS = {"mmlu": "mmlu/default", "hellaswag": "hellaswag", "humaneval": "humaneval", "mgsm": "mgsm/native_cot"}


class UnknownTask(ValueError):
    """A name that lm-eval knows no task by."""


@dataclass
class LoadedTasks:
    """A family's tasks.

    Args:
        tasks: By name, in upstream's order.
        groups: Groups above them, children before parents.
        hashes: Hash of every mirrored repository that was read.
        scorer: The scorer of programs the tasks were loaded with.
    """

    tasks: dict[str, Task]
    groups: list[Group]
    hashes: dict[str, str] = field(default_factory=dict)
    scorer: ProgramScorer = field(default_factory=ProgramScorer)

    @property
    def runs_programs(self) -> bool:
        """Whether a task executes what the model wrote."""
        return any(getattr(task, "UNSAFE_CODE", False) for task in self.tasks.values())


@lru_cache(maxsize=2)
def task_manager(every_task: bool) -> lm_eval.tasks.TaskManager:
    """lm-eval's index: of the paper's four families (fast), or of every task it has (seconds)."""
    root = Path(lm_eval.tasks.__file__).parent
    if every_task:
        return lm_eval.tasks.TaskManager()
    return lm_eval.tasks.TaskManager(include_path=[root / name for name in FOLDERS.values()], include_defaults=False)


def read_dataset(repository: Path, name: str | None) -> datasets.DatasetDict:
    """A mirrored dataset in memory: no hub, no cache folder, no lock.

    Raises:
        ValueError: The mirror has no such config.
    """
    import pyarrow.parquet as pq

    configs = read_configs(repository)
    config = name or next(iter(configs))
    if config not in configs:
        raise ValueError(f"{repository} has no config {config!r}; it has {', '.join(configs)}.")
    tables = {split: [datasets.Dataset(pq.read_table(path)) for path in files]
              for split, files in configs[config].items()}
    if not tables:
        raise FileNotFoundError(f"{repository} has no files for config {config!r}: fetch the mirror anew.")
    return datasets.DatasetDict({split: parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
                                 for split, parts in tables.items()})


@contextlib.contextmanager
def local_data(data: Path | None, required: tuple[str, ...], scorer: ProgramScorer, read: set[str]) -> Iterator[None]:
    """Within it, `datasets.load_dataset` reads the mirror and ``code_eval`` is ``scorer``; ``read`` notes what was.

    Repositories the mirror lacks are upstream's business (cache or hub), but for ``required``, which must be there.
    """
    import evaluate

    upstream, upstream_metric = datasets.load_dataset, evaluate.load

    def load_dataset(path: str, name: str | None = None, *arguments: Any, **settings: Any) -> Any:
        if data is not None and (data / path).is_dir():
            read.add(path)
            return read_dataset(data / path, name)
        if path in required:
            lack = f"{data} has no {path}" if data else f"there is no {path}, for --data names no folder that has it"
            raise FileNotFoundError(f"{lack}: run `lit-cpt eval-data fetch --data {data or 'eval-data'}` on a "
                                    "connected machine and copy the folder here.")
        return upstream(path, name, *arguments, **settings)

    def load_metric(path: str, *arguments: Any, **settings: Any) -> Any:
        return scorer if path == "code_eval" else upstream_metric(path, *arguments, **settings)

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.load_dataset, evaluate.load = load_dataset, load_metric
    try:
        yield
    finally:
        datasets.load_dataset, evaluate.load = upstream, upstream_metric
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Within it, a jinja template is compiled once; upstream compiles it anew for every document."""
    templates.from_string = lru_cache(maxsize=1024)(type(templates).from_string.__get__(templates))
    try:
        yield
    finally:
        del templates.from_string


def load_tasks(family: Family, data: Path | None) -> LoadedTasks:
    """Upstream's tasks of a family, with its shots and room for answers.

    Args:
        family: Which tasks, how many shots.
        data: Root of the mirror; None leaves all data to upstream (cache or hub).

    Raises:
        FileNotFoundError: The mirror lacks a repository of the family.
        UnknownTask: lm-eval has no such task.
    """
    manager = manager_of(family)
    scorer, read = ProgramScorer(), set[str]()
    with local_data(data, family.repositories, scorer, read), compiled_templates(), quiet("lm_eval.api.task"):
        loaded = manager.load(list(family.tasks))
    for task in loaded["tasks"].values():
        _configure(task, family)
    hashes = {name: data_hash(data, name) for name in sorted(read)} if data is not None else {}
    if family.folder is not None:
        hashes[Path(family.folder).name] = folder_hash(Path(family.folder))
    return LoadedTasks(dict(loaded["tasks"]), children_first(loaded.get("groups", {})), hashes, scorer)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Within it a logger says only what went wrong."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def manager_of(family: Family) -> lm_eval.tasks.TaskManager:
    """The smallest index that has a family's tasks.

    Raises:
        FileNotFoundError: The family's folder is not there.
        UnknownTask: No index has them.
    """
    if family.folder is not None:
        if not Path(family.folder).is_dir():
            raise FileNotFoundError(f"{family.folder}: there is no such folder of lm-eval task files.")
        manager, place = lm_eval.tasks.TaskManager(include_path=family.folder, include_defaults=False), family.folder
    else:
        manager, place = task_manager(every_task=False), "lm-eval"
        if not set(family.tasks) <= set(manager.all_tasks):
            manager = task_manager(every_task=True)
    unknown = [name for name in family.tasks if name not in manager.all_tasks]
    if unknown:
        near = [f"did you mean {one}? " for name in unknown
                for one in difflib.get_close_matches(name, [*FAMILIES, *manager.all_tasks], n=1)]
        raise UnknownTask(f"{place} has no task, group or tag {', '.join(unknown)}: {''.join(near)}`lm_eval ls tasks` "
                          f"lists lm-eval's, and the families here are {', '.join(FAMILIES)}.")
    return manager


def _configure(task: Task, family: Family) -> None:
    """Give a task the family's shots and room; python tasks without a config keep their own."""
    if family.shots is not None:
        task.set_config("num_fewshot", family.shots)
    if family.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": family.max_gen_toks}, update=True)


def children_first(groups: dict[str, Group]) -> list[Group]:
    """Groups ordered so that each stands behind the groups it holds."""
    ordered: list[Group] = []

    def visit(group: Group) -> None:
        for child in group.get_all_groups(recursive=False):
            visit(child)
        if all(group.name != other.name for other in ordered):
            ordered.append(group)

    for group in groups.values():
        visit(group)
    return ordered


def sample_documents(name: str, total: int, limit: int | None, seed: int) -> list[int]:
    """Which of a task's documents a limited evaluation takes: a sample that depends on nothing but the arguments.

    lm-eval's own ``limit`` takes the first ones, which are not a sample of anything.

    >>> sample_documents("mmlu_anatomy", 135, 4, seed=0) == sample_documents("mmlu_anatomy", 135, 4, seed=0)
    True
    """
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(f"{seed}/{name}/{total}").sample(range(total), limit))


def program_scorers(task: Task) -> list[tuple[dict[str, Any], str]]:
    """(module's names, name) wherever the metrics of a task keep a ``code_eval``: ours, or the hub's.

    Upstream keeps such modules between loads, so a task may hold the scorer of an earlier one.
    """
    metrics = [one["metric"] for one in task.get_config("metric_list") or [] if callable(one["metric"])]
    functions = [*metrics, *([process] if callable(process := task.get_config("process_results")) else [])]
    spaces = {id(function.__globals__): function.__globals__ for function in functions}
    return [(space, name) for space in spaces.values() for name, value in list(space.items())
            if isinstance(value, ProgramScorer) or getattr(value, "name", None) == "code_eval"]


@contextlib.contextmanager
def sandboxed_programs(loaded: LoadedTasks) -> Iterator[None]:
    """Within it, the tasks' metrics score programs by ``loaded.scorer`` and by nothing else.

    Raises:
        NoSandbox: A task runs programs in a way that cannot be taken over.
    """
    places = []
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            found = program_scorers(task)
            if not found:
                raise NoSandbox(f"task {name} runs programs by other means than code_eval, so they cannot be kept in a "
                                "sandbox. Leave it out.")
            places += found
    before = [(space, name, space[name]) for space, name in places]
    try:
        for space, name in places:
            space[name] = loaded.scorer
        yield
    finally:
        for space, name, value in before:
            space[name] = value


def filters_of(task: Task) -> list[Any]:
    """A task's filters, built from its config as upstream builds them."""
    listed = task.get_config("filter_list")
    if not listed:
        return [build_filter_ensemble("none", [("take_first", None)])]
    return [build_filter_ensemble(one["name"], [
        (step["function"], {key: value for key, value in step.items() if key != "function"}) for step in one["filter"]
    ]) for one in listed]
