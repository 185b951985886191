"""A run's diary: one JSON object a line, for people, reports and notebooks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lit_cpt.json_lines import append_line, read_lines

DIARY = "events.jsonl"


def append_event(run_dir: str | Path, kind: str, **fields: Any) -> None:
    """Add one event to ``run_dir/events.jsonl``.

    Args:
        run_dir: The run's folder; made if it is not there.
        kind: What happened: ``start``, ``phase``, ``evaluation``, ``checkpoint``, ``resume``, ``stop`` ...
        **fields: Plain values; by custom ``step`` and ``tokens_seen`` come first.
    """
    append_line(Path(run_dir) / DIARY, {"event": kind, **fields, "time": round(time.time(), 3)})


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """Events of a run in the order they were written; a line cut short by a kill is left out."""
    return read_lines(Path(run_dir) / DIARY)


def finished_at(run_dir: str | Path, step: int) -> bool:
    """Whether a run's diary says that it ended whole at ``step``."""
    return any(event["event"] == "finish" and event["step"] == step for event in read_events(run_dir))
