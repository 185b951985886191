"""End loss against trained tokens: a power law for each replicate, and what it says of a longer run.

The law has no floor: near the entropy of a text, losses bend away from it, and `Law.misfit` grows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lit_cpt.intervals import Interval
from lit_cpt.lab.grid import Labels, spelled
from lit_cpt.lab.treatments import mean_of

FEWEST = 3  # horizons of a fit; a line goes through any two


@dataclass(frozen=True)
class Law:
    """``log(loss) = a + b log(tokens)``, natural logarithms.

    Args:
        a: Logarithm of the loss at one token.
        b: Slope; below 0 where more tokens help.
        misfit: Largest distance of a fitted point from the line, in ``log(loss)``: about a share of the loss.
    """

    a: float
    b: float
    misfit: float

    def loss(self, tokens: float) -> float:
        """Loss in nats a token after ``tokens``."""
        return float(np.exp(self.a + self.b * np.log(tokens)))


def fit_law(tokens: Sequence[float], losses: Sequence[float]) -> Law:
    """Least squares in logarithms.

    Args:
        tokens: Trained, positive, at least 3 different ones.
        losses: End loss after each, positive.

    Raises:
        ValueError: Fewer than 3 horizons.
    """
    if len(set(tokens)) < FEWEST:
        raise ValueError(f"tokens={list(tokens)}: two points are no fit; give at least {FEWEST} horizons.")
    x, y = np.log(tokens), np.log(losses)
    away = x - x.mean()
    b = float(away @ y / (away @ away))
    return Law(float(y.mean() - b * x.mean()), b, float(np.abs(y - y.mean() - b * away).max()))


@dataclass(frozen=True)
class Trend:
    """The end losses of one treatment over its horizons.

    Args:
        tokens: Trained, ascending.
        losses: Block and end losses of each replicate that has one at every horizon.
    """

    tokens: tuple[int, ...]
    losses: tuple[tuple[str, tuple[float, ...]], ...]

    @cached_property
    def laws(self) -> list[tuple[str, Law]]:
        """Block and law of each replicate; none where there are too few horizons for a fit."""
        fitting = len(self.tokens) >= FEWEST
        return [(block, fit_law(self.tokens, losses)) for block, losses in self.losses if fitting]

    @property
    def further(self) -> int:
        """Tokens that are as many times the last horizon as that is the one before it."""
        return round(self.tokens[-1] ** 2 / self.tokens[-2])

    @property
    def slope(self) -> Interval:
        """Mean of b, with its interval over replicates."""
        return mean_of((block, law.b) for block, law in self.laws)

    @property
    def misfit(self) -> float:
        """The largest of all replicates."""
        return max(law.misfit for _, law in self.laws)

    def at(self, tokens: float) -> Interval:
        """Mean loss that the laws tell, with its interval over replicates."""
        return mean_of((block, law.loss(tokens)) for block, law in self.laws)

    @property
    def remark(self) -> str:
        """Why there is no fit, or no interval; else empty."""
        if not self.losses:
            return "no replicate has a loss at every horizon"
        if not self.laws:
            return "two points are no fit"
        return "one replicate: no interval" if len(self.laws) < 2 else ""


def ladders(labels: Mapping[str, Labels], tokens: Mapping[str, int]) -> dict[str, dict[int, str]]:
    """Treatments that are alike but for one axis along which the token horizon differs.

    Args:
        labels: Treatment to its labels.
        tokens: Treatment to its horizon.

    Returns:
        What they have in common (the axis where that is nothing) to horizon to treatment, ascending.
    """
    found: dict[str, dict[int, str]] = {}
    for axis in dict.fromkeys(axis for own in labels.values() for axis in own):
        alike: dict[str, list[str]] = defaultdict(list)
        for treatment, own in labels.items():
            if treatment in tokens:
                alike[spelled({name: label for name, label in own.items() if name != axis}) or axis].append(treatment)
        for name, members in alike.items():
            rungs = {tokens[treatment]: treatment for treatment in members}
            if len(rungs) == len(members) > 1:
                found[name] = dict(sorted(rungs.items()))
    return found
