"""What a few paired differences allow to say: Student's t, and Holm's correction for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy import stats

from lit_cpt.intervals import LEVEL, Interval


def t_interval(differences: Sequence[float]) -> Interval | None:
    """The mean with its 95 % interval; None for fewer than two.

    >>> found = t_interval([1.0, 2.0, 3.0])
    >>> round(found.low, 3), round(found.high, 3)
    (-0.484, 4.484)
    """
    if len(differences) < 2:
        return None
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def t_probability(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a mean of zero; None for fewer than two.

    >>> round(t_probability([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if len(differences) < 2:
        return None
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979): that one of all is below 0.05 by chance is 5 % likely at most.

    Args:
        probabilities: Of a family of comparisons; None where there is none, which counts for nothing.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(probabilities) if p is not None)
    corrected: list[float | None] = [None] * len(probabilities)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected
