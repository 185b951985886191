"""When a run is evaluated: at which tokens, steps, fractions and turns. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_cpt.units import parse_count

TURNS = ("start", "phase", "end")


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Args:
        step: Optimizer steps made.
        tokens: Tokens seen; None where nobody counts them.
        fraction: Share of the run that is behind it, in [0, 1]; None where its end is not known.
    """

    step: int
    tokens: int | None = None
    fraction: float | None = None

    @property
    def one_step_back(self) -> Position:
        """Where it stood a step ago, every step being as long as the others."""
        return self.at(max(0, self.step - 1))

    def at(self, step: int) -> Position:
        """Where it stands after ``step`` steps, every step being as long as those before."""
        pace = step / self.step if self.step else 0.0
        return Position(step, None if self.tokens is None else round(self.tokens * pace),
                        None if self.fraction is None else self.fraction * pace)


@dataclass(frozen=True)
class Occasions:
    """When to evaluate; several may be given, and one evaluation serves all that fall on a step.

    Args:
        every_tokens: Each time this many more tokens have been seen ("10B").
        every_steps: Each time this many more optimizer steps have been made.
        fractions: Shares of the run, in (0, 1].
        turns: ``start`` (the baseline, before the first step), ``phase`` (where a phase ends and the next begins),
            ``end``.
        full: On which of ``start``, ``phase``, ``end``, ``fraction`` all documents are asked, instead of the suite's
            sample.

    Raises:
        ValueError: A number out of range, or a word that is none of these.
    """

    every_tokens: int | str | None = None
    every_steps: int | None = None
    fractions: tuple[float, ...] = ()
    turns: tuple[str, ...] = TURNS
    full: tuple[str, ...] = TURNS

    def __post_init__(self) -> None:
        if self.every_tokens is not None:
            object.__setattr__(self, "every_tokens", parse_count(self.every_tokens, "every_tokens"))
        for name in ("every_tokens", "every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more; leave it out for no such evaluation.")
        for name, known in (("turns", TURNS), ("full", (*TURNS, "fraction"))):
            words = getattr(self, name)
            object.__setattr__(self, name, (words,) if isinstance(words, str) else tuple(words))
            if unknown := [word for word in getattr(self, name) if word not in known]:
                raise ValueError(f"{name}={list(getattr(self, name))} has {', '.join(unknown)}; choose from "
                                 f"{', '.join(known)}.")
        object.__setattr__(self, "fractions", tuple(self.fractions))
        if wrong := [share for share in self.fractions if not 0 < share <= 1]:
            raise ValueError(f"fractions={list(self.fractions)}: {wrong[0]} does not lie in (0, 1], such as 0.5.")

    def lacks(self, position: Position) -> str | None:
        """What these occasions need and a run does not tell, in half a sentence; None if nothing."""
        if self.every_tokens is not None and position.tokens is None:
            return "every_tokens needs a module with `tokens_seen`; give every_steps"
        if self.fractions and position.fraction is None:
            return "fractions need a run whose end is known; give the Trainer max_steps, or every_steps here"
        return None

    def reasons(self, before: Position, now: Position) -> tuple[str, ...]:
        """Why to evaluate ``now``, having stood at ``before``: some of ``tokens``, ``steps``, ``fraction``.

        >>> Occasions(every_steps=100).reasons(Position(199), Position(200))
        ('steps',)
        """
        found = []
        for name, every, seen, earlier in (("tokens", self.every_tokens, now.tokens, before.tokens),
                                           ("steps", self.every_steps, now.step, before.step)):
            if every is not None and seen is not None and seen // int(every) > (earlier or 0) // int(every):
                found.append(name)
        if any((before.fraction or 0.0) < reached <= (now.fraction or 0.0)
               for reached in map(rounded_down, self.fractions)):
            found.append("fraction")
        return tuple(found)

    def next_step(self, now: Position) -> int | None:
        """The first step after ``now`` with `reasons`, if steps go on as they did; None if none can be told.

        >>> Occasions(every_steps=100, every_tokens="1M").next_step(Position(30, 600_000))
        50
        """
        near: set[int] = set()
        for every, seen in ((self.every_steps, now.step), (self.every_tokens, now.tokens)):
            if every is not None and seen:
                near.add(math.ceil((seen // int(every) + 1) * int(every) * now.step / seen))
        if now.fraction:
            near |= {math.ceil(share * now.step / now.fraction) for share in self.fractions}
        found = {step for one in near for step in (one - 1, one, one + 1)
                 if step > now.step and self.reasons(now.at(step - 1), now.at(step))}
        return min(found, default=None)

    def takes_all(self, reasons: tuple[str, ...]) -> bool:
        """Whether all documents are asked for one of these reasons."""
        return not set(reasons).isdisjoint(self.full)


def rounded_down(share: float) -> float:
    """A share that a run's own rounding does not miss."""
    return math.nextafter(share, 0.0) - 1e-12
