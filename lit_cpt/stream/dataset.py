"""The stream itself: every worker of every rank computes which samples are its own, and reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from litdata import CombinedStreamingDataset, StreamingDataset, TokensLoader
from litdata.streaming.sampler import ChunkedIndex
from litdata.utilities.env import _WorkerEnv

from lit_cpt.blends import BlendHistory
from lit_cpt.orders import SourceOrder

STATE_VERSION = 1
PLAN_SAMPLES = 4096  # drawn ahead at once: large enough that the vectorised plan costs nothing per sample


class BlendedStreamingDataset(CombinedStreamingDataset):
    """Samples from named sources, chosen by blend weight and global position.

    Args:
        sources: Source name to litdata dataset (any item loader).
        weights: First blend, by source name; sources left out rest.
        seed: Seed of the order.
        window: Chunks whose blocks are shuffled together; twice as many stay mapped.
        shuffle: False reads each source front to back.

    Raises:
        ValueError: A weight for a source that is not there, weights that are no blend, or a source
            without a whole block.
    """

    def __init__(self, sources: Mapping[str, StreamingDataset], weights: Mapping[str, float], seed: int = 42,
                 window: int = 8, shuffle: bool = True) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1: it counts the chunks that are shuffled together.")
        self.history = BlendHistory(list(sources), weights, seed)
        self.names = self.history.sources
        super().__init__([sources[name] for name in self.names], seed=seed,
                         weights=list(self.history.legs[0].weights), iterate_over_all=False)
        self.window, self.shuffle = window, shuffle
        self.position = 0  # samples handed out, all ranks together
        self.rank, self.world_size = 0, 1  # set by the loader, when the process group is known
        self.blocks = {name: self.order_of(name, dataset)[0].total for name, dataset in sources.items()}
        for dataset in self._datasets:
            dataset.cache = None  # file handles must not cross into workers

    def order_of(self, name: str, dataset: StreamingDataset) -> tuple[SourceOrder, list[int]]:
        """The order of a source's blocks, and where each of its chunks begins; opens the source here."""
        dataset.cache = dataset._create_cache(_WorkerEnv.detect())
        loader = dataset.cache._reader._item_loader
        if isinstance(loader, TokensLoader):
            loader._mmap_keep = max(4, 2 * self.window)  # fewer would remap a chunk at nearly every block
        intervals = dataset.cache.get_chunk_intervals()
        sizes = [interval[2] - interval[1] for interval in intervals]
        return (SourceOrder(name, sizes, self.history.seed, self.window, self.shuffle),
                [interval[1] for interval in intervals])

    def __iter__(self) -> Iterator[Any]:
        """This worker's samples of this rank's batches, from ``position`` on, for ever."""
        worker = _WorkerEnv.detect()
        opened = [self.order_of(name, dataset) for name, dataset in zip(self.names, self._datasets, strict=True)]
        rank_batch = self.batch_size
        batch = self.world_size * rank_batch
        stride = batch * max(1, PLAN_SAMPLES // batch)
        start, counts, number = self.position, self.history.counts(self.position), 0
        while True:
            chosen, draws = self.history.draws(start, start + stride, counts)
            for first in range(self.rank * rank_batch, stride, batch):
                if number % worker.world_size == worker.rank:
                    mine = slice(first, first + rank_batch)
                    for source, draw in zip(chosen[mine].tolist(), draws[mine].tolist(), strict=True):
                        order, begins = opened[source]
                        chunk, block = order.locate(draw)
                        yield self._datasets[source][ChunkedIndex(index=begins[chunk] + block, chunk_index=chunk)]
                number += 1
            start += stride
            counts = self.history.counts(start)

    def state(self, position: int) -> dict[str, Any]:
        """All that is needed to go on at ``position``: plain values, a few hundred bytes, of no rank or worker."""
        return {"version": STATE_VERSION, "position": position, "window": self.window, "shuffle": self.shuffle,
                "blocks": [self.blocks[name] for name in self.names], **self.history.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: The stream is another one: other version, seed, sources, their sizes, window or order.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"the saved stream has version {state.get('version')}, this lit_cpt reads "
                             f"{STATE_VERSION}: resume with the version that wrote it.")
        mine = self.state(0)
        for field in ("window", "shuffle", "sources", "blocks"):
            if state[field] != mine[field]:
                raise ValueError(f"the saved stream has {field} {state[field]}, this one {mine[field]}; the order of "
                                 f"samples depends on it. Resume with the same {field}, or start a new run.")
        self.history.restore(state)
        self.position = state["position"]
