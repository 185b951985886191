"""The stream itself: every worker of every rank computes which samples are its own, and reads them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from litdata import CombinedStreamingDataset, StreamingDataset
from litdata.utilities.env import _WorkerEnv

from lit_cpt.blends import BlendHistory, Integers, numbered
from lit_cpt.ledger import Stretch, merged, position_of
from lit_cpt.orders import SourceOrder
from lit_cpt.shards import ShardedDraws, shards_of
from lit_cpt.store import ChunkStore
from lit_cpt.stream.reader import SourceReader, chunk_bounds
from lit_cpt.stream.staging import Staging

STATE_VERSION = 2  # version 1 had no shards: it reads as one shard
PLAN_SAMPLES = 4096  # drawn ahead at once: large enough that the vectorised plan costs nothing per sample


class BlendedStreamingDataset(CombinedStreamingDataset):
    """Samples from named sources, chosen by blend weight and global position.

    Args:
        sources: Source name to litdata dataset (any item loader).
        weights: First blend, by source name; sources left out rest.
        seed: Seed of the order.
        window: Chunks whose blocks are shuffled together; twice as many stay mapped.
        shuffle: False reads each source front to back.
        shards: Parts that every source is cut into, so that a rank reads only its own; fixed for the life of
            a run. One suits sources on local disks.
        staging: Sources that lie elsewhere, and where to keep their chunks.

    Raises:
        ValueError: A weight for a source that is not there, weights that are no blend, or a source
            without a whole block.
    """

    def __init__(self, sources: Mapping[str, StreamingDataset], weights: Mapping[str, float], seed: int = 42,
                 window: int = 8, shuffle: bool = True, shards: int = 1, staging: Staging | None = None) -> None:
        for name, value in (("window", window), ("shards", shards)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.history = BlendHistory(list(sources), weights, seed)
        self.names = self.history.sources
        super().__init__([sources[name] for name in self.names], seed=seed,
                         weights=list(self.history.legs[0].weights), iterate_over_all=False)
        self.window, self.shuffle, self.shards, self.staging = window, shuffle, shards, staging
        self.position = 0  # of the next sample, all ranks together
        self.passed: list[Stretch] = []  # what is not handed out
        self.rank, self.world_size = 0, 1  # set by the loader, when the process group is known
        self.may_change: frozenset[str] = frozenset()  # fields that `restore` need not find as they were
        self.blocks = {name: self.blocks_in(name, dataset)
                       for name, dataset in zip(self.names, self._datasets, strict=True)}
        for dataset in self._datasets:
            dataset.cache = None  # file handles must not cross into workers

    def blocks_in(self, name: str, dataset: StreamingDataset) -> int:
        """Blocks of a source."""
        sizes = [end - begin for begin, end in chunk_bounds(dataset)]
        return SourceOrder(name, sizes, self.history.seed, self.window, self.shuffle).total

    @property
    def round(self) -> int:
        """Samples after which every rank has had whole batches of its own shards: switches fall on its multiples.

        Raises:
            ValueError: The shards cannot be dealt to the ranks evenly.
        """
        if self.shards == 1:
            return self.world_size * self.batch_size
        if self.shards % self.world_size:
            raise ValueError(f"shards={self.shards} is no multiple of the {self.world_size} ranks: each rank reads "
                             f"whole shards. Run on a number of ranks that divides {self.shards}.")
        return math.lcm(self.shards, self.world_size * self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """This worker's samples of this rank's batches, from ``position`` on, for ever."""
        if self.position % self.round and self.shards > 1:
            raise ValueError(f"the stream stands at sample {self.position}, within a round of {self.round}: with "
                             f"{self.shards} shards it can only begin or switch at the end of an optimizer step.")
        worker = _WorkerEnv.detect()
        store = self.staging.open() if self.staging is not None else None
        try:
            readers = self.readers(store)
            for number, batch in enumerate(self.batches([reader.order for reader in readers])):
                if number % worker.world_size == worker.rank:
                    for source, draw, shard, turn in batch:
                        yield readers[source].read(draw, shard, turn)
        finally:
            if store is not None:
                store.close()

    def readers(self, store: ChunkStore | None) -> list[SourceReader]:
        """The sources, opened in this process."""
        opened = []
        for index, (name, dataset) in enumerate(zip(self.names, self._datasets, strict=True)):
            bounds = chunk_bounds(dataset)
            shards = shards_of(self.blocks[name], self.shards)
            sharded = ShardedDraws(self.history, index, self.blocks[name], shards)
            order = SourceOrder(name, [end - begin for begin, end in bounds], self.history.seed, self.window,
                                self.shuffle, sharded)
            mapped = max(4, 2 * self.window * max(1, shards // self.world_size))
            opened.append(SourceReader(name, dataset, [begin for begin, _ in bounds], order, mapped,
                                       store if self.staging and name in self.staging else None))
        return opened

    def pass_over(self, *stretches: Stretch) -> None:
        """Never hand out ``stretches`` of the stream, beside those that are passed over already.

        Args:
            *stretches: Of whole rounds, none before `position`.

        Raises:
            ValueError: One has begun to be handed out.
        """
        for first, stop in stretches:
            passed = any(begin <= first and stop <= end for begin, end in self.passed)
            if first < self.position and not passed:
                raise ValueError(f"pass_over has samples {first} to {stop}, and the run stands at sample "
                                 f"{self.position}: only what is still to come can be passed over.")
        self.passed = merged(*self.passed, *stretches)
        self.position = self.stepped(0)

    def stepped(self, samples: int) -> int:
        """Where the stream stands after ``samples`` more."""
        return position_of(self.trained + samples, self.passed)

    @property
    def trained(self) -> int:
        """Samples handed out, all ranks together."""
        return self.position - sum(min(stop, self.position) - min(first, self.position) for first, stop in self.passed)

    def batches(self, orders: list[SourceOrder]) -> Iterator[list[list[int]]]:
        """This rank's batches from ``position`` on: (source, draw, shard, turn) of each of their samples."""
        stride = self.round * max(1, PLAN_SAMPLES // self.round)
        ahead = [stretch for stretch in self.passed if stretch[0] >= self.position]
        start = self.position
        for first, after in [*ahead, (sys.maxsize, sys.maxsize)]:
            turns = self.turns(orders, start)
            while start < first:
                stop = min(start + stride, first)
                rows, turns = self.planned(start, stop, turns)
                for row in range(0, len(rows), self.batch_size):
                    yield rows[row : row + self.batch_size].tolist()
                start = stop
            start = after

    def turns(self, orders: list[SourceOrder], position: int) -> Integers:
        """Draws from each source on each shard before ``position``, shape (sources, shards); 0 if it is not cut."""
        found = np.zeros((len(orders), self.shards), np.int64)
        for index, order in enumerate(orders):
            if order.sharded is not None:
                found[index] = order.sharded.counts(position)
        return found

    def planned(self, start: int, stop: int, turns: Integers) -> tuple[Integers, Integers]:
        """This rank's part of samples ``start`` to ``stop``.

        Args:
            start: First sample, the beginning of a round.
            stop: One past the last, the end of one.
            turns: `turns` at ``start``.

        Returns:
            (source, draw, shard, turn) of each sample, shape (samples of this rank, 4), and `turns` at ``stop``.
        """
        chosen, draws = self.history.draws(start, stop, self.history.counts(start))
        mine = self.places(start, stop)
        if self.shards == 1:
            none = np.zeros(len(mine), np.int64)
            return np.stack([chosen[mine], draws[mine], none, none], 1), turns
        shard = np.arange(start, stop) % self.shards
        turn, counts = numbered(chosen * self.shards + shard, turns.ravel())
        shard[~np.array([shards_of(self.blocks[name], self.shards) > 1 for name in self.names])[chosen]] = 0
        return np.stack([chosen, draws, shard, turn], 1)[mine], counts.reshape(turns.shape)

    def places(self, start: int, stop: int) -> Integers:
        """Places of this rank's samples among samples ``start`` to ``stop``, which are whole rounds."""
        if self.shards == 1:
            return np.arange(stop - start).reshape(-1, self.world_size, self.batch_size)[:, self.rank].ravel()
        return np.flatnonzero(np.arange(start, stop) % self.shards * self.world_size // self.shards == self.rank)

    def sources_of_batch(self, position: int) -> list[int]:
        """Source of each sample of this rank's batch that begins at ``position``, by its place in ``names``."""
        begun = position % self.round if self.shards > 1 else 0  # of its round
        start = position - begun
        first = begun // self.world_size
        mine = self.places(start, start + self.round)[first : first + self.batch_size]
        chosen: list[int] = self.history.choose(start, start + self.round)[mine].tolist()
        return chosen

    def state(self, position: int) -> dict[str, Any]:
        """All that is needed to go on at ``position``: plain values, a few hundred bytes, of no rank or worker."""
        return {"version": STATE_VERSION, "position": position, "passed": [list(one) for one in self.passed],
                "window": self.window, "shuffle": self.shuffle, "shards": self.shards,
                "blocks": [self.blocks[name] for name in self.names], **self.history.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; sources that it did not know have rested until now.

        Raises:
            ValueError: The stream is another one: other version, seed, sources, their sizes, window, shards or order.
        """
        if state.get("version") not in (1, STATE_VERSION):
            raise ValueError(f"the saved stream has version {state.get('version')}, this lit_cpt reads 1 and "
                             f"{STATE_VERSION}: resume with the version that wrote it.")
        saved = {"shards": 1, **state}
        fields = [(f"data.{field}", saved[field], getattr(self, field)) for field in ("window", "shards", "shuffle")]
        fields += [("data.seed", saved["seed"], self.history.seed)]
        fields += [(f"data.sources.{name}", f"{blocks} blocks", f"{self.blocks[name]} blocks")
                   for name, blocks in zip(saved["sources"], saved["blocks"], strict=True) if name in self.blocks]
        for field, was, now in fields:
            if was != now and field not in self.may_change:
                raise ValueError(f"the saved stream has {field.removeprefix('data.')} {was}, this one {now}; the order "
                                 f"of samples depends on it. Resume with the same, or start a new run.")
        self.history.restore(saved, saved["position"])
        asked, self.passed = self.passed, [(first, stop) for first, stop in saved.get("passed", ())]
        self.position = saved["position"]
        self.pass_over(*asked)
