"""Where data and blend do not meet: repeats, sources that nobody reads, weights that a run cannot keep. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lit_cpt.blends import MANY_EPOCHS
from lit_cpt.plan import PhasePlan, Plan

VISIBLE = 0.1  # of a weight: a share that is further off would change what a phase is
NOTICED = 0.005  # of a source: less that is not read is not told


@dataclass(frozen=True)
class Unused:
    """Prepared data that a run does not train on.

    Args:
        sources: Those in ``data.sources`` that no phase names.
        unread: Share of a source that the run never reaches, by name; of those that it reads at all.
    """

    sources: tuple[str, ...]
    unread: dict[str, float]


def unused(result: Plan, sources: Collection[str]) -> Unused:
    """What of ``sources``, the names in ``data.sources``, the run leaves aside."""
    named = {part.name for phase in result.phases for part in phase.sources}
    later = {part.name for phase in result.phases if phase.start is None for part in phase.sources}
    unread = {part.name: 1 - part.epochs for part in result.sources
              if part.epochs is not None and part.name not in later and NOTICED < 1 - part.epochs < 1}
    return Unused(tuple(sorted(set(sources) - named)), unread)


def shortfalls(result: Plan, sources: Collection[str], blocks: Mapping[str, int], sequence_length: int) -> list[str]:
    """What a user should think about before starting, a sentence each.

    Args:
        result: The plan.
        sources: The names in ``data.sources``; empty where none are given yet.
        blocks: Blocks of each source, where they are known.
        sequence_length: Tokens trained in a sequence.
    """
    named = dict.fromkeys(part.name for phase in result.phases for part in phase.sources)
    lacking = [name for name in named if sources and name not in sources]
    empty = [f"{name} has not one block of {sequence_length + 1:,} tokens, a sequence and its last target: fit will "
             "refuse it; prepare more text or lower data.sequence_length" for name in named if blocks.get(name) == 0]
    absent = [f"not in data.sources, and so refused by fit: {', '.join(lacking)}"] if lacking else []
    return [*absent, *empty, *(line for phase in result.phases if phase.start for line in missed(phase)),
            *repeated(result)]


def missed(phase: PhasePlan) -> list[str]:
    """Sources of which ``phase`` takes another share than their weight, for it is too short."""
    drawn = sum(part.samples for part in phase.sources)
    told = []
    for part in phase.sources:
        share = part.samples / drawn
        if part.samples == 0:
            told.append(f"phase {phase.name} draws nothing from {part.name}: {drawn:,} sequences are too few for a "
                        f"weight of {part.weight:g}")
        elif abs(share - part.weight) > VISIBLE * part.weight:
            told.append(f"phase {phase.name} takes {share:.3g} of {part.name} and not {part.weight:g}: "
                        f"{part.samples:,} of {drawn:,} sequences come no closer")
    return told


def repeated(result: Plan) -> list[str]:
    """Sources that are gone through too often."""
    return [f"{source.name} is seen {source.epochs:.1f} times; repeats beyond {MANY_EPOCHS:g} are worth little "
            "(arXiv 2305.16264)" for source in result.sources if source.epochs and source.epochs > MANY_EPOCHS]


def unused_lines(found: Unused) -> list[str]:
    """What is left aside, for a terminal."""
    unread = ", ".join(f"{share:.0%} of {name}" for name, share in sorted(
        found.unread.items(), key=lambda item: -item[1]))
    return [*([f"in no phase, so never trained on: {', '.join(found.sources)}"] if found.sources else []),
            *([f"never read: {unread}"] if unread else [])]
