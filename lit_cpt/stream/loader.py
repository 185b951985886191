"""Batches of the stream: switched, saved and resumed at the exact sample."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from litdata import StreamingDataLoader
from litdata.utilities.env import _DistributedEnv

from lit_cpt.ledger import position_of
from lit_cpt.stream.dataset import BlendedStreamingDataset
from lit_cpt.stream.patience import patient


class BlendedDataLoader(StreamingDataLoader):
    """Batches of a `BlendedStreamingDataset`; switches, saves and resumes at the exact sample.

    Args:
        dataset: The stream.
        batch_size: Sequences in a batch of one rank.
        total_batches: Batches of this rank in the whole run: what ``len`` says. Lightning reads one batch
            ahead of a loader without a length, and the saved position would be one batch off.
        timeout: Seconds that a batch may take, with workers or without, before `Stalled` ends the wait; 0 is for ever.
        **kwargs: As for torch's ``DataLoader``, without ``persistent_workers``.
    """

    dataset: BlendedStreamingDataset

    def __init__(self, dataset: BlendedStreamingDataset, batch_size: int, total_batches: int, timeout: float = 0,
                 **kwargs: Any) -> None:
        if kwargs.get("persistent_workers"):
            raise ValueError("persistent_workers=True: workers hold a copy of the blend, so a switch rebuilds them. "
                             "Leave persistent_workers out.")
        if not isinstance(dataset, BlendedStreamingDataset):
            raise ValueError(f"dataset is a {type(dataset).__name__}; it must be a BlendedStreamingDataset.")
        kwargs["worker_init_fn"] = partial(begin_worker, kwargs.get("worker_init_fn"))
        super().__init__(dataset, batch_size=batch_size, **kwargs)
        self.total_batches, self.patience = total_batches, timeout
        self.share: tuple[int, int] | None = None  # rank and ranks that read samples of their own; None: all ranks
        self.rebuilds = 0

    @property
    def position(self) -> int:
        """Of the next sample in the global stream: as many were handed out, all ranks together, or passed over."""
        return self.dataset.position

    def place_of(self, trained: int) -> int:
        """`position` when ``trained`` samples have been handed out."""
        return position_of(trained, self.dataset.passed)

    @property
    def sources(self) -> list[int]:
        """Source of each sample of the batch handed out last, by its place in ``dataset.names``."""
        return self.dataset.sources_of_batch(self.place_of(self.dataset.trained - self.stride))

    @property
    def stride(self) -> int:
        """Samples in one batch, all ranks together."""
        return int(self.batch_size or 1) * self.dataset.world_size

    def __len__(self) -> int:
        """Batches of this rank in the whole run."""
        return self.total_batches

    def __iter__(self) -> Iterator[Any]:
        """Batches from the current position on; after a change of plan workers are rebuilt and none is lost."""
        self.dataset.rank, self.dataset.world_size = self.share or detected_share()
        while True:
            rebuilds, iterator = self.rebuilds, self._get_iterator()
            try:
                with closing(patient(iterator, self.patience, self.awaited)) as batches:
                    for batch in batches:
                        self.dataset.position = self.dataset.stepped(self.stride)
                        yield batch
                        if rebuilds != self.rebuilds:
                            break
            finally:  # also when the run ends and this generator is closed
                if hasattr(iterator, "_shutdown_workers"):
                    iterator._shutdown_workers()

    def awaited(self) -> str:
        """The batch that comes next, in words."""
        names = sorted({self.dataset.names[source] for source in self.dataset.sources_of_batch(self.position)})
        return (f"rank {self.dataset.rank} waits for samples of {', '.join(names)}, at sample {self.position:,} of the "
                f"stream ({self.num_workers} workers)")

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

    def change(self, weights: Mapping[str, float]) -> bool:
        """As `set_weights`, but only until the next switch that is planned."""
        return self.plan([(self.position, weights), *self.dataset.history.ahead(self.position)])

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
        return self.dataset.state(self.place_of(self.dataset.trained - back * self.stride))

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, whatever the world size and the number of workers."""
        self.dataset.restore(obj)
        self.rebuilds += 1


def detected_share() -> tuple[int, int]:
    """This rank among all ranks."""
    environment = _DistributedEnv.detect()
    return environment.global_rank or 0, environment.world_size or 1


def begin_worker(then: Callable[[int], object] | None, worker: int) -> None:
    """Let a worker outlive the first SIGTERM: schedulers send it to every process, and the run still reads a step.

    The second one ends it, such as torch's own when the loader is closed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL) and None)
    if then is not None:
        then(worker)


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
        states[index] = loader.dataset.state(loader.place_of(trained * loader.stride))
