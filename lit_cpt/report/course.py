"""How far runs came, how long it took, and how they ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lit_cpt.report.events_section import seconds, spoken, step_of
from lit_cpt.report.markup import Cell, table
from lit_cpt.report.runs import Run
from lit_cpt.units import format_count, format_seconds

TURNS = ("start", "resume", "finish", "stop")


def course_table(runs: Mapping[str, Run]) -> str:
    """Steps, tokens, validations and evaluations made, and planned; how long it took and how it ended."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        agenda, tokens = run.plan.get("agenda") or {}, (run.tokens_per_step or 0) * run.steps
        validated = {step for points in run.validation.values() for step, _ in points}
        cells = [made(run.steps, run.plan.get("steps")), made(tokens, run.plan.get("token_horizon"), format_count),
                 made(len(validated), (agenda.get("validations") or {}).get("count")),
                 made(len(run.evals), (agenda.get("evaluations") or {}).get("count"))]
        took = wall_seconds(run)
        lines.append([name, *cells, format_seconds(took) if took else "–", ending(run)])
    return table("How far, how long, and how it ended",
                 ["run", "steps", "tokens", "validations", "evaluations", "time", "end"], lines, "words")


def made(count: float, planned: float | None, told: Callable[[float], str] = "{:,}".format) -> Cell:
    """How much was made of what was planned."""
    return Cell(told(count) if count else "–", "" if planned is None else f"of {told(planned)}")


def wall_seconds(run: Run) -> float:
    """Seconds from each start or resumption to the last event before the next, in all."""
    total, first, last = 0.0, None, None
    for event in run.events:
        if first is None or event.get("event") in ("start", "resume"):
            total, first = total + ((last or 0.0) - (first or 0.0)), seconds(event)
        last = seconds(event)
    return max(0.0, total + ((last or 0.0) - (first or 0.0)))


def ending(run: Run) -> str:
    """How a run ended, as far as it wrote it down."""
    turns = [event for event in run.events if event.get("event") in TURNS or event.get("then") == "stop"]
    if not turns:
        return "not on record"
    last, step = turns[-1], f"{step_of(turns[-1]):,}"
    if last["event"] == "finish":
        return "finished"
    if last["event"] == "stop":
        return f"stopped by {spoken(last.get('reason', 'request'))} at step {step}"
    if last.get("then") == "stop":
        return f"ended by {last['event']} at step {step}"
    return f"no end on record: it runs, was killed or crashed; last seen at step {run.steps:,}"
