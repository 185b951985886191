"""Canonical shards: each node reads only its own part of every source, and the stream does not notice.

Sample g falls on shard g mod C, for a C that is fixed in the recipe, so a shard belongs to one rank whatever
the number of ranks. Each epoch of a source is cut into C stretches exactly as long as the numbers of draws that
the shards will make in it (a closed form of the blend history), so every block is read once per epoch. Where
the blend changes in the middle of an epoch, what is left of the stretches is cut again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lit_cpt.blends import GOLDEN, RING, BlendHistory, rotations_below

SMALL = 64  # a source with fewer blocks than this per shard is not cut: its epochs are over before cutting pays


@dataclass(frozen=True)
class Cut:
    """How the unread rest of an epoch is dealt to the shards from some sample on.

    Args:
        turns: Draws that each shard had made by then, over all epochs, shape (shards,).
        edges: Where each shard's stretch of the rest begins, and the end, shape (shards + 1,).
        read: Draws that each shard had made in the cut before, shape (shards,); empty in the first.
        rest: Where the unread part of each shard's stretch of the cut before begins in this rest, and the
            end, shape (shards + 1,); empty in the first.
    """

    turns: Sequence[int]
    edges: Sequence[int]
    read: Sequence[int] = ()
    rest: Sequence[int] = ()


def shards_of(blocks: int, shards: int) -> int:
    """Shards that a source of so many blocks is cut into: all, or one if it is small."""
    return shards if blocks >= SMALL * shards else 1


class ShardedDraws:
    """How the draws from one source fall on shards, and where in the source's epochs they read.

    Args:
        history: Blends of the stream; its legs are taken as they are now.
        source: Index of the source in the history.
        total: Blocks of the source.
        shards: C, at least 1.
    """

    def __init__(self, history: BlendHistory, source: int, total: int, shards: int) -> None:
        self.total, self.shards = total, shards
        self.starts = [leg.start for leg in history.legs]
        self.offsets = [history.offset(leg) for leg in history.legs]
        self.arcs = [(edges[source], edges[source + 1]) for edges in map(history.edges, history.legs)]
        self.begun: list[list[int]] = []  # counts per shard where each leg begins
        for leg, start in enumerate(self.starts):
            before = [0] * shards if leg == 0 else self.begun[leg - 1]
            self.begun.append([count + self.drawn(leg - 1, start, shard) if leg else 0
                               for shard, count in enumerate(before)])
        self.cuts: OrderedDict[int, list[Cut]] = OrderedDict()

    def drawn(self, leg: int, stop: int, shard: int | None = None) -> int:
        """Draws from ``leg``'s start to sample ``stop``, as if the leg went on so far; of one shard or of all."""
        start, (low, high) = self.starts[leg], self.arcs[leg]
        if shard is None:
            first, step, count = start, 1, stop - start
        else:
            first, step = start + (shard - start) % self.shards, self.shards
            count = -(-(stop - first) // step)
        begin, turn = (first * GOLDEN + self.offsets[leg]) % RING, step * GOLDEN % RING
        return rotations_below(count, begin, high, turn) - rotations_below(count, begin, low, turn)

    def turns(self, leg: int, stop: int) -> list[int]:
        """Draws of each shard before sample ``stop``, as if ``leg`` went on so far, shape (shards,)."""
        return [count + self.drawn(leg, stop, shard) for shard, count in enumerate(self.begun[leg])]

    def counts(self, position: int) -> list[int]:
        """Draws of each shard before sample ``position``, shape (shards,): closed form, exact."""
        return self.turns(bisect_right(self.starts, position) - 1, position)

    def sample_of(self, draw: int, leg: int) -> int:
        """The sample that is draw number ``draw`` of the source, as if ``leg`` went on for ever."""
        wanted, (low, high) = draw - sum(self.begun[leg]) + 1, self.arcs[leg]
        share, start = (high - low) / RING, self.starts[leg]
        reach = 8 * (int(1 / share) + 1)  # the sequence keeps within a few draws of its share
        below = max(start, start + int(wanted / share) - reach)
        while self.drawn(leg, below) >= wanted:
            below = max(start, below - reach)
        above = below + reach
        while self.drawn(leg, above) < wanted:
            below, above = above, above + 2 * reach
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if self.drawn(leg, middle) < wanted else (below, middle)
        return below

    def leg_of(self, draw: int) -> int:
        """The leg in which draw number ``draw`` is made."""
        return max(leg for leg, begun in enumerate(self.begun) if sum(begun) <= draw and self.open(leg))

    def open(self, leg: int) -> bool:
        """Whether the source has a share in ``leg``."""
        return self.arcs[leg][0] < self.arcs[leg][1]

    def cuts_of(self, epoch: int) -> list[Cut]:
        """All cuts of an epoch: one where it begins, one for each change of blend while it lasts."""
        if epoch not in self.cuts:
            self.cuts[epoch] = self.cut(epoch)
            if len(self.cuts) > 2:
                self.cuts.popitem(last=False)
        return self.cuts[epoch]

    def cut(self, epoch: int) -> list[Cut]:
        """Work out `cuts_of` an epoch. A cut knows nothing of later legs, so planning ahead changes nothing."""
        begin, end = epoch * self.total, (epoch + 1) * self.total
        leg = self.leg_of(begin)
        turns = self.turns(leg, self.sample_of(begin, leg))
        found = [Cut(turns, self.dealt(leg, end, turns))]
        for later in range(leg + 1, len(self.starts)):
            turns = self.begun[later]
            if sum(turns) >= end:
                break
            if self.open(later):
                last = found[-1]
                read = [now - before for now, before in zip(turns, last.turns, strict=True)]
                left = [high - low - done for low, high, done in zip(last.edges, last.edges[1:], read, strict=False)]
                rest = list(accumulate(left, initial=0))
                found.append(Cut(turns, self.dealt(later, end, turns), read, rest))
        return found

    def dealt(self, leg: int, end: int, turns: Sequence[int]) -> list[int]:
        """Edges of the shards' stretches, of the draws from ``turns`` on up to draw ``end`` if ``leg`` lasts."""
        after = self.turns(leg, self.sample_of(end, leg))
        return list(accumulate((stop - start for start, stop in zip(turns, after, strict=True)), initial=0))

    def place(self, epoch: int, shard: int, turn: int) -> tuple[int, int]:
        """Where a draw reads: the first cut's shard whose stretch it lies in, and the place in the epoch."""
        cuts = self.cuts_of(epoch)
        number = max(index for index, cut in enumerate(cuts) if cut.turns[shard] <= turn)
        local = turn - cuts[number].turns[shard]
        for cut in cuts[number:0:-1]:  # back through the cuts, each a stretch of the rest of the one before
            place = cut.edges[shard] + local
            shard = bisect_right(cut.rest, place) - 1
            local = cut.read[shard] + place - cut.rest[shard]
        return shard, cuts[0].edges[shard] + local

    def stretch(self, epoch: int, shard: int) -> tuple[int, int]:
        """The places of an epoch that its first cut deals to ``shard``."""
        edges = self.cuts_of(epoch)[0].edges
        return edges[shard], edges[shard + 1]

    def first_turn(self, epoch: int, shard: int) -> int:
        """The first turn of ``shard`` in an epoch."""
        return self.cuts_of(epoch)[0].turns[shard]

    def last_turn(self, epoch: int, shard: int) -> int:
        """One past the last turn of ``shard`` in an epoch, by its last cut."""
        last = self.cuts_of(epoch)[-1]
        return last.turns[shard] + last.edges[shard + 1] - last.edges[shard]
