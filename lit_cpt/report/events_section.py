"""The runs' diaries, readable when they are long: what repeats is told once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_cpt.report.markup import Cell, folding, table
from lit_cpt.report.runs import Run
from lit_cpt.units import format_seconds

ROWS = 24  # of a run that are shown; the rest stand in its events.jsonl
OPEN = 3  # so many diaries stand open
MILESTONES = ("start", "resume", "phase", "rollback", "stop", "finish")  # between two of them kinds are folded
ASIDE = ("event", "step", "tokens_seen", "time")

Event = dict[str, Any]


def folded(events: Sequence[Event]) -> list[list[Event]]:
    """Events in order, those of one kind between two milestones together."""
    groups: list[list[Event]] = []
    since: dict[str, list[Event]] = {}  # kind to its group, since the last milestone
    for event in events:
        kind = str(event.get("event", "–"))
        if kind in MILESTONES:
            since = {}
        if kind in since:
            since[kind].append(event)
        else:
            since[kind] = [event]
            groups.append(since[kind])
    return groups


def diaries(runs: Mapping[str, Run]) -> str:
    """Each run's diary, open where there are few."""
    told = {name: run.events for name, run in runs.items() if run.events}
    return "".join(folding(f"{name}: {len(events):,} event{'s' * (len(events) > 1)}", event_table(events),
                           is_open=len(told) <= OPEN) for name, events in told.items())


def event_table(events: Sequence[Event]) -> str:
    """A diary, time counted from its first line."""
    groups = folded(events)
    lines = [row(group, events[0]) for group in groups]
    if len(groups) > ROWS:
        left = sum(len(group) for group in groups[ROWS // 2:-ROWS // 2])
        lines[ROWS // 2:-ROWS // 2] = [["", f"{left:,} more in events.jsonl", "", "", ""]]
    return table("Times count from the first line; events of one kind stand together",
                 ["after", "event", "step", "tokens", "details"], lines, "words")


def row(group: list[Event], first: Event) -> list[str | Cell]:
    """One line of the table: an event, or several of a kind."""
    since = max(0.0, seconds(group[0]) - seconds(first))
    several = f"×{len(group):,}" if len(group) > 1 else ""
    return [format_seconds(since), Cell(str(group[0].get("event", "–")), several), span(group, "step"),
            span(group, "tokens_seen"), details(group)]


def seconds(event: Event) -> float:
    """When an event was written."""
    time = event.get("time")
    return float(time) if isinstance(time, (int, float)) else 0.0


def step_of(event: Event) -> int:
    """The step that an event is about."""
    return next((event[key] for key in ("at_step", "step") if isinstance(event.get(key), int)), 0)


def span(group: Sequence[Event], key: str) -> str:
    """A whole number of the events, from the first to the last; a dash where none has it."""
    told = [event[key] for event in group if isinstance(event.get(key), int)]
    ends = dict.fromkeys([told[0], told[-1]]) if told else {}
    return " to ".join(f"{value:,}" for value in ends) or "–"


def details(group: Sequence[Event]) -> str:
    """All else that the events say: what is alike once, of what differs the first and the last."""
    keys = dict.fromkeys(key for event in group for key in event if key not in ASIDE)
    told = []
    for key in keys:
        said = [spoken(event[key]) for event in group if event.get(key) not in (None, [], {})]
        if not said:
            continue
        told.append(f"{key} {said[0]}" if len(set(said)) == 1 else f"{key} {said[0]} … {said[-1]}")
    return "; ".join(told)


def spoken(value: object, limit: int = 120) -> str:
    """A plain value in few letters."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {spoken(each)}" for key, each in value.items())
    if isinstance(value, list):
        return shortened(", ".join(spoken(each) for each in value), limit)
    return shortened(f"{value:.4g}" if isinstance(value, float) else str(value), limit)


def shortened(text: str, limit: int) -> str:
    """``text``, cut at ``limit``."""
    return text if len(text) <= limit else text[:limit - 1] + "…"
