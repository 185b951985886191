"""Signs of trouble, from numbers alone: a source that is forgotten, a run that stalls. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Worse(NamedTuple):
    """Something that has become worse by more than it may.

    Args:
        name: What: a source or a family of tasks.
        before: Its value in the baseline.
        now: Its value now.
        limit: How far it may fall or rise.
    """

    name: str
    before: float
    now: float
    limit: float

    def __str__(self) -> str:
        """As in a log: ``web 2.31 -> 2.45 (limit 0.1)``."""
        return f"{self.name} {self.before:.4g} -> {self.now:.4g} (limit {self.limit:g})"


def worse(before: Mapping[str, float], now: Mapping[str, float], limits: Mapping[str, float], default: float,
          sign: int) -> list[Worse]:
    """What has become worse than in the baseline by more than its limit.

    Args:
        before: The baseline, by name.
        now: Values now; what the baseline lacks is left out.
        limits: Of some names; ``default`` of all others.
        default: How far a value may become worse.
        sign: 1 where more is worse, as of a loss; -1 where less is, as of a score.

    >>> [str(one) for one in worse({"web": 2.0, "qa": 3.0}, {"web": 2.3, "qa": 2.5}, {}, 0.1, 1)]
    ['web 2 -> 2.3 (limit 0.1)']
    """
    found = [Worse(name, before[name], value, limits.get(name, default)) for name, value in now.items()
             if name in before]
    return [one for one in found if not sign * (one.now - one.before) <= one.limit]  # NaN is worse than anything


def stalled(values: Sequence[float], patience: int, gain: float) -> bool:
    """Whether the last ``patience`` values brought the least value down by less than ``gain``.

    >>> stalled([3.0, 2.5, 2.5, 2.499], patience=2, gain=0.01)
    True
    """
    if len(values) <= patience:
        return False
    best = min((value for value in values[:-patience] if not math.isnan(value)), default=math.inf)
    return not min(values[-patience:]) < best - gain
