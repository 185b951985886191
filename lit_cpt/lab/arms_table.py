"""The comparison of a grid's arms: means over replicates, differences paired within each, and what they allow to say.

A difference is told by two intervals, because two things vary. Over items: the same questions in both arms, averaged
over replicates, whole clusters resampled. Over replicates: one difference for each seed (or base), Student's t.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
from tabulate import tabulate

from lit_cpt.intervals import Interval, average_interval, differences
from lit_cpt.lab.grid import Arm
from lit_cpt.lab.significance import holm, t_interval, t_probability
from lit_cpt.report.comparison import AVERAGE, averaged, scored_families, why_unpaired
from lit_cpt.report.runs import Run, load_run

LOSS = "val/"  # how the measures that are losses begin


@dataclass(frozen=True)
class Outcome:
    """What came of one arm.

    Args:
        treatment: What is compared.
        pair: Replicate that it shares with the arm it is compared with.
        block: The replicate but for its seed.
        evaluation: The last one, as its file has it; None if there is none with a score.
        losses: Source to its last validation loss.
        again: Which repetition it is of an arm whose noise is to be told; such a one is compared with nothing.
        first_losses: Source to its validation loss before the first step.
    """

    treatment: str
    pair: str
    block: str
    evaluation: Mapping[str, Any] | None
    losses: Mapping[str, float]
    again: str = ""
    first_losses: Mapping[str, float] = field(default_factory=dict)

    def measure(self, name: str) -> float | None:
        """A score in per cent or a loss; None where the arm has none."""
        if name.startswith(LOSS):
            return self.losses.get(name.removeprefix(LOSS))
        found = self.evaluation and (self.evaluation["average"] if name == AVERAGE
                                     else self.evaluation["families"].get(name))
        return 100 * found["score"] if found and found["score"] is not None else None


@dataclass(frozen=True)
class Line:
    """One treatment by one measure; scores in per cent, differences in points, losses in nats per token.

    Args:
        measure: A family, ``average``, or ``val/SOURCE``.
        treatment: What was done.
        count: Replicates that have it.
        mean: Over them.
        error: Standard error of the mean over replicates; None for fewer than two.
        difference: From the control, mean over the replicates of both; None for the control itself.
        over_items: 95 % interval of the difference over the drawing of questions; None for losses, or where the
            arms were not asked the same.
        over_replicates: 95 % interval of the difference over bases, or over the seeds of one; None for fewer than two.
        is_control: Whether others are compared with it.
        p: Two-sided p-value of the difference over replicates; None where there is no such interval.
        p_holm: The same, corrected for the number of treatments that are compared by this measure.
    """

    measure: str
    treatment: str
    count: int
    mean: float
    error: float | None = None
    difference: float | None = None
    over_items: Interval | None = None
    over_replicates: Interval | None = None
    is_control: bool = False
    p: float | None = None
    p_holm: float | None = None

    @property
    def shown(self) -> bool | None:
        """Whether the difference is more than chance, by every interval that there is; None if none can tell.

        With a single seed no loss is told apart, and a score only for that seed.
        """
        known = [each for each in (self.over_items, self.over_replicates) if each is not None]
        return all(each.excludes_zero for each in known) if known else None


@dataclass(frozen=True)
class Comparison:
    """The table of a grid.

    Args:
        control: What the others are compared with, as its labels.
        lines: Measure by measure.
        noise: Measure to the standard deviation of one arm over seeds, all else alike; None without two seeds.
        notes: What the table lacks.
    """

    control: str
    lines: tuple[Line, ...]
    noise: Mapping[str, float | None]
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {"control": self.control, "noise": dict(self.noise), "notes": list(self.notes),
                "lines": [{**asdict(line), "shown": line.shown} for line in self.lines]}


def outcome_of(arm: Arm, folder: Path) -> Outcome:
    """What an arm's run folder tells of its end."""
    return outcome_of_run(arm, load_run(folder))


def outcome_of_run(arm: Arm, run: Run) -> Outcome:
    """What an arm's run tells of its end."""
    ended = [one for one in run.scored if one["step"] == run.steps]
    return Outcome(arm.treatment, arm.pair, arm.block, ended[-1] if ended else None,
                   {source: points[-1][1] for source, points in run.validation.items()}, arm.again,
                   {source: points[0][1] for source, points in run.validation.items() if points[0][0] == 0})


def compare_arms(outcomes: Sequence[Outcome], controls: Mapping[str, str], control: str) -> Comparison:
    """Compare treatments with their controls, measure by measure.

    Args:
        outcomes: Of all arms.
        controls: Each treatment to the one that it is compared with, the controls to themselves.
        control: What the controls have in common, for people.
    """
    treatments: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for one in outcomes:
        if not one.again:
            treatments[one.treatment][one.pair] = one
    measures = measures_of(outcomes)
    lines = [line for measure in measures for line in corrected([
        replace(line_of(measure, name, arms, {} if own else treatments[controls[name]]), is_control=own)
        for name, arms in treatments.items() for own in [controls[name] == name]
        if any(arm.measure(measure) is not None for arm in arms.values())])]
    return Comparison(control, tuple(lines), {measure: noise(measure, outcomes) for measure in measures},
                      tuple(lacks(outcomes)))


def measures_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Families, their average, and losses, in order of first sight."""
    scores = dict.fromkeys(family for one in outcomes if one.evaluation for family in scored_families(
        dict(one.evaluation)))
    losses = dict.fromkeys(f"{LOSS}{source}" for one in outcomes for source in one.losses)
    return [*scores, *[AVERAGE] * bool(scores), *losses]


def line_of(measure: str, treatment: str, arms: Mapping[str, Outcome], control: Mapping[str, Outcome]) -> Line:
    """One treatment against the control; without a control only its own figures."""
    values = {pair: value for pair, arm in arms.items() if (value := arm.measure(measure)) is not None}
    error = stdev(values.values()) / math.sqrt(len(values)) if len(values) > 1 else None
    own = Line(measure, treatment, len(values), fmean(values.values()), error)
    theirs = {pair: other.measure(measure) for pair, other in control.items()}
    gaps = {pair: value - other for pair, value in values.items() if (other := theirs.get(pair)) is not None}
    if not gaps:
        return own
    items = None if measure.startswith(LOSS) else over_items(measure, [(arms[pair], control[pair]) for pair in gaps])
    independent = counted([(arms[pair].block, gap) for pair, gap in gaps.items()])
    return replace(own, difference=fmean(gaps.values()), over_items=items, over_replicates=t_interval(independent),
                   p=t_probability(independent))


def counted(gaps: Sequence[tuple[str, float]]) -> list[float]:
    """The paired differences that may be counted as independent.

    Seeds of one base are no new bases: with several blocks, each counts once, by the mean of its seeds.

    Args:
        gaps: Block and difference of each replicate.
    """
    blocks = [block for block, _ in gaps]
    means = [fmean(gap for other, gap in gaps if other == block) for block in dict.fromkeys(blocks)]
    return means if len(means) > 1 else [gap for _, gap in gaps]


def corrected(lines: Sequence[Line]) -> list[Line]:
    """Lines of one measure, their p-values corrected for their number."""
    return [replace(line, p_holm=p) for line, p in zip(lines, holm([line.p for line in lines]), strict=True)]


def over_items(measure: str, pairs: Sequence[tuple[Outcome, Outcome]]) -> Interval | None:
    """The difference in points with its 95 % interval over items; None if an arm was asked something else.

    Replicates that were asked the same questions are averaged question by question first: a question that is drawn
    anew is drawn for all of them.
    """
    found: dict[tuple[str, tuple[str, ...]], list[list[float]]] = defaultdict(list)
    for ours, theirs in pairs:
        assert ours.evaluation is not None
        assert theirs.evaluation is not None
        one, other = dict(ours.evaluation), dict(theirs.evaluation)
        families = averaged(one) if measure == AVERAGE else [measure]
        if measure == AVERAGE and set(families) != set(averaged(other)):
            return None
        if why_unpaired(one["families"], other["families"], families):
            return None
        for family in families:
            mine, yours = one["families"][family], other["families"][family]
            share = 100 / len(families) / len(pairs)  # of the whole, in points
            found[family, tuple(mine["clusters"])].append([share * gap for gap in differences(mine["hits"],
                                                                                               yours["hits"])])
    # The parts are added up, whatever number of replicates stands in each; the library's function takes their mean.
    parts = {f"{family}/{place}": [len(found) * gap for gap in np.sum(gaps, axis=0)]
             for place, ((family, _), gaps) in enumerate(found.items())}
    clusters = {f"{family}/{place}": asked for place, (family, asked) in enumerate(found)}
    return average_interval(parts, clusters)


def noise(measure: str, outcomes: Iterable[Outcome]) -> float | None:
    """Standard deviation of one arm over seeds, pooled over treatments and blocks; None without two seeds of any."""
    alike: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in outcomes:
        if (value := one.measure(measure)) is not None:
            alike[one.treatment, one.block].append(value)
    several = [values for values in alike.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    return math.sqrt(sum((len(values) - 1) * variance(values) for values in several) / freedom) if freedom else None


def lacks(outcomes: Sequence[Outcome]) -> Iterable[str]:
    """What makes the table less than it could be, one sentence each."""
    without = [",".join(filter(None, (one.treatment, one.pair))) for one in outcomes if one.evaluation is None]
    if without:
        yield f"no evaluation at the end of {', '.join(without)}"
    if len({one.pair for one in outcomes}) == 1:
        yield "one replicate: nothing here covers another seed or base model"


def render_arms(found: Comparison) -> str:
    """The table and how to read it, for a terminal."""
    notes = [f"! {note}" for note in found.notes]
    rows = [cells(line, found) for line in found.lines]
    return "\n".join([tabulate(rows, head(found), disable_numparse=True), "", *READING, *notes])


def head(found: Comparison) -> list[str]:
    """Titles of the table's columns."""
    return ["measure", "arm", "n", "mean ± s.e.", f"minus {found.control}", "over items", "over replicates", "p (Holm)",
            "noise", "difference"]


def cells(line: Line, found: Comparison) -> list[str]:
    """A row of the table."""
    floor, said, gap = found.noise[line.measure], "control" if line.is_control else "-", "-"
    digits = 3 if line.measure.startswith(LOSS) else 1
    mean = f"{line.mean:.{digits}f}" + ("" if line.error is None else f" ± {line.error:.{digits}f}")
    if line.difference is not None:
        gap = f"{line.difference:+.{digits}f}"
        said = {True: "shown", False: "not shown", None: "cannot be told"}[line.shown]
    return [line.measure, line.treatment, str(line.count), mean, gap, between(line.over_items, digits),
            between(line.over_replicates, digits), probability(line.p_holm),
            "-" if floor is None else f"{floor:.{digits}f}", said]


def probability(p: float | None) -> str:
    """A p-value."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def between(found: Interval | None, digits: int) -> str:
    """An interval's ends."""
    return "-" if found is None else f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"


READING = (
    "Scores in per cent, val/ losses in nats per token; s.e. over replicates. Differences: paired within a replicate,",
    "with 95 % intervals over items (clusters resampled) and over replicates (t). noise: s.d. of one arm over seeds.",
    "shown: zero lies outside every interval there is. p: of the t-test over replicates, corrected for the number of",
    "comparisons by this measure (Holm), which the intervals are not.",
)
