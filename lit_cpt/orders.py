"""Which block of a source the k-th draw reads: a pure function of (seed, name, k), found without walking there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from lit_cpt.blends import Integers, name_key, shuffled


class SourceOrder:
    """The k-th draw from a source -> (chunk, block in chunk), without walking there.

    Each epoch visits the chunks in an order of its own; the blocks of ``window`` neighbouring chunks are
    shuffled together. Memory is O(chunks + blocks of a window).

    Args:
        name: The source's name; it seeds the order.
        blocks: Blocks in each chunk, shape (chunks,).
        seed: Seed of the stream.
        window: Chunks whose blocks are shuffled together, at least 1.
        shuffle: False reads the source front to back.

    Raises:
        ValueError: The source holds no block.
    """

    def __init__(self, name: str, blocks: Sequence[int], seed: int, window: int = 8, shuffle: bool = True) -> None:
        self.blocks = np.asarray(blocks, np.int64)
        self.total = int(self.blocks.sum())
        self.key, self.seed, self.window, self.shuffle = name_key(name), seed, window, shuffle
        if self.total == 0:
            raise ValueError(f"source {name!r} holds no whole block: it has fewer tokens than one block needs. "
                             "Prepare more text for it, shorten sequence_length, or leave it out of the blend.")
        # The window at hand: draws [low, high) and what they read. Draws come in order, so one is enough.
        self.low = self.high = 0
        self.items: list[list[int]] = []
        self.at_epoch, self.order, self.starts = -1, np.zeros(0, np.int64), [0]

    def locate(self, draw: int) -> tuple[int, int]:
        """Chunk, and block in the chunk, of draw number ``draw``, counted from 0 over all epochs."""
        if not self.low <= draw < self.high:
            self.turn_to(draw)
        chunk, block = self.items[draw - self.low]
        return chunk, block

    def turn_to(self, draw: int) -> None:
        """Open the window that holds ``draw``."""
        epoch, place = divmod(draw, self.total)
        if epoch != self.at_epoch:
            self.at_epoch, (self.order, self.starts) = epoch, self.arrange(epoch)
        number = bisect_right(self.starts, place) - 1
        self.low = epoch * self.total + self.starts[number]
        self.high = epoch * self.total + self.starts[number + 1]
        self.items = self.contents(number).tolist()

    def arrange(self, epoch: int) -> tuple[Integers, list[int]]:
        """Chunk order of an epoch, shape (chunks,), and the place where each of its windows starts, and the end."""
        chunks = len(self.blocks)
        order = shuffled(chunks, self.seed, self.key, epoch) if self.shuffle else np.arange(chunks)
        edges = np.concatenate([[0], np.cumsum(self.blocks[order])])
        return order, [*edges[:-1][:: self.window].tolist(), int(edges[-1])]

    def contents(self, number: int) -> Integers:
        """The (chunk, block) pairs of window ``number`` of this epoch in the order they are read, shape (blocks, 2)."""
        chunks = self.order[number * self.window : (number + 1) * self.window]
        pairs = [np.stack([np.full(self.blocks[chunk], chunk), np.arange(self.blocks[chunk])], 1) for chunk in chunks]
        items: Integers = np.concatenate(pairs)
        # The 0 is the shard: one shard serves local data, and more of them must not change this order.
        return items[shuffled(len(items), self.seed, self.key, self.at_epoch, 0, number)] if self.shuffle else items
