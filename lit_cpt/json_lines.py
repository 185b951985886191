"""Files of one JSON object a line, that a kill may cut short."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to the file ``path``, which is made if it is not there, and its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        if file.read() not in (b"", b"\n"):  # a kill cut the last line short: leave it its own line
            file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of the file ``path`` in order; one cut short by a kill is left out, and without a file there is none."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
