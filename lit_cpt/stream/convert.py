"""litdata's own loader or combined dataset, made into ours: the same sources and weights, exact from then on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, overload

from litdata import CombinedStreamingDataset, StreamingDataLoader

from lit_cpt.stream.dataset import BlendedStreamingDataset
from lit_cpt.stream.loader import BlendedDataLoader

CARRIED = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")


@overload
def blended(stock: CombinedStreamingDataset, names: Sequence[str] | None = None, *, total_batches: None = None,
            window: int = 8) -> BlendedStreamingDataset: ...
@overload
def blended(stock: StreamingDataLoader, names: Sequence[str] | None = None, *, total_batches: int | None = None,
            window: int = 8) -> BlendedDataLoader: ...
def blended(stock: Any, names: Sequence[str] | None = None, *, total_batches: int | None = None,
            window: int = 8) -> BlendedStreamingDataset | BlendedDataLoader:
    """The exact stream over the sources of litdata's own loader or combined dataset, by the same weights.

    Sources, their item loaders and transforms, weights, seed and shuffling are taken over, of a loader also batch
    size, workers and collation. The order of samples is ours, not litdata's: convert before a run begins. A source
    that runs out begins anew by itself, and no epoch ends with it. Use only what is returned: both read the same
    sources.

    Args:
        stock: A ``CombinedStreamingDataset`` with weights, or a ``StreamingDataLoader`` over one.
        names: The sources' names, in the order of the datasets; where not given, their folders', or ``source0`` and
            so on if those are not distinct.
        total_batches: For a loader: batches of one rank in the whole run, ``max_steps x accumulate_grad_batches``.
        window: Chunks of a source whose blocks are shuffled together.

    Raises:
        ValueError: Something that cannot be taken over, or no ``total_batches`` for a loader.
    """
    if isinstance(stock, CombinedStreamingDataset):
        return blended_dataset(stock, names, window)
    if not isinstance(stock, StreamingDataLoader) or not isinstance(stock.dataset, CombinedStreamingDataset):
        over = f" over {type(stock.dataset).__name__}" if hasattr(stock, "dataset") else ""
        raise ValueError(f"blended() was given a {type(stock).__name__}{over}; it takes litdata's "
                         "CombinedStreamingDataset, or its StreamingDataLoader over one.")
    if stock.persistent_workers:
        raise ValueError("persistent_workers=True cannot be taken over: workers hold a copy of the blend, so a switch "
                         "restarts them. Build the loader without it.")
    if total_batches is None:
        raise ValueError("blended(loader) needs total_batches=: Lightning reads one batch ahead of a loader without a "
                         "length. Give the batches of one rank in the whole run, max_steps x accumulate_grad_batches.")
    dataset = blended_dataset(stock.dataset, names, window)
    settings = {name: getattr(stock, name) for name in CARRIED}
    return BlendedDataLoader(dataset, int(stock.batch_size or 1), total_batches,
                             collate_fn=getattr(stock.collate_fn, "collate_fn", stock.collate_fn), **settings)


def blended_dataset(stock: CombinedStreamingDataset, names: Sequence[str] | None,
                    window: int) -> BlendedStreamingDataset:
    """The exact stream over the datasets of ``stock``."""
    datasets, weights = stock._datasets, stock._weights
    check_stock_dataset(stock)
    if names is None:
        names = source_names(datasets)
    if len(names) != len(datasets) or len(set(names)) != len(names):
        raise ValueError(f"names={list(names)} must be {len(datasets)} different names, one for each dataset in their "
                         "order.")
    shares = dict(zip(names, weights or (), strict=True))
    return BlendedStreamingDataset(dict(zip(names, datasets, strict=True)), shares, seed=stock._seed, window=window,
                                   shuffle=bool(datasets[0].shuffle))


def check_stock_dataset(stock: CombinedStreamingDataset) -> None:
    """Refuse a combined dataset that means something else than a blend."""
    if isinstance(stock, BlendedStreamingDataset):
        raise ValueError("blended() was given a BlendedStreamingDataset, which is exact already: use it as it is.")
    if stock._iterate_over_all:
        raise ValueError("CombinedStreamingDataset(iterate_over_all=True) goes through all data once and has no "
                         "weights to take over: build it with weights=[...] and iterate_over_all=False.")
    if stock._batching_method != "stratified":
        raise ValueError(f"batching_method={stock._batching_method!r} cannot be taken over: our batches are drawn "
                         "sample by sample. Build the dataset with batching_method='stratified'.")
    shuffled = {bool(dataset.shuffle) for dataset in stock._datasets}
    if len(shuffled) > 1:
        raise ValueError("some of the datasets have shuffle=True and some shuffle=False, and one stream has one order: "
                         "give all of them the same.")


def source_names(datasets: Sequence[Any]) -> list[str]:
    """Names of the folders the datasets lie in, if those are distinct; else ``source0``, ``source1`` ..."""
    folders = [PurePath(str(dataset.input_dir.path or dataset.input_dir.url or "")).name for dataset in datasets]
    if all(folders) and max(Counter(folders).values()) == 1:
        return folders
    return [f"source{place}" for place in range(len(datasets))]
