"""All that can be told of a run before it starts: plan, data, schedule, disk, dates, differences. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from lit_cpt.agenda import Agenda, Course, Series, agenda
from lit_cpt.departures import ALIKE, departures
from lit_cpt.evaluations import evaluations_in
from lit_cpt.footprint import FP32
from lit_cpt.plan import Plan, plan, render
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.shortfalls import Unused, shortfalls, unused, unused_lines
from lit_cpt.units import format_bytes, format_count, format_seconds
from lit_cpt.weight_files import stored_parameters

CHECKPOINT_BYTES = 3 * FP32  # a parameter: master weight and AdamW's two moments in fp32


@dataclass(frozen=True)
class Setup:
    """What of a run decides what can be told of it.

    Args:
        recipe: What to train.
        batch: Geometry of a step.
        seed: Of the stream.
        sources: Names in ``data.sources``; empty where none are given yet.
        blocks: Blocks of each source, where they are known.
        validates: Whether there is anything to validate on.
        trainer: The ``trainer`` part of its config.
        model: The ``model`` part.
        ranks: Devices in all; None where nobody knows yet.
        parameters: Of the model; None to look for them in its folder.
        run: The run's folder, whose evaluations tell what the next ones cost.

    Raises:
        ValueError: The global batch cannot be dealt out to the ranks.
    """

    recipe: Recipe
    batch: Batch
    seed: int = 42
    sources: tuple[str, ...] = ()
    blocks: Mapping[str, int] = field(default_factory=dict)
    validates: bool = True
    trainer: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    ranks: int | None = None
    parameters: int | None = None
    run: str | None = None

    @property
    def accumulation(self) -> int | None:
        """Micro-batches of a step on each rank."""
        return None if self.ranks is None else self.batch.accumulation(self.ranks)

    @property
    def known_parameters(self) -> int | None:
        """Parameters as given, or as the files of a model that is continued tell."""
        given = self.model.get("pretrained")
        return self.parameters or (stored_parameters(given) if isinstance(given, str) else None)


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Args:
        plan: Phases and what they draw.
        unused: Prepared data that it leaves aside.
        warnings: What to think about before starting.
        departures: In what it differs from the paper.
        agenda: What it does beside training; None where its config says nothing of it.
        checkpoint_bytes: Of one checkpoint; None where the model's size is not known.
        evaluation_seconds: Of all evaluations; None where none has been made yet.
    """

    plan: Plan
    unused: Unused
    warnings: list[str]
    departures: list[str]
    agenda: Agenda | None
    checkpoint_bytes: int | None
    evaluation_seconds: float | None

    def describe(self) -> dict[str, Any]:
        """Plain values, for ``plan.json``: those of the plan, and beside them the rest."""
        rest = {key: value for key, value in asdict(self).items() if key != "plan"}
        return {**self.plan.describe(), **rest}


def forecast(setup: Setup) -> Forecast:
    """Work out all that can be told of a run.

    Raises:
        ValueError: Something that `lit-cpt fit` would refuse, too.
    """
    result = plan(setup.recipe, setup.batch, setup.blocks, setup.seed)
    switches = tuple(phase.start.step for phase in result.phases[1:] if phase.start)
    course = Course(result.steps, result.tokens_per_step, result.token_horizon, switches, setup.accumulation,
                    setup.validates)
    done = agenda(setup.trainer, course) if {"callbacks", "val_check_interval"} & set(setup.trainer) else None
    parameters = setup.known_parameters
    return Forecast(
        result, unused(result, setup.sources),
        shortfalls(result, setup.sources, setup.blocks, setup.batch.sequence_length),
        departures(setup.recipe, result, setup.model), done, CHECKPOINT_BYTES * parameters if parameters else None,
        evaluation_seconds(done, setup.run) if done and setup.run else None)


def evaluation_seconds(planned: Agenda, run: str) -> float | None:
    """Seconds of all planned evaluations, by what those in the folder of ``run`` took; None where a kind is lacking."""
    if planned.evaluations is None:
        return None
    took: dict[bool, list[float]] = {True: [], False: []}
    for one in evaluations_in(Path(run))[0]:
        took[one.full].append(one.seconds)
    counts = {True: planned.whole_evaluations, False: planned.evaluations.count - planned.whole_evaluations}
    if any(count and not took[kind] for kind, count in counts.items()):
        return None
    return sum(count * fmean(took[kind]) for kind, count in counts.items() if count)


def dates(result: Plan, tokens_per_second: float, now: datetime) -> dict[str, datetime]:
    """When each phase after the first begins, by its name, and the ``end``, if training alone starts ``now``."""
    starts = {phase.name: phase.start.tokens for phase in result.phases[1:] if phase.start}
    return {name: now + timedelta(seconds=tokens / tokens_per_second)
            for name, tokens in {**starts, "end": result.token_horizon}.items()}


def render_forecast(found: Forecast) -> str:
    """The forecast as text for a terminal; what says nothing is left out."""
    same = found.departures or [ALIKE]
    differs = ["not as in the paper (arXiv 2407.07263):", *(f"  {line}" for line in same)] if found.departures else same
    sections = [agenda_lines(found), unused_lines(found.unused), differs, [f"! {line}" for line in found.warnings]]
    return "\n".join([render(found.plan), *(f"\n{chr(10).join(lines)}" for lines in sections if lines)])


def agenda_lines(found: Forecast) -> list[str]:
    """The schedule, with disk and cost."""
    if found.agenda is None:
        return []
    planned = found.agenda
    rows = [row for row in (
        series_row("validation", planned.validations, ""),
        series_row("evaluation", planned.evaluations, evaluation_words(found)),
        series_row("checkpoint", planned.checkpoints, checkpoint_words(found))) if row]
    lines = tabulate(rows, ["beside training", "times", "after step", ""], disable_numparse=True,
                     colalign=("left", "right", "left", "left")).splitlines() if rows else []
    return [*lines, *(f"not foretold: {what}" for what in planned.not_foretold)]


def series_row(name: str, series: Series | None, words: str) -> list[str] | None:
    """Name, count, the first steps and the last, and what else there is to say."""
    if series is None:
        return None
    first = ", ".join(f"{step:,}" for step in series.first)
    more = f" .. {series.last:,}" if series.last not in series.first else ""
    return [name, f"{series.count:,}", first + more, words]


def evaluation_words(found: Forecast) -> str:
    """How many ask all documents, and what all of them cost."""
    assert found.agenda is not None
    cost = "cost unknown before the first" if found.evaluation_seconds is None else (
        f"{format_seconds(found.evaluation_seconds)} in all")
    return f"{found.agenda.whole_evaluations:,} ask all documents; {cost}"


def checkpoint_words(found: Forecast) -> str:
    """How much disk they take."""
    assert found.agenda is not None
    most = found.agenda.most_checkpoints
    if found.checkpoint_bytes is None:
        return f"{most} at once at most, of {CHECKPOINT_BYTES} bytes a parameter"
    return (f"{most} at once at most: {format_bytes(most * found.checkpoint_bytes)} of disk, "
            f"{format_bytes(found.checkpoint_bytes)} each")


def dates_line(result: Plan, tokens_per_second: float, now: datetime) -> str:
    """`dates` in words."""
    *starts, (_, end) = dates(result, tokens_per_second, now).items()
    begins = "".join(f"{name} begins {day(at, now)}; " for name, at in starts)
    return (f"at {format_count(tokens_per_second)} tokens/s, training alone, if started now: {begins}"
            f"the run ends {day(end, now)}")


def day(at: datetime, now: datetime) -> str:
    """A moment as ``Sat 12 Dec, 14:00``, with its year if that is another."""
    return f"{at:%a} {at.day} {at:%b}{f' {at.year}' if at.year != now.year else ''}, {at:%H:%M}"
