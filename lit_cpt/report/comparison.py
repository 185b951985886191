"""Scores of several runs side by side, their differences to a control, and the sentence they allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_cpt.intervals import Interval, average_difference
from lit_cpt.report.runs import BASE, Run

AVERAGE = "average"
CONTROL, SUBJECT = "baseline", "recipe"  # the names that `lit-cpt quickstart` gives


@dataclass(frozen=True)
class Row:
    """One family's score in one run's last evaluation.

    Attributes:
        family: The family, or "average".
        run: The run.
        step: Optimizer step of the evaluation.
        score: As the evaluation wrote it, in [0, 1], with its 95 % interval.
        items: Items scored.
        averaged: Whether the family counts in the average.
        difference: Run minus control over the same items, with its 95 % cluster interval; None for the control
            itself and where the two cannot be paired.
        unpaired: Why they cannot be paired; empty if they can.
    """

    family: str
    run: str
    step: int
    score: Interval
    items: int
    averaged: bool = True
    difference: Interval | None = None
    unpaired: str = ""


def compare(runs: Mapping[str, Run], control: str) -> list[Row]:
    """Rows of the score table, family by family, the average last; runs without an evaluation have none.

    Args:
        runs: Name to run.
        control: The run that the others are compared with.

    Raises:
        ValueError: ``control`` is none of the runs.
    """
    known(control, runs)
    finals = {name: run.scored[-1] for name, run in runs.items() if run.scored}
    families = dict.fromkeys(family for final in finals.values() for family in scored_families(final))
    return [row(family, name, final, finals.get(control) if name != control else None)
            for family in (*families, AVERAGE) for name, final in finals.items()
            if (final["average"] if family == AVERAGE else family in scored_families(final))]


def scored_families(evaluation: dict[str, Any]) -> list[str]:
    """The families of an evaluation that have a score."""
    return [name for name, family in evaluation["families"].items() if family["score"] is not None]


def known(control: str, runs: Mapping[str, Run]) -> str:
    """``control``, if it is one of the runs."""
    if control not in runs:
        raise ValueError(f"control={control!r} is none of the runs ({', '.join(runs)}): name one of them.")
    return control


def row(family: str, name: str, final: dict[str, Any], reference: dict[str, Any] | None) -> Row:
    """One row; ``reference`` is the control's evaluation, if there is something to compare with."""
    families = averaged(final) if family == AVERAGE else [family]
    answer = final["average"] if family == AVERAGE else final["families"][family]
    plain = Row(family, name, final["step"], Interval(answer["score"], answer["low"], answer["high"]),
                sum(final["families"][each]["items"] for each in families), set(families) <= set(averaged(final)))
    if reference is None:
        return plain
    if family == AVERAGE and (not reference["average"] or set(families) != set(averaged(reference))):
        return replace(plain, unpaired="other families")
    if unpaired := why_unpaired(final["families"], reference["families"], families):
        return replace(plain, unpaired=unpaired)
    ours, theirs = ({each: side["families"][each]["hits"] for each in families} for side in (final, reference))
    clusters = {each: final["families"][each]["clusters"] for each in families}
    return replace(plain, difference=average_difference(ours, theirs, clusters))


def averaged(final: dict[str, Any]) -> list[str]:
    """The families whose mean an evaluation's average is: those it names, else all."""
    return list(final.get("averaged", final["families"]))


def why_unpaired(ours: dict[str, Any], theirs: dict[str, Any], families: list[str]) -> str:
    """What forbids a paired difference over ``families``; empty if nothing does."""
    if not families or not set(families) <= theirs.keys():
        return "other families"
    for family in families:
        if not all(side[family].get(key) for side in (ours, theirs) for key in ("hits", "clusters")):
            return "no item scores"
        if ours[family]["clusters"] != theirs[family]["clusters"]:
            return "other items"
    return ""


def chosen_control(runs: Mapping[str, Run], control: str | None) -> str:
    """The control: as asked, else the run called "baseline", else the first."""
    if control is not None:
        return known(control, runs)
    return CONTROL if CONTROL in runs else next(iter(runs))


def chosen_subject(runs: Mapping[str, Run], control: str) -> str:
    """The run the verdict is about: "recipe", else the last given; never the best, which would flatter it."""
    contenders = [name for name in runs if name not in (control, BASE)]
    return SUBJECT if SUBJECT in contenders else (contenders or [control])[-1]


def starting_losses(runs: Mapping[str, Run]) -> dict[str, float]:
    """Validation loss per source where the runs begin: the base's last, else what was logged at step 0."""
    if BASE in runs and runs[BASE].validation:
        return {source: points[-1][1] for source, points in runs[BASE].validation.items()}
    return {source: points[0][1] for run in runs.values()
            for source, points in run.validation.items() if points[0][0] == 0}


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, the minus that of print: a hyphen would break over lines."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def verdict(runs: Mapping[str, Run], control: str, rows: list[Row]) -> str:
    """One sentence that says what the numbers show, and no more."""
    subject = chosen_subject(runs, control)
    averages = {each.run: each for each in rows if each.family == AVERAGE}
    return f"{said_of_scores(subject, control, averages)}{said_of_losses(subject, runs)}."


def said_of_scores(subject: str, control: str, averages: Mapping[str, Row]) -> str:
    """The half of the verdict about scores."""
    if subject not in averages:
        return f"There is no evaluation of {subject}, so nothing is said about its scores"
    ours = averages[subject]
    score = f"{subject} scores {100 * ours.score.value:.1f}\u00a0% on average"
    if subject == control:
        return score
    if ours.difference is None:
        return f"{score}, which cannot be compared with {control} ({ours.unpaired or 'no evaluation'})"
    gap = ours.difference
    interval = f"95\u00a0% interval {signed(100 * gap.low)} to {signed(100 * gap.high)}"
    if not gap.excludes_zero:
        reading = f"no difference is shown ({signed(100 * gap.value)} points, {interval})"
    else:
        reading = f"a {'gain' if gap.value > 0 else 'loss'} of {abs(100 * gap.value):.1f} points ({interval})"
    return f"{score} against {100 * averages[control].score.value:.1f}\u00a0% for {control}: {reading}"


def said_of_losses(subject: str, runs: Mapping[str, Run]) -> str:
    """The half about forgetting; empty where the losses are not known at both ends."""
    start, end = starting_losses(runs), runs[subject].validation
    rises = {source: end[source][-1][1] - start[source] for source in start if source in end}
    worse = [f"{source} ({signed(rise, 3)})" for source, rise in rises.items() if rise > 0]
    if subject == BASE or not rises:
        return ""
    if not worse:
        return f"; its validation loss ends below the start on all {len(rises)} sources"
    return f"; its validation loss ends above the start on {len(worse)} of {len(rises)} sources: {', '.join(worse)}"
