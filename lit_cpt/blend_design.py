"""Weights of the general and the QA blend from sizes, quality and weak areas: a rule of four lines. Torch-free.

The paper (arXiv 2407.07263) says in which direction its two blends go, not by how much: the general blend stays near
the pretraining mix and gives more to good sources and weak areas, the QA blend adds question-answer data and moves
weak areas further up. The numbers here are ours and are not measured; each stands with its reason in `Emphasis`,
`Rule` and `TIERS`. For a phase of blend weights w, a source s with share p of pretraining (q of the QA data)::

    tilt(x, s) = x(s) * tier(s) * (1 + b * weakness(s)), scaled to sum to 1
    w(s)       = replay * p(s) + (1 - replay - qa_share) * tilt(p, s)      for text
    w(s)       = qa_share * tilt(q, s)                                     for question-answer data
    a source that both phases together would repeat more than max_epochs times is held there; what it leaves goes to
    the sources that are not held, in proportion to their weights (QA data first among itself), until none is over
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_cpt.blends import MANY_EPOCHS
from lit_cpt.source_facts import TIERS, SourceFacts, check_sources
from lit_cpt.units import format_count

UNITS = 10_000  # weights have four digits
Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Emphasis:
    """How far the blend of a phase goes from the pretraining mix.

    Args:
        replay: Share of the phase's tokens that is the pretraining mix as it was, in [0, 1]. No text source falls below
            this part of its share of pretraining, but where it would repeat too often.
        weakness: What the weakest possible source gains: its factor is 1 + weakness; at least 0.
        qa_share: Share of the phase's tokens for question-answer data, in [0, 1 - replay].
    """

    replay: float = 0.5
    weakness: float = 1.0
    qa_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.replay <= 1.0:
            raise ValueError(f"replay={self.replay} must lie in [0, 1], such as 0.5.")
        if not 0.0 <= self.weakness < math.inf:
            raise ValueError(f"weakness={self.weakness} must be a finite factor of at least 0, such as 1.")
        if not (0.0 <= self.qa_share < 1.0 and self.replay + self.qa_share <= 1.0):
            raise ValueError(f"qa_share={self.qa_share} must lie in [0, 1) and leave room for replay={self.replay}: "
                             "together at most 1.")


@dataclass(frozen=True)
class Rule:
    """The settings of both blends.

    Args:
        general: Half of the phase is the pretraining mix, so that this blend stays near it; a source of weakness 1
            counts double, as much as one of the next better tier; no question-answer data.
        qa: A quarter is the pretraining mix, the replay that arXiv 2403.08763 took for a change of language; a source
            of weakness 1 counts fourfold, two tiers up; 15 % question-answer data, so that text stays most of it.
        max_epochs: Most passes over a source, both phases together. Up to four are worth nearly as much as fresh tokens
            (arXiv 2305.16264).
    """

    general: Emphasis = Emphasis()
    qa: Emphasis = Emphasis(replay=0.25, weakness=3.0, qa_share=0.15)
    max_epochs: float = MANY_EPOCHS

    def __post_init__(self) -> None:
        if not self.max_epochs > 0:
            raise ValueError(f"max_epochs={self.max_epochs} must be positive, such as {MANY_EPOCHS:g}.")


@dataclass(frozen=True)
class Suggested:
    """A source's weight in a blend, and why.

    Args:
        weight: To four digits; those of a blend sum to 1.
        kind: Of the source, text or qa.
        share: Of the pretraining mix; of the question-answer data for a source of kind qa.
        tier: Its quality; the factor is in `TIERS`.
        weak: Factor for its weakness.
        asked: Weight before repeats were capped.
        epochs: Passes over it in this phase; None where its size is not known.
        capped: Whether it is held to ``max_epochs``, both phases together.
    """

    weight: float
    kind: str
    share: float
    tier: str
    weak: float
    asked: float
    epochs: float | None
    capped: bool


def suggest(sources: Mapping[str, SourceFacts], tokens: Sequence[float], rule: Rule) -> list[dict[str, Suggested]]:
    """The general and the QA blend.

    Args:
        sources: What is known of each.
        tokens: That the two phases train, shape (2,).
        rule: The settings.

    Returns:
        For each phase its sources and their weights, in the order given; sources without any are left out.

    Raises:
        ValueError: Something is missing or out of range, or the sources are too small for the tokens.
    """
    if not min(tokens) > 0:
        raise ValueError(f"a phase trains {min(tokens):g} tokens: give a token_horizon such as 300B.")
    check_sources(sources)
    answers = max(rule.general.qa_share, rule.qa.qa_share)
    if answers and all(one.kind == "text" for one in sources.values()):
        raise ValueError(f"no source is of kind qa, but qa_share={answers} of a blend is for them: mark one with "
                         "`kind: qa`, or give --qa.qa_share 0 for two blends of text alone.")
    names = sorted(sources)  # sums of floats depend on their order, and no weight shall
    facts = [sources[name] for name in names]
    is_qa = np.array([one.kind == "qa" for one in facts])
    share, size = shares(facts, is_qa), np.array([one.size for one in facts])
    quality = np.array([TIERS[one.tier] for one in facts])
    weak = np.array([[1 + emphasis.weakness * one.weakness for one in facts] for emphasis in (rule.general, rule.qa)])
    asked = np.array([asked_for(emphasis, share, quality * factor, is_qa)
                      for emphasis, factor in zip((rule.general, rule.qa), weak, strict=True)])
    horizon, room = np.array(tokens), rule.max_epochs * size
    given = within(asked * horizon[:, None], room, is_qa)
    if (short := horizon.sum() - given.sum()) > 1e-9 * horizon.sum():
        raise ValueError(too_small(size, is_qa, short, asked @ is_qa @ horizon, float(horizon.sum()), rule))
    capped = given.sum(0) >= room * (1 - 1e-9)
    weights = rounded(given / horizon[:, None], (room - given.sum(0)) / horizon.sum())
    epochs = weights * horizon[:, None] / size

    def reasoned(phase: int, s: int) -> Suggested:
        passes = float(epochs[phase, s]) if math.isfinite(size[s]) else None
        return Suggested(float(weights[phase, s]), facts[s].kind, float(share[s]), facts[s].tier,
                         float(weak[phase, s]), float(asked[phase, s]), passes, bool(capped[s]))

    place = {name: s for s, name in enumerate(names)}
    return [{name: reasoned(phase, place[name]) for name in sources if asked[phase, place[name]]}
            for phase in range(len(horizon))]


def shares(facts: Sequence[SourceFacts], is_qa: Mask) -> Numbers:
    """Of each text source its share of pretraining, of each QA source its share of the QA data, shape (sources,)."""
    basis = np.array([one.size if one.share is None else one.share for one in facts], np.float64)
    return scaled(basis * ~is_qa) + scaled(basis * is_qa)


def scaled(numbers: Numbers) -> Numbers:
    """``numbers`` over their sum; all 0 where they are."""
    total = float(numbers.sum())
    return numbers * (1 / total) if total else numbers


def asked_for(emphasis: Emphasis, share: Numbers, factor: Numbers, is_qa: Mask) -> Numbers:
    """The weights of a phase before repeats are capped, shape (sources,): see the rule above."""
    text, asked = share * ~is_qa, share * factor
    return (emphasis.replay * text + (1 - emphasis.replay - emphasis.qa_share) * scaled(asked * ~is_qa)
            + emphasis.qa_share * scaled(asked * is_qa))


def within(demand: Numbers, room: Numbers, is_qa: Mask) -> Numbers:
    """``demand`` kept within ``room``: QA data first, and text makes up for what it cannot give.

    Args:
        demand: Tokens of each source in each phase, shape (phases, sources).
        room: Most tokens of each source, shape (sources,).
        is_qa: Which are question-answer data, shape (sources,).

    Returns:
        Tokens, shape (phases, sources); a phase's sum is less than its demand only where all text is at its room.
    """
    answers = filled(demand * is_qa, (demand * is_qa).sum(1), room)
    return answers + filled(demand * ~is_qa, demand.sum(1) - answers.sum(1), room)


def filled(demand: Numbers, totals: Numbers, room: Numbers) -> Numbers:
    """``demand`` scaled to sum to ``totals`` in each phase with no source over its room (water-filling).

    A source that is over is held at its room, at its proportion of phases; the others are scaled up to fill each
    phase, until none is over. This fails to fill only where the room of all together is too small.
    """
    given: Numbers = demand.copy()
    free = np.ones(len(room), bool)
    while True:
        left, asked = totals - given[:, ~free].sum(1), given[:, free].sum(1)
        given[:, free] *= np.divide(left, asked, out=np.ones_like(left), where=asked > 0)[:, None]
        over = free & (given.sum(0) > room * (1 + 1e-12))
        if not over.any():
            return given
        given[:, over] *= room[over] / given[:, over].sum(0)
        free &= ~over


def rounded(weights: Numbers, spare: Numbers) -> Numbers:
    """Weights of four digits that sum to 1 in each phase; what rounding down leaves goes where no cap is near.

    Args:
        weights: Shape (phases, sources).
        spare: Room that each source has left, over the tokens of the run, shape (sources,).
    """
    units = np.floor(weights * UNITS + 1e-6)
    for row, exact in zip(units, weights * UNITS, strict=True):
        short = round(UNITS - row.sum())
        roomy = (exact > 0) & (spare * UNITS >= 2 * len(spare))
        takers = roomy if roomy.any() else (exact > 0) & (spare == spare[exact > 0].max())
        order = np.argsort(np.where(takers, row - exact, np.inf), kind="stable")[: takers.sum()]
        np.add.at(row, np.resize(order, short), 1)
    return units / UNITS


def too_small(size: Numbers, is_qa: Mask, short: float, answers: float, horizon: float, rule: Rule) -> str:
    """What to do where the sources cannot fill the horizon (``answers``: QA tokens asked for)."""
    text, questions = size[~is_qa].sum(), size[is_qa].sum()
    asked = answers / horizon
    longest = min(rule.max_epochs * text / (1 - asked), rule.max_epochs * (text + questions))
    epochs = max((horizon - answers) / text, horizon / (text + questions))
    digit = 10.0 ** max(0, math.floor(math.log10(longest)) - 2)
    return (f"{format_count(horizon)} tokens are {format_count(short)} more than the sources give in "
            f"{rule.max_epochs:g} epochs: their text has {format_count(text)} tokens. Lower token_horizon to "
            f"{format_count(longest // digit * digit)}, raise max_epochs to {math.ceil(epochs * 10) / 10:g}, or add "
            "text.")
