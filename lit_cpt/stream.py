"""The blended stream: litdata sources in, batches of an exact, resumable, world-size-free sequence out.

Both classes are litdata's own by ``isinstance``; what they replace is litdata's choice of source and
sample, which cannot be switched, resumed or resharded exactly (docs/data.md). Sample g of the global
stream is a pure function of (seed, g, history of blends), see `lit_cpt.blends`; ranks and workers only
decide who reads which slice of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming.sampler import ChunkedIndex
from litdata.utilities.env import _DistributedEnv, _WorkerEnv

from lit_cpt.blends import BlendHistory, SourceOrder
from lit_cpt.manifest import Manifest

STATE_VERSION = 1
PLAN_SAMPLES = 4096  # drawn ahead at once: large enough that the vectorised plan costs nothing per sample


def open_source(folder: str | Path, sequence_length: int) -> StreamingDataset:
    """A prepared source as a litdata dataset of blocks of ``sequence_length + 1`` tokens.

    A block is one sequence of inputs and, shifted by one, its targets.

    Raises:
        FileNotFoundError: ``folder`` is no prepared source.
    """
    Manifest.load(folder)
    return StreamingDataset(str(folder), item_loader=TokensLoader(block_size=sequence_length + 1))


def check_tokenizers(folders: Mapping[str, str | Path], fingerprint: str | None = None,
                     owner: str = "the model") -> None:
    """Refuse sources that were not all tokenised alike.

    Args:
        folders: Source name to prepared folder.
        fingerprint: What every source must have; the first source's where not given.
        owner: Whose fingerprint that is, for the error.

    Raises:
        ValueError: A source was made with another tokenizer.
    """
    for name, folder in folders.items():
        manifest = Manifest.load(folder)
        if fingerprint is None:
            fingerprint, owner = manifest.tokenizer.fingerprint, f"source {name!r}"
        if manifest.tokenizer.fingerprint != fingerprint:
            raise ValueError(
                f"source {name!r} ({folder}) was tokenised with {manifest.tokenizer.name!r}, fingerprint "
                f"{manifest.tokenizer.fingerprint[:12]}; {owner} has {fingerprint[:12]}. "
                "Prepare it again with the model's tokenizer."
            )


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


class BlendedDataLoader(StreamingDataLoader):
    """Batches of a `BlendedStreamingDataset`; switches, saves and resumes at the exact sample.

    Args:
        dataset: The stream.
        batch_size: Sequences in a batch of one rank.
        total_batches: Batches of this rank in the whole run: what ``len`` says. Lightning reads one batch
            ahead of a loader without a length, and the saved position would be one batch off.
        **kwargs: As for torch's ``DataLoader``, without ``persistent_workers``.
    """

    dataset: BlendedStreamingDataset

    def __init__(self, dataset: BlendedStreamingDataset, batch_size: int, total_batches: int, **kwargs: Any) -> None:
        if kwargs.get("persistent_workers"):
            raise ValueError("persistent_workers=True: workers hold a copy of the blend, so a switch rebuilds them. "
                             "Leave persistent_workers out.")
        if not isinstance(dataset, BlendedStreamingDataset):
            raise ValueError(f"dataset is a {type(dataset).__name__}; it must be a BlendedStreamingDataset.")
        super().__init__(dataset, batch_size=batch_size, **kwargs)
        self.total_batches = total_batches
        self.rebuilds = 0

    @property
    def position(self) -> int:
        """Samples handed out, all ranks together: the position of the next one in the global stream."""
        return self.dataset.position

    @property
    def stride(self) -> int:
        """Samples in one batch, all ranks together."""
        return int(self.batch_size or 1) * self.dataset.world_size

    def __len__(self) -> int:
        """Batches of this rank in the whole run."""
        return self.total_batches

    def __iter__(self) -> Iterator[Any]:
        """Batches from the current position on; after a change of plan workers are rebuilt and none is lost."""
        environment = _DistributedEnv.detect()
        self.dataset.rank, self.dataset.world_size = environment.global_rank or 0, environment.world_size or 1
        while True:
            rebuilds, iterator = self.rebuilds, self._get_iterator()
            try:
                for batch in iterator:
                    self.dataset.position += self.stride
                    yield batch
                    if rebuilds != self.rebuilds:
                        break
            finally:  # also when the run ends and this generator is closed
                if hasattr(iterator, "_shutdown_workers"):
                    iterator._shutdown_workers()

    @property
    def weights(self) -> dict[str, float]:
        """The blend of the next sample."""
        return self.dataset.history.weights_at(self.position)

    def set_weights(self, weights: Mapping[str, float]) -> bool:
        """Draw every sample from the next batch on by ``weights``; what was prefetched is planned anew.

        Returns:
            Whether this changed anything: False if the very switch was planned beforehand.
        """
        return self.plan([(self.position, weights)])

    def plan(self, future: Sequence[tuple[int, Mapping[str, float]]]) -> bool:
        """Set all switches to come, as (position, weights); free before the first batch, else workers restart.

        Returns:
            Whether this changed anything.

        Raises:
            ValueError: A position that was handed out already, or weights that are no blend of the sources.
        """
        changed = self.dataset.history.plan(self.position, future)
        self.rebuilds += changed
        return changed

    def state_dict(self, back: int = 0) -> dict[str, Any]:
        """State from which `load_state_dict` goes on.

        Args:
            back: Batches handed out but not trained, which are to come again.
        """
        return self.dataset.state(self.position - back * self.stride)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, whatever the world size and the number of workers."""
        self.dataset.restore(obj)
        self.rebuilds += 1


def collate(blocks: list[Any]) -> torch.Tensor:
    """Blocks of tokens as one tensor of shape (B, T + 1), int64."""
    return torch.stack([torch.as_tensor(block) for block in blocks]).long()


def rewind_untrained(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Set the saved stream back to what was trained.

    A checkpoint written while a batch is being trained (on an exception, say) would count that batch as
    done: it was read, but its gradient is lost. So are batches accumulated since the last optimizer step.
    """
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
    if not states or not all(isinstance(loader, BlendedDataLoader) for loader in loaders):
        return
    trained = trainer.global_step * trainer.accumulate_grad_batches
    for index, loader in enumerate(loaders):
        states[index] = loader.dataset.state(trained * loader.stride)
