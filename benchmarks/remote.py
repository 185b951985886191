"""How long a batch waits for chunks of a remote source, against how long it computes.

A real S3 protocol server (moto) on the loopback, behind a proxy that answers after 50 ms and sends 20 MB/s on each
connection. Blocks of 2049 int32 tokens, 128 in a chunk; 8 shards read a chunk each at random, a batch has 32 blocks
and computes for 20 ms. moto is no S3: what this measures is whether look-ahead hides delays of that size. Then four
nodes, one after another, read a blend through the stream itself: how much more than its own part does each fetch?

    python benchmarks/remote.py [--quick] [--json FILE]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from litdata import StreamingDataset, TokensLoader
from litdata.streaming import Cache
from litdata.streaming.sampler import ChunkedIndex
from measure import alternate, parser, show, write

from lit_cpt.manifest import Manifest, Split, TokenizerFacts
from lit_cpt.remote import RemoteSource, Storage, stage_metadata
from lit_cpt.shelf import chunks_of
from lit_cpt.store import ChunkStore, forget, live_set
from lit_cpt.stream import BlendedStreamingDataset, Remote, Staging

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from object_store import Fault, ObjectStore

BLOCK, PER_CHUNK, SHARDS, BATCH = 2049, 128, 8, 32
COMPUTE_SECONDS = 0.020
NODES, MANY_CHUNKS = 4, 160  # a cut goes through a chunk: expect about 1 + SHARDS / MANY_CHUNKS
DELAY, RATE = 0.050, 20e6


def write_source(folder: Path, chunks: int, per_chunk: int = PER_CHUNK) -> Path:
    """A prepared source of random tokens."""
    cache = Cache(str(folder), chunk_size=per_chunk * BLOCK, item_loader=TokensLoader())
    generator = np.random.default_rng(1)
    for index in range(chunks * per_chunk):
        cache._add_item(index, torch.from_numpy(generator.integers(0, 50_000, BLOCK, np.int32)))
    cache.done()
    cache.merge()
    split = Split(chunks * per_chunk * BLOCK, chunks * per_chunk, chunks)
    tokenizer = TokenizerFacts("none", "0" * 64, 50_000, "<eos>", 0)
    Manifest(tokenizer, "int32", split, Split(0, 0, 0), 0, 0, (), (), {}, {}).save(folder)
    return folder


@dataclass
class Reader:
    """Shards that read their chunks one by one, the blocks of all of them mixed; window 1."""

    store: ChunkStore
    look_ahead: bool
    seconds: list[float] = field(default_factory=list)  # until every batch was read
    warm_waits: int = 0  # calls of hold that waited, after the first window

    def blocks(self, chunks: int) -> Iterator[tuple[int, int]]:
        """(chunk, block) in reading order; shard s reads chunks s, s + SHARDS, ..."""
        for first in range(0, chunks, SHARDS):
            draws = [(chunk, block) for chunk in range(first, first + SHARDS) for block in range(PER_CHUNK)]
            yield from random.Random(first).sample(draws, len(draws))

    def turn(self, chunk: int, chunks: int) -> None:
        """A shard opens the window of ``chunk``: the former is released, the next one expected."""
        self.store.hold("web", chunk)
        if chunk >= SHARDS:
            self.store.release("web", chunk - SHARDS)
        if self.look_ahead and chunk + SHARDS < chunks:
            self.store.expect("web", [chunk + SHARDS])

    def run(self, dataset: StreamingDataset, chunks: int) -> None:
        """Read everything once, with a pause for every batch."""
        opened, begun = -1, time.perf_counter()
        for number, (chunk, block) in enumerate(self.blocks(chunks)):
            if chunk // SHARDS > opened:  # the windows of all shards open together, the worst case
                opened = chunk // SHARDS
                if opened == 1:
                    self.warm_waits = -self.store.figures.waits
                    self.store.figures.longest_wait_seconds = 0.0
                for shard in range(SHARDS):
                    if opened:
                        forget(dataset, (opened - 1) * SHARDS + shard)
                    self.turn(opened * SHARDS + shard, chunks)
            dataset[ChunkedIndex(index=chunk * PER_CHUNK + block, chunk_index=chunk)]
            if number % BATCH == BATCH - 1:
                self.seconds.append(time.perf_counter() - begun)
                time.sleep(COMPUTE_SECONDS)
                begun = time.perf_counter()
        self.warm_waits += self.store.figures.waits


def batch_seconds(server: ObjectStore, url: str, chunks: int, look_ahead: bool = True,
                  fault: Fault | None = None) -> tuple[Reader, int]:
    """Read the source once through an empty cache of 1.25 live sets; the reader, and that budget."""
    server.heal()
    server.shape(DELAY, RATE)
    server.fail(*([fault] if fault else []))
    storage = Storage(server.options())
    with tempfile.TemporaryDirectory() as cache:
        folder = stage_metadata(url, cache, storage)
        budget = int(1.25 * live_set({"web": [chunk.bytes for chunk in chunks_of(folder)]}, SHARDS, window=1))
        reader = Reader(ChunkStore({"web": RemoteSource(url, folder)}, budget, storage), look_ahead)
        dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=BLOCK))
        reader.run(dataset, chunks)
        reader.store.close()
    return reader, budget


def hold_microseconds(url: str, server: ObjectStore) -> float:
    """Time to hold and release a chunk that is held already."""
    with tempfile.TemporaryDirectory() as cache:
        store = ChunkStore({"web": RemoteSource(url, stage_metadata(url, cache, Storage(server.options())))}, 10**9,
                           Storage(server.options()))
        store.hold("web", 0)
        begun = time.perf_counter()
        for _ in range(10_000):
            store.hold("web", 0)
            store.release("web", 0)
        seconds = time.perf_counter() - begun
        store.close()
    return seconds * 100


def fetched_over_trained(server: ObjectStore, sources: dict[str, str], node: int) -> float:
    """Bytes that one of `NODES` nodes fetches for 1.5 epochs of the big source, over those it trains on."""
    server.heal()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # a last chunk may still be on its way
        remote = Remote(cache, "64MB", server.options())
        folders = remote.staged(sources)
        opened = {name: StreamingDataset(folder, item_loader=TokensLoader(block_size=BLOCK))
                  for name, folder in folders.items()}
        stream = BlendedStreamingDataset(opened, {"web": 0.9, "qa": 0.1}, window=1, shards=SHARDS,
                                         staging=Staging(sources, folders, remote))
        stream.rank, stream.world_size, stream.batch_size = node, NODES, 8
        count = int(1.5 * stream.blocks["web"] / 0.9) // NODES // 8 * 8
        samples = iter(stream)
        for _ in range(count):
            next(samples)
        samples.close()
    return sum(request.bytes for request in server.requests("chunk-")) / (count * BLOCK * 4)


def main() -> None:
    """All arms in turn."""
    settings = parser(__doc__).parse_args()
    rounds, chunks = (2, 32) if settings.quick else (5, 64)
    arms = {"look-ahead": {}, "look-ahead, 30% of 503s": {"fault": Fault("error", share=0.3)},
            "no look-ahead": {"look_ahead": False}}
    longest: dict[str, list[float]] = {name: [] for name in arms}
    waits: dict[str, list[float]] = {name: [] for name in arms}
    per_window = SHARDS * PER_CHUNK // BATCH
    with tempfile.TemporaryDirectory() as name, ObjectStore() as server:
        url = server.upload(write_source(Path(name) / "web", chunks), "benchmark/web")

        def mean(arm: str) -> float:
            reader, budget = batch_seconds(server, url, chunks, **arms[arm])
            warm = [1000 * seconds for seconds in reader.seconds[per_window:]]
            assert reader.store.figures.downloads == chunks
            assert reader.store.figures.peak_bytes <= budget
            longest[arm].append(1000 * reader.store.figures.longest_wait_seconds)
            waits[arm].append(reader.warm_waits / (chunks - SHARDS))
            return statistics.mean(warm)

        means = alternate({arm: lambda arm=arm: mean(arm) for arm in arms}, rounds)
        sizes = {"web": MANY_CHUNKS, "qa": MANY_CHUNKS // 8}
        many = {source: server.upload(write_source(Path(name) / f"many-{source}", count, 16), f"many/{source}")
                for source, count in sizes.items()}
        nodes = {f"node {node}": [fetched_over_trained(server, many, node)] for node in range(NODES)}
        holds = alternate({"hold and release": lambda: hold_microseconds(url, server)}, rounds)
    show(f"ms until a batch of {BATCH} is read once the first window is over, mean", means)
    show("chunks that were waited for, share", waits)
    show("ms of the longest such wait", longest)
    show(f"bytes fetched over bytes trained on, {NODES} nodes, {SHARDS} shards, {MANY_CHUNKS} chunks", nodes)
    show("us for a chunk that is held", holds, "{:.1f}")
    computed = 1000 * COMPUTE_SECONDS
    write(settings.json, {"remote.longest_wait_over_batch": statistics.median(longest["look-ahead"]) / computed,
                          "remote.mean_read_over_batch": statistics.median(means["look-ahead"]) / computed,
                          "remote.longest_wait_over_batch_alone":
                              statistics.median(longest["no look-ahead"]) / computed,
                          "remote.bytes_ratio": max(ratio for [ratio] in nodes.values()),
                          "remote.hold_microseconds": statistics.median(holds["hold and release"])},
          ("litdata", "obstore", "moto"))


if __name__ == "__main__":
    main()
