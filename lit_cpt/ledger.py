"""The account of a run: what was trained on, by source and phase, line by line in ``ledger.jsonl``. Torch-free."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_cpt.blends import BlendHistory
from lit_cpt.json_lines import read_lines
from lit_cpt.publishing import publish_text

LEDGER = "ledger.jsonl"


Counts = dict[str, int]  # source -> samples
Stretch = tuple[int, int]  # of the stream: its first sample, and one past its last


def position_of(trained: int, passed: Iterable[Stretch]) -> int:
    """Where the stream stands when ``trained`` samples were trained: at the first one to come.

    Args:
        trained: Samples, all ranks together.
        passed: Stretches that are passed over, in order.

    >>> position_of(30, [(20, 50)]), position_of(20, [(20, 50)]), position_of(19, [(20, 50)])
    (60, 50, 19)
    """
    for first, stop in passed:
        trained += stop - first if first <= trained else 0
    return trained


def merged(*stretches: Stretch) -> list[Stretch]:
    """``stretches`` in order, those that touch made one.

    >>> merged((20, 30), (0, 10), (8, 12))
    [(0, 12), (20, 30)]
    """
    found: list[Stretch] = []
    for first, stop in sorted(stretches):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((first, stop))
    return found


def drawn(history: BlendHistory, position: int, passed: Iterable[Stretch]) -> Counts:
    """Samples of each source that were trained among those before ``position``."""
    counts = history.counts(position)
    for first, stop in passed:
        counts = counts - history.counts(min(stop, position)) + history.counts(min(first, position))
    return dict(zip(history.sources, counts.tolist(), strict=True))


def added(before: Mapping[str, int], after: Mapping[str, int]) -> Counts:
    """What came to each source; one to which nothing came is left out."""
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in more.items() if count}


def by_phase(begun: Sequence[tuple[str, int]], totals: Sequence[Mapping[str, int]]) -> dict[str, Counts]:
    """Samples of each phase and source; a phase without a step is left out.

    Args:
        begun: Name and first step of each phase that has begun.
        totals: `drawn` at each of these steps, and now.
    """
    gains = [added(before, after) for before, after in itertools.pairwise(totals)]
    return {name: gain for (name, _), gain in zip(begun, gains, strict=True) if gain}


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Each source's part of the whole; of nothing, none.

    >>> shares({"web": 3, "code": 1})
    {'web': 0.75, 'code': 0.25}
    """
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()} if whole else {}


def repeated(epochs: Mapping[str, float], cap: float, told: Sequence[str]) -> list[str]:
    """Sources that have been seen more than ``cap`` times and are not in ``told``."""
    return [name for name, seen in epochs.items() if seen > cap and name not in told]


def read_ledger(run: str | Path) -> list[dict[str, Any]]:
    """Lines of the ledger of ``run``, in order; none where it has no ledger."""
    return read_lines(Path(run) / LEDGER)


def cut_ledger(run: str | Path, step: int) -> None:
    """Take back what the ledger of ``run`` says of steps after ``step``: they are trained anew."""
    lines = read_ledger(run)
    if lines:
        publish_text(Path(run) / LEDGER, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
