"""CPU time per batch of the blended stream against stock litdata on the same chunks.

Stock is `StreamingDataLoader` over `CombinedStreamingDataset`; both read three sources with the same weights, blocks of
2049 int32 tokens, batches of 8. CPU time counts this process and its workers. Also here: what a switch at run time
costs, and what it costs to begin far into a long source.

    python benchmarks/loader.py [--quick] [--json FILE]
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming import Cache
from measure import alternate, parser, ratios, show, write

from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset

BLOCK, BATCH = 2049, 8
SOURCES = {"a": 4000, "b": 1500, "c": 400}
WEIGHTS = {"a": 0.6, "b": 0.35, "c": 0.05}
SHORT, LONG_CHUNK, LONG_CHUNKS = 9, 4375, 16_000  # a long source, of short blocks so that it fits anywhere
FAR = 69_999_936  # near the end of its first epoch, a multiple of every batch here


def write_source(folder: Path, blocks: int) -> None:
    """A source of random tokens, 512 blocks a chunk."""
    cache = Cache(str(folder), chunk_size=512 * BLOCK, item_loader=TokensLoader())
    for index in range(blocks):
        cache._add_item(index, torch.from_numpy(np.random.default_rng(index).integers(0, 50_000, BLOCK, np.int32)))
    cache.done()
    cache.merge()


def dataset(root: Path, name: str, **settings: Any) -> StreamingDataset:
    return StreamingDataset(str(root / name), item_loader=TokensLoader(block_size=BLOCK), **settings)


def stock(root: Path, workers: int) -> Iterator[Any]:
    """The blend of litdata itself."""
    parts = [dataset(root, name, shuffle=True) for name in SOURCES]
    combined = CombinedStreamingDataset(parts, weights=list(WEIGHTS.values()), iterate_over_all=False, seed=1)
    loader = StreamingDataLoader(combined, batch_size=BATCH, num_workers=workers)
    while True:  # a source that runs out ends stock's epoch
        yield from loader


def ours(root: Path, workers: int) -> BlendedDataLoader:
    """The blended stream."""
    parts = {name: dataset(root, name) for name in SOURCES}
    return BlendedDataLoader(BlendedStreamingDataset(parts, WEIGHTS, seed=1), BATCH, 1_000_000, num_workers=workers)


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def per_batch(batches: Iterator[Any], count: int) -> float:
    """CPU milliseconds per batch, after ten that warm up."""
    for _ in range(10):
        next(batches)
    begun = cpu_seconds()
    for _ in range(count):
        next(batches)
    batches.close()  # workers end here, and only then do their seconds count
    gc.collect()
    return 1000 * (cpu_seconds() - begun) / count


def switch_seconds(root: Path) -> float:
    """Wall time from a switch at run time to the first batch of the new blend, 2 workers."""
    loader = ours(root, 2)
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    begun = time.perf_counter()
    loader.set_weights({"c": 1.0})
    next(batches)
    seconds = time.perf_counter() - begun
    batches.close()
    return seconds


def write_long_source(folder: Path) -> None:
    """A source of 70 million short blocks: 16,000 names for one chunk of 4,375."""
    cache = Cache(str(folder), chunk_size=LONG_CHUNK * SHORT, item_loader=TokensLoader())
    for index in range(LONG_CHUNK):
        cache._add_item(index, torch.full((SHORT,), index % 50_000, dtype=torch.int32))
    cache.done()
    cache.merge()
    index = json.loads((folder / "index.json").read_text())
    [chunk] = index["chunks"]
    names = [f"chunk-1-{number}.bin" for number in range(LONG_CHUNKS)]
    for name in names:
        (folder / name).hardlink_to(folder / chunk["filename"])
    index["chunks"] = [{**chunk, "filename": name} for name in names]
    (folder / "index.json").write_text(json.dumps(index))


def first_batch_seconds(folder: Path, position: int, shards: int) -> float:
    """Time from nothing to the first batch of a run that stands at ``position`` of the long source."""
    begun = time.perf_counter()
    source = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=SHORT))
    stream = BlendedStreamingDataset({"long": source}, {"long": 1.0}, shards=shards)
    stream.position = position
    batches = iter(BlendedDataLoader(stream, BATCH, 1_000_000))
    next(batches)
    seconds = time.perf_counter() - begun
    batches.close()
    return seconds


def main() -> None:
    settings = parser(__doc__).parse_args()
    rounds, count = (5, 300) if settings.quick else (15, 800)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for source, blocks in SOURCES.items():
            write_source(root / source, blocks)
        figures = {}
        for workers in (0, 2):
            arms = {"stock": lambda w=workers: per_batch(stock(root, w), count),
                    "blended": lambda w=workers: per_batch(iter(ours(root, w)), count)}
            found = alternate(arms, rounds)
            found["stock / blended"] = ratios(found, "stock", "blended")
            show(f"CPU ms per batch of {BATCH} x {BLOCK}, {workers} workers", found)
            figures[f"loader.cpu_ratio{'' if workers == 0 else f'_workers{workers}'}"] = statistics.median(
                found["stock / blended"])
        switches = alternate({"switch at run time, 2 workers": lambda: switch_seconds(root)}, rounds)
        show("seconds until the first batch of the new blend", switches)
        figures["switch.seconds"] = statistics.median(next(iter(switches.values())))
        write_long_source(root / "long")
        for shards, name in ((1, "stream.seek_ratio"), (64, "stream.seek_ratio_64_shards")):
            seeks = alternate({f"sample {at:,}": lambda at=at, cut=shards: first_batch_seconds(root / "long", at, cut)
                               for at in (0, FAR)}, rounds)
            show(f"seconds to the first batch of a source of 70 million blocks, {shards} shards", seeks)
            figures[name] = statistics.median(ratios(seeks, f"sample {FAR:,}", "sample 0"))
    write(settings.json, figures, ("litdata", "torch"))


if __name__ == "__main__":
    main()
