"""What is known of a source before any blend: its size, its quality, what the model is weak at. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lit_cpt.units import parse_count

TIERS = {"low": 0.5, "medium": 1.0, "high": 2.0}  # a tier is a coarse word: a step up doubles, and medium is neutral
KINDS = ("text", "qa")


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source. `check_sources` tells, by its name, whether that is enough.

    Args:
        tokens: Its size ("12B").
        share: Its share of the pretraining mix, before scaling to 1; for a source that pretraining did not have, the
            share it should have had. Given for every text source or for none: the mix then follows the sizes.
        tier: Quality: low, medium or high.
        kind: ``text``, or ``qa`` for question-answer data, which has no share of pretraining.
        score: The base model's in the source's domain, such as 0.31.
        loss: Or its loss there, in nats a token.
        target: The score or loss that it should have.
        folder: A prepared source, whose size is taken where ``tokens`` is not given.
        family: Whose score in the evaluation is taken as ``score``.
    """

    tokens: int | str | None = None
    share: float | None = None
    tier: str = "medium"
    kind: str = "text"
    score: float | None = None
    loss: float | None = None
    target: float | None = None
    folder: str | None = None
    family: str | None = None

    @property
    def weakness(self) -> float:
        """What is missing to the target, in [0, 1]: 1 - score / target, or the same of the mean probability e^-loss.

        >>> SourceFacts(score=0.3, target=0.6).weakness
        0.5
        """
        if self.target is None:
            return 0.0
        if self.score is not None:
            return max(0.0, 1.0 - self.score / self.target)
        return 1.0 - math.exp(min(0.0, self.target - (self.loss or 0.0)))

    @property
    def size(self) -> float:
        """Tokens; infinite where nobody knows."""
        return math.inf if self.tokens is None else parse_count(self.tokens, "tokens")


def check_sources(sources: Mapping[str, SourceFacts]) -> None:
    """Refuse facts from which no blend follows.

    Raises:
        ValueError: With the name of the source at fault.
    """
    for name, one in sources.items():
        if wrong := fault(one):
            raise ValueError(f"source {name!r}: {wrong}")
    text = {name: one for name, one in sources.items() if one.kind == "text"}
    if not text:
        raise ValueError("there is no source of kind text: give at least one, such as web: {tokens: 12B}.")
    bare = [name for name, one in text.items() if one.share is None]
    if bare and len(bare) < len(text):
        raise ValueError(f"source {bare[0]!r} has no share, but others have: give `share` for every text source, or "
                         "for none; the mix then follows the sizes.")
    unsized = [name for name, one in sources.items() if one.tokens is None and (bare or one.kind == "qa")]
    if unsized:
        raise ValueError(f"source {unsized[0]!r} has no size: give tokens (such as 12B) or the folder that `lit-cpt "
                         "prepare` wrote" + (", or a `share` for every text source." if bare else "."))


def fault(one: SourceFacts) -> str | None:
    """What is wrong with a source's facts, and how to mend it."""
    for key, given, known in (("tier", one.tier, tuple(TIERS)), ("kind", one.kind, KINDS)):
        if given not in known:
            return f"{key}={given!r} is not known; choose {', '.join(known)}."
    try:
        empty = one.size == 0
    except ValueError as error:
        return str(error)
    if empty:
        return f"tokens={one.tokens!r}: a source holds at least one token that can be trained."
    if one.share is not None and one.kind == "qa":
        return f"share={one.share}, but kind qa has no share of pretraining: leave one of them out."
    if one.share is not None and not 0 < one.share < math.inf:
        return (f"share={one.share} must be positive. For a source that pretraining did not have, give the share that "
                "it should have had; to leave the source out, take it off the list.")
    return fault_of_weakness(one)


def fault_of_weakness(one: SourceFacts) -> str | None:
    """What is wrong with a source's score, loss and target, and how to mend it."""
    if one.score is not None and one.loss is not None:
        return f"score={one.score} and loss={one.loss}: give one of them with its target."
    value, kind = (one.score, "score") if one.loss is None else (one.loss, "loss")
    if value is None and one.target is None:
        return None
    if value is None or one.target is None:
        there = f"{kind}={value}" if one.target is None else f"target={one.target}"
        return f"{there} alone tells no weakness: give both score and target, or both loss and target."
    if not (0 <= value < math.inf and 0 < one.target < math.inf):
        return f"{kind}={value} with target={one.target}: give a {kind} of at least 0 and a positive target."
    return None
