"""Which block of a source a draw reads: a pure function of (seed, name, draw), found without walking there."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_cpt.blends import Integers, name_key, shuffled
from lit_cpt.shards import ShardedDraws


@dataclass(frozen=True)
class Window:
    """Neighbouring chunks of an epoch whose blocks are read shuffled together.

    Args:
        epoch: Of the source.
        shard: Whose window it is.
        low: First place of the epoch that it covers.
        high: One past the last.
        chunks: The chunks it reads.
        items: (chunk, block) of each place, in the order they are read.
    """

    epoch: int
    shard: int
    low: int
    high: int
    chunks: tuple[int, ...]
    items: list[list[int]]


class SourceOrder:
    """A draw from a source -> (chunk, block in chunk), without walking there.

    Each epoch visits the chunks in an order of its own, cut into one stretch per shard; within a stretch the
    blocks of ``window`` neighbouring chunks are shuffled together. Memory is O(chunks + blocks of a window
    per shard).

    Args:
        name: The source's name; it seeds the order.
        blocks: Blocks in each chunk, shape (chunks,).
        seed: Seed of the stream.
        window: Chunks whose blocks are shuffled together, at least 1.
        shuffle: False reads the source front to back.
        sharded: How its draws fall on shards; one shard where not given.

    Raises:
        ValueError: The source holds no block.
    """

    def __init__(self, name: str, blocks: Sequence[int], seed: int, window: int = 8, shuffle: bool = True,
                 sharded: ShardedDraws | None = None) -> None:
        self.blocks = np.asarray(blocks, np.int64)
        self.total = int(self.blocks.sum())
        self.key, self.seed, self.window, self.shuffle = name_key(name), seed, window, shuffle
        self.sharded = sharded if sharded is not None and sharded.shards > 1 else None
        if self.total == 0:
            raise ValueError(f"source {name!r} holds no whole block: it has fewer tokens than one block needs. "
                             "Prepare more text for it, shorten sequence_length, or leave it out of the blend.")
        # Draws come in order, so the epoch at hand (and the next, to look ahead) and a window per shard are enough.
        self.epochs: OrderedDict[int, tuple[Integers, list[int]]] = OrderedDict()
        self.open: dict[int, Window] = {}

    def locate(self, draw: int, shard: int = 0, turn: int = 0) -> tuple[int, int]:
        """Chunk, and block in the chunk, of a draw.

        Args:
            draw: Its number among all draws from the source, counted from 0 over all epochs.
            shard: The shard it falls on.
            turn: Its number among the draws from the source that fall on this shard.
        """
        window, place = self.window_at(draw // self.total, draw, shard, turn)
        chunk, block = window.items[place - window.low]
        return chunk, block

    def window_at(self, epoch: int, draw: int, shard: int, turn: int) -> tuple[Window, int]:
        """The window that a draw of ``epoch`` reads from, opened if need be, and its place in the epoch."""
        if self.sharded is None:
            stretch, place = 0, draw - epoch * self.total
        else:
            stretch, place = self.sharded.place(epoch, shard, turn)
        window = self.open.get(shard)
        if (window is None or window.epoch != epoch or window.shard != stretch
                or not window.low <= place < window.high):
            window = self.open[shard] = self.window_around(epoch, stretch, place)
        return window, place

    def chunks_after(self, epoch: int, draw: int, shard: int, turn: int) -> tuple[int, ...]:
        """The chunks that ``shard`` reads after the window of this draw, as far as is known now."""
        window, place = self.window_at(epoch, draw, shard, turn)
        rest = window.high - place
        if self.sharded is None:
            follows = divmod(draw + rest, self.total)
            return self.chunks_around(follows[0], 0, follows[1])
        if turn + rest < self.sharded.last_turn(epoch, shard):
            return self.chunks_around(epoch, *self.sharded.place(epoch, shard, turn + rest))
        first = self.sharded.first_turn(epoch + 1, shard)
        if first < self.sharded.last_turn(epoch + 1, shard):
            return self.chunks_around(epoch + 1, *self.sharded.place(epoch + 1, shard, first))
        return ()

    def arranged(self, epoch: int) -> tuple[Integers, list[int]]:
        """Chunk order of an epoch, shape (chunks,), and the place where each of them starts, and the end."""
        if epoch not in self.epochs:
            chunks = len(self.blocks)
            order = shuffled(chunks, self.seed, self.key, epoch) if self.shuffle else np.arange(chunks)
            self.epochs[epoch] = order, np.concatenate([[0], np.cumsum(self.blocks[order])]).tolist()
            if len(self.epochs) > 2:
                self.epochs.popitem(last=False)
        return self.epochs[epoch]

    def bounds(self, epoch: int, shard: int, place: int) -> tuple[int, int, int, int, int]:
        """Number, first chunk, end chunk, low and high place of the window around ``place``."""
        _, starts = self.arranged(epoch)
        begin, end, first = 0, self.total, 0
        if self.sharded is not None:
            begin, end = self.sharded.stretch(epoch, shard)
            first = bisect_right(starts, begin) - 1
        number = (bisect_right(starts, place) - 1 - first) // self.window
        low, high = first + number * self.window, min(first + (number + 1) * self.window, len(self.blocks))
        high = min(high, bisect_right(starts, end - 1))
        return number, low, high, max(begin, starts[low]), min(end, starts[high])

    def chunks_around(self, epoch: int, shard: int, place: int) -> tuple[int, ...]:
        """Chunks of the window of ``shard`` that holds ``place``."""
        _, low, high, _, _ = self.bounds(epoch, shard, place)
        return tuple(chunk for chunk in self.arranged(epoch)[0][low:high].tolist() if self.blocks[chunk])

    def window_around(self, epoch: int, shard: int, place: int) -> Window:
        """The window of ``shard`` that holds ``place``."""
        number, first, end, low, high = self.bounds(epoch, shard, place)
        order, starts = self.arranged(epoch)
        pairs = [np.stack([np.full(self.blocks[chunk], chunk), np.arange(self.blocks[chunk])], 1)
                 for chunk in order[first:end].tolist()]
        items = np.concatenate(pairs)[low - starts[first] : high - starts[first]]
        if self.shuffle:
            items = items[shuffled(len(items), self.seed, self.key, epoch, shard, number)]
        return Window(epoch, shard, low, high, self.chunks_around(epoch, shard, place), items.tolist())
