"""From answers to scores: upstream's filters and metrics, standard errors, bits per byte of the right answer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from lit_cpt.harness.families import Family
from lit_cpt.harness.requests import GENERATES, Document, FamilyRequests
from lit_cpt.harness.results import Score, mean_score
from lit_cpt.harness.tasks import compiled_templates, filters_of, sandboxed_programs

SILENT_FILTERS = {"none", "create_test"}  # filters a task has only one of: metric names go without them
BITS = "bits_per_byte"


@dataclass
class Scored:
    """What `score_family` finds.

    Args:
        scores: By ``task/metric``.
        documents: Per task and metric, one value a document, beside ``doc_id``.
        clusters: Per task, what each of these documents stands or falls together with.
        nonfinite: Documents without a finite answer, which no score is taken over.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    documents: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    clusters: dict[str, list[str]] = field(default_factory=dict)
    nonfinite: int = 0


def short_name(task: str) -> str:
    """A task's name in scores.

    >>> short_name("mgsm_native_cot_es"), short_name("mmlu_anatomy")
    ('mgsm_es', 'mmlu_anatomy')
    """
    return task.replace("_native_cot_", "_")


def metric_name(metric: str, filtered_by: str) -> str:
    """A metric's name in scores.

    >>> metric_name("pass@1", "create_test"), metric_name("exact_match", "strict-match")
    ('pass_at_1', 'exact_match_strict_match')
    """
    name = metric if filtered_by in SILENT_FILTERS else f"{metric}_{filtered_by}"
    return name.replace("@", "_at_").replace("-", "_").replace(",", "_")


def cluster(family: Family, task: str, document: Document) -> str:
    """What a document stands or falls together with: by its own ``cluster`` column, or in other languages, or alone."""
    named = document.content.get("cluster")
    return f"{family.name if family.parallel else short_name(task)}/{document.number if named is None else named}"


def score_family(family: Family, requests: FamilyRequests, broken: set[int], bits: bool) -> Scored:
    """Score every task of a family, its groups, and the family itself.

    Args:
        family: Its scores are pooled over the documents of all tasks.
        requests: With the model's answers in ``resps``.
        broken: `id` of requests whose answer came from logits that were not finite.
        bits: Whether gold answers were scored.
    """
    found, raw, keys = Scored(), dict[str, dict[str, list[float]]](), set[tuple[str, str]]()
    with compiled_templates(), sandboxed_programs(requests.loaded):
        for task_name, documents in requests.documents.items():
            task = requests.loaded.tasks[task_name]
            whole = [one for one in documents if not any(is_broken(asked, broken) for asked in one.asked)]
            found.nonfinite += len(documents) - len(whole)
            values, seen = score_task(task, whole) if whole else ({}, set())
            keys |= seen
            if bits:
                add_bits(values, whole)
            raw[task_name] = values
            table = {"doc_id": [float(one.number) for one in whole], **values}
            found.documents[short_name(task_name)] = table
            found.clusters[short_name(task_name)] = [cluster(family, task_name, one) for one in whole]
            found.scores |= {f"{short_name(task_name)}/{metric}": aggregate(task, metric, finite(listed), seen)
                             for metric, listed in values.items() if finite(listed)}
    for group in requests.loaded.groups:
        members = [task.task_name for task in group.get_all_tasks()]
        found.scores |= {f"{group.name}/{metric}": score for metric, score in pooled(group, members, raw).items()}
    if len(raw) > 1 or short_name(next(iter(raw), "")) != family.name:
        for metric, score in pooled(None, list(raw), raw).items():
            found.scores.setdefault(f"{family.name}/{metric}", score)
    return found


def chief_metric(family: Family, scored: Scored) -> str:
    """The metric that stands for a family: its own choice, else the first that its tasks give; empty without any."""
    names = dict.fromkeys(name for table in scored.documents.values() for name in table if name not in ("doc_id", BITS))
    return family.metric if family.metric in names else next(iter(names), "")


def finite(values: Sequence[Any]) -> list[Any]:
    """Without NaN, which stands where a document has no right answer to score."""
    return [value for value in values if not (isinstance(value, float) and math.isnan(value))]


def is_broken(request: Instance, broken: set[int]) -> bool:
    """Whether an answer is not finite, or came from logits that were not."""
    answers = [answer[0] if isinstance(answer, (tuple, list)) else answer for answer in request.resps]
    return id(request) in broken or any(isinstance(one, float) and not math.isfinite(one) for one in answers)


def score_task(task: Task, documents: Sequence[Document]) -> tuple[dict[str, list[Any]], set[tuple[str, str]]]:
    """Upstream's metrics of each document, and the (metric, filter) pairs behind their names."""
    asked = [request for one in documents for request in one.asked]
    names = []
    for ensemble in filters_of(task):
        ensemble.apply(asked)
        names.append(ensemble.name)
    values: dict[str, list[Any]] = defaultdict(list)
    seen = set()
    for filtered_by in names:
        for one in documents:
            answers = [request.filtered_resps[filtered_by] for request in one.asked]
            for metric, value in task.process_results(one.content, answers).items():
                seen.add((metric, filtered_by))
                values[metric_name(metric, filtered_by)].append(value)
    return dict(values), seen


def aggregate(task: Task, name: str, values: Sequence[Any], seen: set[tuple[str, str]]) -> Score:
    """One metric of a task: upstream's aggregation, with a standard error where that is the mean."""
    metric = next((metric for metric, filtered_by in seen if metric_name(metric, filtered_by) == name), name)
    combine = task.aggregation().get(metric, mean)
    if combine is mean:
        return mean_score([float(value) for value in values])
    return Score(float(combine(values)), None, len(values))


def pooled(group: Group | None, members: Sequence[str], raw: dict[str, dict[str, list[Any]]]) -> dict[str, Score]:
    """Scores of a group: over the documents of its tasks where upstream weights by size, else the mean of means."""
    names = {metric for member in members for metric in raw.get(member, {})}
    weighted = {metric_name(one.metric, "none"): one.weight_by_size for one in (group.aggregate_metric_list or ())
                } if group is not None else {}
    found = {}
    for metric in sorted(names):
        parts = [finite(raw[member][metric]) for member in members if raw.get(member, {}).get(metric)]
        parts = [part for part in parts if part]
        if not parts or not all(isinstance(value, (int, float)) for part in parts for value in part):
            continue
        if weighted.get(metric, True):
            found[metric] = mean_score([float(value) for part in parts for value in part])
        else:
            scores = [mean_score([float(value) for value in part]) for part in parts]
            errors = [score.stderr for score in scores if score.stderr is not None]
            whole = len(errors) == len(parts)
            spread = math.sqrt(math.fsum(error**2 for error in errors)) / len(parts) if whole else None
            found[metric] = Score(math.fsum(score.value or 0.0 for score in scores) / len(parts), spread,
                                  sum(map(len, parts)))
    return found


def add_bits(values: dict[str, list[Any]], documents: Sequence[Document]) -> None:
    """Add bits per byte of each document's right answer; NaN where it has none or its score is not finite."""
    listed = [bits_per_byte(one) for one in documents]
    if any(value is not None for value in listed):
        values[BITS] = [math.nan if value is None else value for value in listed]


def bits_per_byte(document: Document) -> float | None:
    """Bits the model needs for a right answer, over its UTF-8 bytes, the delimiter before it included."""
    gold = document.asked[document.gold] if isinstance(document.gold, int) else document.gold
    if gold is None or not gold.resps:
        return None
    value, size = gold.resps[0][0], len(gold.args[1].encode())
    return -value / math.log(2) / size if size and math.isfinite(value) else None


def start_programs(requests: FamilyRequests, request: Instance, text: str) -> None:
    """Send a program to the sandbox while others are being generated; scoring asks for the verdict later."""
    task = requests.loaded.tasks.get(str(request.task_name))
    if task is None or request.request_type != GENERATES or not getattr(task, "UNSAFE_CODE", False):
        return
    probe = Instance(request.request_type, request.doc, request.arguments, request.idx, request.metadata, resps=[text])
    test = str(task.doc_to_target(request.doc))
    for ensemble in filters_of(task):
        ensemble.apply([probe])
        for candidate in probe.filtered_resps[ensemble.name]:
            requests.loaded.scorer.start(candidate, test, request.doc.get("prompt", ""),
                                         request.doc.get("entry_point", ""))
