"""A run's diary: one JSON object a line, for people, reports and notebooks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def append_event(run_dir: str | Path, kind: str, **fields: Any) -> None:
    """Add one event to ``run_dir/events.jsonl``.

    Args:
        run_dir: The run's folder; made if it is not there.
        kind: What happened: ``start``, ``phase``, ``evaluation``, ``checkpoint``, ``resume``, ``stop`` ...
        **fields: Plain values; by custom ``step`` and ``tokens_seen`` come first.
    """
    path = Path(run_dir) / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": kind, **fields, "time": round(time.time(), 3)}) + "\n"
    with path.open("ab+") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        if file.read() not in (b"", b"\n"):  # a kill cut the last line short: leave it its own line
            file.write(b"\n")
        file.write(line.encode())


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """Events of a run in the order they were written; a line cut short by a kill is left out."""
    path = Path(run_dir) / "events.jsonl"
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
