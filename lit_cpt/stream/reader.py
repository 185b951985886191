"""One worker's view of one source: where each draw lies, and the block itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litdata import StreamingDataset, TokensLoader
from litdata.streaming.sampler import ChunkedIndex
from litdata.utilities.env import _WorkerEnv

from lit_cpt.orders import SourceOrder, Window
from lit_cpt.store import ChunkStore, forget


def chunk_bounds(dataset: StreamingDataset) -> list[tuple[int, int]]:
    """First block and end of each chunk of ``dataset``, which is opened for this process."""
    dataset.cache = dataset._create_cache(_WorkerEnv.detect())
    return [(interval[1], interval[2]) for interval in dataset.cache.get_chunk_intervals()]


class SourceReader:
    """Reads the draws of a source.

    Args:
        name: The source.
        dataset: It, opened in this process.
        begins: First block of each chunk.
        order: Where a draw lies.
        mapped: Chunks that stay mapped into memory: fewer would remap one at nearly every block.
        store: Keeps the chunks of a remote source at hand; None for a local one.
    """

    def __init__(self, name: str, dataset: StreamingDataset, begins: Sequence[int], order: SourceOrder, mapped: int,
                 store: ChunkStore | None = None) -> None:
        self.name, self.dataset, self.begins, self.order, self.store = name, dataset, begins, order, store
        loader = dataset.cache._reader._item_loader
        if isinstance(loader, TokensLoader):
            loader._mmap_keep = mapped
        self.windows: dict[int, Window] = {}  # by shard, of a remote source
        self.held: dict[int, set[int]] = {}  # chunks, by shard

    def read(self, draw: int, shard: int, turn: int) -> Any:
        """The block of a draw (`SourceOrder.locate`)."""
        window, place = self.order.window_at(draw // self.order.total, draw, shard, turn)
        chunk, block = window.items[place - window.low]
        if self.store is not None:
            self.fetch(self.store, window, chunk, draw, shard, turn)
        return self.dataset[ChunkedIndex(index=self.begins[chunk] + block, chunk_index=chunk)]

    def fetch(self, store: ChunkStore, window: Window, chunk: int, draw: int, shard: int, turn: int) -> None:
        """Wait for ``chunk``; where ``shard`` opens a window, let go of the last and ask for the next."""
        held = self.held.setdefault(shard, set())
        if self.windows.get(shard) is not window:
            self.windows[shard] = window
            store.expect(self.name, window.chunks)
            for left in held - set(window.chunks):
                held.remove(left)
                if not any(left in others for others in self.held.values()):
                    forget(self.dataset, left)
                store.release(self.name, left)
            store.expect(self.name, self.order.chunks_after(window.epoch, draw, shard, turn))
        if chunk not in held:
            store.hold(self.name, chunk)
            held.add(chunk)
