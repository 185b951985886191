"""What runs forgot and what they gained, each from where it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_cpt.intervals import Interval, average_difference
from lit_cpt.report.comparison import averaged
from lit_cpt.report.runs import BASE, Run, sources_of

Weights = dict[str, float]


@dataclass(frozen=True)
class Balance:
    """A run between forgetting and gain.

    Attributes:
        began: What it is counted from: the base, or a step of its own.
        steps: Optimizer steps of the evaluations, ascending.
        forgotten: Nats a token by which the loss on the old blend lies above the beginning, at each of them.
        gained: The average score less that of the beginning over the documents that both were asked, in [-1, 1].
        gain: The last of ``gained`` with its 95 % interval.
    """

    began: str
    steps: list[int]
    forgotten: list[float]
    gained: list[float]
    gain: Interval


def old_blend(runs: Mapping[str, Run], control: str) -> Weights:
    """Weights of the sources that can be forgotten, summing to 1: by them losses are averaged.

    They are what the base was trained on last; without a base, what the control began with; without a plan, all
    sources alike. Only sources with a validation loss in every run that has scores count.
    """
    judged = contenders(runs)
    based = BASE in runs and bool(runs[BASE].plan)
    phases = [phase for phase in runs[BASE if based else control].plan.get("phases", []) if phase["start"]]
    drawn = dict.fromkeys(sources_of(judged), 1.0)
    if phases:
        drawn = {source["name"]: float(source["weight"]) for source in phases[-1 if based else 0]["sources"]}
    known = {source: weight for source, weight in drawn.items()
             if weight > 0 and all(source in run.validation for run in judged.values())}
    return {source: weight / sum(known.values()) for source, weight in known.items()}


def contenders(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The runs that have both scores and validation losses, but for the base."""
    return {name: run for name, run in runs.items() if name != BASE and run.scored and run.validation}


def balances(runs: Mapping[str, Run], weights: Weights) -> dict[str, Balance]:
    """Run to its balance, where there is something to say of it.

    Args:
        runs: Name to run; all are counted from the last of one called "base", if it has losses and scores, else each
            from its own first evaluation.
        weights: By which losses are averaged (`old_blend`).
    """
    base = runs.get(BASE)
    if not weights or (base is not None and not (base.scored and weights.keys() <= base.validation.keys())):
        base = None
    found = {name: balance(run, base, weights) for name, run in contenders(runs).items()} if weights else {}
    return {name: one for name, one in found.items() if one is not None}


def balance(run: Run, base: Run | None, weights: Weights) -> Balance | None:
    """The balance of one run; None where nothing can be paired with its beginning."""
    first = (base or run).scored[-1 if base else 0]
    loss = loss_at(base or run, first["step"], weights)
    later = [evaluation for evaluation in run.scored if base or evaluation is not first]
    gains = [(evaluation["step"], gain(evaluation, first)) for evaluation in later]
    known = [(step, change) for step, change in gains if change is not None]
    if not known:
        return None
    last = next(evaluation for evaluation in later if evaluation["step"] == known[-1][0])
    return Balance("the base" if base else f"step {first['step']:,}", [step for step, _ in known],
                   [loss_at(run, step, weights) - loss for step, _ in known], [change for _, change in known],
                   average_difference(*paired(last, first)))


def loss_at(run: Run, step: int, weights: Weights) -> float:
    """The loss on the old blend in the last validation up to ``step``, else in the first one."""
    return sum(weight * next((loss for made, loss in reversed(run.validation[source]) if made <= step),
                             run.validation[source][0][1]) for source, weight in weights.items())


def gain(now: dict[str, Any], before: dict[str, Any]) -> float | None:
    """By how much the average score changed; None where the two cannot be paired."""
    ours, theirs, _ = paired(now, before)
    if not ours or not all(ours.values()):
        return None
    return sum(sum(ours[name]) / len(ours[name]) - sum(theirs[name]) / len(theirs[name]) for name in ours) / len(ours)


def paired(now: dict[str, Any], before: dict[str, Any]) -> tuple[dict[str, list[float]], dict[str, list[float]],
                                                                 dict[str, list[str]]]:
    """Hits of both evaluations and clusters, family by family, over the documents both were asked; else nothing."""
    families = averaged(now)
    if not now["average"] or not before["average"] or set(families) != set(averaged(before)):
        return {}, {}, {}
    ours, theirs, clusters = {}, {}, {}
    for name in families:
        one, other = (answers(side["families"][name]) for side in (now, before))
        both = [document for document in one if document in other]
        ours[name], clusters[name] = [one[document][0] for document in both], [one[document][1] for document in both]
        theirs[name] = [other[document][0] for document in both]
    return ours, theirs, clusters


def answers(family: dict[str, Any]) -> dict[Any, tuple[float, str]]:
    """Document to its hit and its cluster; documents without a name are known by their place."""
    hits, clusters = family.get("hits") or [], family.get("clusters") or []
    names = family.get("documents") or [f"{place}:{cluster}" for place, cluster in enumerate(clusters)]
    return dict(zip(names, zip(hits, clusters, strict=False), strict=False))
