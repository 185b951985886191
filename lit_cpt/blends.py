"""Which source a sample comes from: pure functions of (seed, position, history).

Two ideas, all integer arithmetic, so that a stream is the same on every platform and at any world size (the
third, the order of a source's blocks, is in `orders`):

* A `Blend` gives each source a share.
* A `BlendHistory` maps the position of a sample in the global stream to a source, through a golden-ratio
  (Weyl) sequence: realised counts stay within a few samples of share x n for ever, where independent
  draws would be sqrt(n) off. A switch of blend adds a leg to the history at a position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RING = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the rotation whose multiples are spread most evenly
MANY_EPOCHS = 4.0  # repeats beyond four are worth ever less: Muennighoff et al., arXiv 2305.16264
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Blend:
    """Shares of the training tokens by source name.

    Args:
        weights: Source name to share; each at least 0, together 1. A share of 0 names a source that rests.

    Raises:
        ValueError: No source, a weight below 0 or not finite, or weights that do not sum to 1.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        check_weights(self.weights)
        total = math.fsum(self.weights.values())
        if abs(total - 1.0) > 1e-6:
            listed = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
            raise ValueError(f"blend weights sum to {total:.4f} ({listed}); they must sum to 1. "
                             "To rescale them, write `Blend.normalized({...})`.")

    @classmethod
    def normalized(cls, weights: Mapping[str, float]) -> Blend:
        """The blend of these weights, rescaled to sum to 1.

        >>> Blend.normalized({"web": 3, "code": 1}).weights
        {'web': 0.75, 'code': 0.25}
        """
        check_weights(weights)
        total = math.fsum(weights.values())
        return cls({name: weight / total for name, weight in weights.items()})


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights that give no source a share, by the name of the source at fault."""
    if not weights:
        raise ValueError("a blend needs at least one source: write weights such as {web: 0.7, code: 0.3}.")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
            raise ValueError(f"weight of source {name!r} is {weight!r}: give a number of at least 0.")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight of source {name!r} is {weight}: a weight is finite and at least 0.")
    if not any(weights.values()):
        raise ValueError(f"all weights are 0 ({', '.join(weights)}): at least one source needs a positive weight.")


def mixed(*keys: int) -> int:
    """One 64-bit number from several integers (SplitMix64 chained): equal keys, equal number, anywhere."""
    state = 0
    for key in keys:
        state = (state ^ (key % RING)) + GOLDEN & RING - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & RING - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & RING - 1
        state ^= state >> 31
    return state


def shuffled(count: int, *keys: int) -> Integers:
    """A permutation of ``range(count)`` decided by ``keys`` alone (numpy's generators may change by version)."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(mixed(*keys))
        state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.argsort(state, kind="stable").astype(np.int64)


def name_key(name: str) -> int:
    """A source's key for seeding: of its name, so that adding or reordering sources moves no other's blocks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def floor_sum(count: int, modulus: int, slope: int, offset: int) -> int:
    """Sum over i < ``count`` of floor((slope * i + offset) / modulus), exactly, in O(log) steps."""
    total = 0
    while count > 0:
        total += (slope // modulus) * (count * (count - 1) // 2) + (offset // modulus) * count
        slope, offset = slope % modulus, offset % modulus
        reach = slope * count + offset
        if reach < modulus:
            break
        count, offset, modulus, slope = reach // modulus, reach % modulus, slope, modulus
    return total


def rotations_below(count: int, start: int, bound: int, turn: int = GOLDEN) -> int:
    """How many of the first ``count`` points ``(start + i * turn) mod 2^64`` lie below ``bound``."""
    if bound <= 0 or count <= 0:
        return 0
    if bound >= RING:
        return count
    wraps = floor_sum(count, RING, turn, start + RING - bound)
    return floor_sum(count, RING, turn, start) - wraps + count


def numbered(keys: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Number the occurrences of each key, going on from ``counts``.

    Args:
        keys: Shape (samples,), each below ``len(counts)``.
        counts: Occurrences of each key so far, shape (keys,).

    Returns:
        The number of each sample among those of its key, shape (samples,), and the counts after them.

    >>> [part.tolist() for part in numbered(np.array([0, 1, 0]), np.array([5, 0]))]
    [[5, 0, 6], [7, 1]]
    """
    order = np.argsort(keys, kind="stable")
    found = np.bincount(keys, minlength=len(counts))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.arange(len(keys)) - np.repeat(np.cumsum(found) - found, found)
    return counts[keys] + numbers, counts + found


@dataclass(frozen=True)
class Leg:
    """A stretch of the stream under one blend, from sample ``start`` until the next leg."""

    start: int
    weights: tuple[float, ...]


class BlendHistory:
    """Position of a sample in the global stream -> source, through all changes of blend.

    Args:
        sources: Names of all sources that any blend may draw on; kept sorted.
        weights: First blend, by name; sources left out rest.
        seed: Seed of the stream.
    """

    def __init__(self, sources: Sequence[str], weights: Mapping[str, float], seed: int) -> None:
        self.sources = tuple(sorted(sources))
        self.seed = seed
        self.legs = [Leg(0, self.ordered(weights))]

    def ordered(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        """Weights in the order of `sources`.

        Raises:
            ValueError: A weight for a source that is not there, or weights that are no blend.
        """
        check_weights(weights)
        unknown = sorted(set(weights) - set(self.sources))
        if unknown:
            raise ValueError(f"weights name {', '.join(map(repr, unknown))}, which no source is called; "
                             f"the sources are {', '.join(map(repr, self.sources))}.")
        return tuple(float(weights.get(name, 0.0)) for name in self.sources)

    def plan(self, position: int, future: Sequence[tuple[int, Mapping[str, float]]]) -> bool:
        """Replace what was planned from ``position`` on; the past stays as it was.

        Args:
            position: Samples handed out: the first that a change may touch.
            future: Start and blend of every leg to come, in order, none before ``position``.

        Returns:
            False if just this was planned already, so that nothing changes; True otherwise.

        Raises:
            ValueError: A start in the past or out of order, or weights that are no blend of these sources.
        """
        starts = [start for start, _ in future]
        if starts != sorted(set(starts)) or any(start < position for start in starts):
            raise ValueError(f"planned starts {starts} must rise, from position {position} on: "
                             "samples before it were handed out.")
        past = [leg for leg in self.legs if leg.start < position] or self.legs[:1]
        ahead = [Leg(start, self.ordered(weights)) for start, weights in future]
        legs = [*(leg for leg in past if leg.start not in starts), *ahead]
        if legs == self.legs:
            return False
        self.legs = legs
        return True

    def ahead(self, position: int) -> list[tuple[int, dict[str, float]]]:
        """Start and blend of every leg that begins after sample ``position``."""
        return [(leg.start, dict(zip(self.sources, leg.weights, strict=True)))
                for leg in self.legs if leg.start > position]

    def weights_at(self, position: int) -> dict[str, float]:
        """The blend that sample ``position`` is drawn from."""
        leg = [leg for leg in self.legs if leg.start <= position][-1]
        return dict(zip(self.sources, leg.weights, strict=True))

    def spans(self, start: int, stop: int) -> list[tuple[Leg, int, int]]:
        """The legs that samples ``start`` to ``stop`` touch, each with its part of them."""
        ends = [leg.start for leg in self.legs[1:]] + [RING]
        cut = [(leg, max(start, leg.start), min(stop, end)) for leg, end in zip(self.legs, ends, strict=True)]
        return [(leg, low, high) for leg, low, high in cut if low < high]

    def offset(self, leg: Leg) -> int:
        """Where the leg's rotation stands at sample 0."""
        return mixed(self.seed, leg.start)

    def edges(self, leg: Leg) -> list[int]:
        """Cumulative shares on the ring, shape (sources + 1,): source s owns [edges[s], edges[s + 1])."""
        total = math.fsum(leg.weights)
        cumulative = [math.fsum(leg.weights[:i]) / total for i in range(len(leg.weights))]
        edges = [min(int(share * 2.0**64), RING) for share in cumulative] + [RING]
        last = max(i for i, weight in enumerate(leg.weights) if weight > 0)
        return edges[: last + 1] + [RING] * (len(edges) - last - 1)  # rounding must not feed a resting source

    def choose(self, start: int, stop: int) -> Integers:
        """Sources of samples ``start`` to ``stop``, as indices into `sources`, shape (stop - start,)."""
        chosen = np.empty(stop - start, np.int64)
        for leg, low, high in self.spans(start, stop):
            inner = [edge for edge in self.edges(leg)[1:-1] if edge < RING]
            with np.errstate(over="ignore"):
                points = np.arange(low, high, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(self.offset(leg))
            chosen[low - start : high - start] = np.searchsorted(np.array(inner, np.uint64), points, side="right")
        return chosen

    def counts(self, position: int) -> Integers:
        """Draws from each source among the samples before ``position``, shape (sources,): closed form, exact."""
        totals = [0] * len(self.sources)
        for leg, low, high in self.spans(0, position):
            begin = (low * GOLDEN + self.offset(leg)) % RING
            below = [rotations_below(high - low, begin, edge) for edge in self.edges(leg)]
            totals = [total + below[i + 1] - below[i] for i, total in enumerate(totals)]
        return np.array(totals, np.int64)

    def draws(self, start: int, stop: int, counts: Integers) -> tuple[Integers, Integers]:
        """Sources of samples ``start`` to ``stop``, and which draw from its source each one is.

        Args:
            start: First sample.
            stop: One past the last.
            counts: `counts` at ``start``, shape (sources,).

        Returns:
            Source indices and draw numbers, both of shape (stop - start,).
        """
        chosen = self.choose(start, stop)
        return chosen, numbered(chosen, counts)[0]

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` makes the same history."""
        return {"seed": self.seed, "sources": list(self.sources),
                "legs": [{"start": leg.start, "weights": list(leg.weights)} for leg in self.legs]}

    def restore(self, state: dict[str, Any], position: int = RING) -> None:
        """Take over the legs of a saved history; a source it did not know has rested until now.

        Args:
            state: What `state` returned.
            position: Samples handed out: a leg that begins later and draws on a source that is not here was a plan, and
                is given up.

        Raises:
            ValueError: It drew on a source that is not here.
        """
        legs = [(leg["start"], dict(zip(state["sources"], leg["weights"], strict=True))) for leg in state["legs"]]
        here = set(self.sources)
        legs = [(start, weights) for start, weights in legs
                if start <= position or here.issuperset(name for name, weight in weights.items() if weight)]
        drawn = {name for _, weights in legs for name, weight in weights.items() if weight}
        if gone := sorted(drawn - here):
            raise ValueError(f"the saved stream draws on source {gone[0]!r}, which is not among this one's sources "
                             f"({', '.join(map(repr, self.sources))}): add it, or start a new run.")
        self.legs = [Leg(start, tuple(weights.get(name, 0.0) for name in self.sources)) for start, weights in legs]
