"""What the arms of a grid share, and so what each has to train by itself: a tree, worked out before any training.

Two arms train the same up to the first optimizer step whose learning rate or phase differs, if nothing else does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tabulate import tabulate

from lit_cpt.recipe import Recipe
from lit_cpt.units import format_count, format_seconds


@dataclass(frozen=True)
class Course:
    """All that decides what an arm trains.

    Args:
        recipe: Its recipe.
        tokens_per_step: Tokens that an optimizer step trains.
        rest: Its config but for the recipe: arms share nothing unless all of it is equal.
    """

    recipe: Recipe
    tokens_per_step: int
    rest: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole arm."""
        return self.recipe.steps(self.tokens_per_step)

    @property
    def beginnings(self) -> list[tuple[int, str, Mapping[str, float]]]:
        """First step, name and blend of each phase that can be foretold."""
        return [(start, phase.name, phase.blend.weights) for start, phase in
                zip(self.recipe.foretold(self.tokens_per_step), self.recipe.phases, strict=False)]

    @property
    def foretold(self) -> int:
        """Steps of which it is known before the run what they train: a phase that waits for a metric may come soon."""
        known = self.beginnings
        return self.steps if len(known) == len(self.recipe.phases) else known[-1][0]


@dataclass(frozen=True)
class Leg:
    """What an arm trains by itself.

    Args:
        parent: The arm that it goes on from; None for one that begins anew.
        start: Optimizer steps that it takes over.
        steps: Optimizer steps of the whole arm.
        tokens_per_step: Tokens that a step trains.
    """

    parent: str | None
    start: int
    steps: int
    tokens_per_step: int

    @property
    def tokens(self) -> int:
        """Tokens that it trains."""
        return (self.steps - self.start) * self.tokens_per_step


Legs = dict[str, Leg]


def shared_steps(one: Course, other: Course) -> int:
    """Steps after which either arm can go on from the other's checkpoint.

    That is one less than they train alike: with the last of those the next phase has begun in the checkpoint.
    """
    mine, theirs = one.recipe, other.recipe
    if (one.rest, one.tokens_per_step, mine.optimizer) != (other.rest, other.tokens_per_step, theirs.optimizer):
        return 0
    limit = min(one.foretold, other.foretold)
    for first, second in zip_longest(one.beginnings, other.beginnings):
        if first != second:
            limit = min([limit, *(begun[0] for begun in (first, second) if begun is not None)])
            break
    return max(0, same_rates(one, other, limit) - 1)


def same_rates(one: Course, other: Course, limit: int) -> int:
    """Steps from the first on that are made with the same learning rate, at most ``limit``."""
    mine, theirs, tokens = one.recipe, other.recipe, one.tokens_per_step
    if mine.horizon == theirs.horizon and mine.describe()["curve"] == theirs.describe()["curve"]:
        return limit
    return next((step for step in range(limit) if mine.eta_at(step * tokens) != theirs.eta_at(step * tokens)), limit)


def plan_legs(courses: Mapping[str, Course]) -> Legs:
    """What each arm trains by itself, if it goes on from that earlier arm with which it shares most.

    No other tree costs less: the arms are words over their steps, and this is the trie of them.

    Args:
        courses: By the arm's name; a parent stands before its children.
    """
    legs: Legs = {}
    for name, course in courses.items():
        shared = {earlier: shared_steps(courses[earlier], course) for earlier in legs}
        parent = max(shared, key=shared.__getitem__, default=None)
        if parent is None or shared[parent] == 0:
            legs[name] = Leg(None, 0, course.steps, course.tokens_per_step)
        else:
            legs[name] = Leg(parent, shared[parent], course.steps, course.tokens_per_step)
    return legs


def branch_points(legs: Legs, arm: str) -> list[int]:
    """Steps after which other arms go on from ``arm``, ascending."""
    return sorted({leg.start for leg in legs.values() if leg.parent == arm})


def trees(legs: Legs) -> dict[str, list[str]]:
    """Each arm that begins anew, to itself and all that goes on from it, parents first."""
    roots: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for name, leg in legs.items():  # a parent stands before its children
        roots[name] = name if leg.parent is None else roots[leg.parent]
        found.setdefault(roots[name], []).append(name)
    return found


def dealt(legs: Legs, tasks: int) -> list[list[str]]:
    """The arms of each of so many tasks that know nothing of each other: whole trees, about as many tokens in each.

    The largest tree first, each to the task that has least; a task may stay empty.
    """
    grown = trees(legs)
    weights = {root: sum(legs[arm].tokens for arm in arms) for root, arms in grown.items()}
    hands: list[list[str]] = [[] for _ in range(tasks)]
    loads = [0] * tasks
    for root in sorted(weights, key=weights.__getitem__, reverse=True):
        least = loads.index(min(loads))
        hands[least] += grown[root]
        loads[least] += weights[root]
    return hands


def changed_fields(one: Recipe, other: Recipe) -> list[str]:
    """What of the recipe an arm changes that goes on from another, as ``--allow-change`` names it."""
    was, now = one.describe(), other.describe()
    return [f"recipe.{name}" for name in ("token_horizon", "curve", "phases") if was[name] != now[name]]


@dataclass(frozen=True)
class Budget:
    """What a grid costs.

    Args:
        separate: Tokens to train if every arm were a run of its own.
        shared: Tokens to train with shared trunks.
        again: Tokens of the repetitions that tell the noise floor, which are in neither.
        tokens_per_second: Of one arm; None where nobody tells it.
    """

    separate: int
    shared: int
    again: int = 0
    tokens_per_second: float | None = None

    @property
    def share(self) -> float:
        """Cost over that of separate runs."""
        return self.shared / self.separate

    def __str__(self) -> str:
        """In a line or two."""
        told = (f"{format_count(self.shared)} tokens to train instead of {format_count(self.separate)}: "
                f"{self.share:.3f} of separate runs")
        if self.again:
            told += f"; and {format_count(self.again)} to repeat arms with other seeds"
        if self.tokens_per_second is None:
            return told
        one, other = (format_seconds((tokens + self.again) / self.tokens_per_second)
                      for tokens in (self.shared, self.separate))
        return f"{told}\n{one} instead of {other} at {self.tokens_per_second:g} tokens a second, one arm at a time"

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {"tokens_separate": self.separate, "tokens_shared": self.shared, "share": self.share,
                "tokens_again": self.again}


def budget(legs: Legs, tokens_per_second: float | None = None, again: Collection[str] = ()) -> Budget:
    """What the arms cost, apart and with shared trunks.

    Args:
        legs: Of all arms.
        tokens_per_second: Of one arm.
        again: Those that only repeat another.
    """
    compared = [leg for arm, leg in legs.items() if arm not in again]
    return Budget(sum(leg.steps * leg.tokens_per_step for leg in compared), sum(leg.tokens for leg in compared),
                  sum(legs[arm].tokens for arm in again), tokens_per_second)


def render_legs(legs: Legs, cost: Budget) -> str:
    """The tree and its cost, for a terminal."""
    rows = [[name, f"{leg.steps:,}", leg.parent or "-", f"{leg.start:,}" if leg.parent else "-",
             format_count(leg.tokens)] for name, leg in legs.items()]
    head = ["arm", "steps", "goes on from", "at step", "trains"]
    table = tabulate(rows, head, disable_numparse=True, colalign=("left", "right", "left", "right", "right"))
    count = len(trees(legs))
    return f"{table}\n\n{cost}\n{count} of them begin anew: so many jobs of an array can share the work (--task)"
