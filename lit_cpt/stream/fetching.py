"""Lightning's side of a train loader: what it has fetched, what of that is trained, and how it fetches anew.

All that is touched of Lightning's internals for the sake of the stream stands here.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any


def train_loaders(trainer: Any) -> list[Any]:
    """The loaders that ``trainer`` trains on."""
    return list(getattr(trainer.fit_loop._combined_loader, "flattened", []))


def trained_batches(trainer: Any) -> int:
    """Batches trained since the run began, resumes included; counted before any hook at a batch's end."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)


def untrained_batches(trainer: Any) -> int:
    """Batches handed to the training step and not through it: one where that step failed, else none."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(progress.ready - progress.processed)


def fetched_ahead(trainer: Any) -> int:
    """Batches that Lightning holds ready: one where the loader has no length, none where it has."""
    return len(getattr(trainer.fit_loop._data_fetcher, "batches", ()))


def epoch_goes_on(trainer: Any) -> bool:
    """Whether this epoch has batches after the last trained one."""
    return trainer.fit_loop._data_fetcher is not None and not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def fetch_anew(trainer: Any) -> None:
    """Drop every batch that was fetched or prefetched and begin to fetch from the loader as it is now."""
    close_iterators(trainer)
    fetcher = trainer.fit_loop._data_fetcher
    fetched = fetcher.fetched - fetched_ahead(trainer)
    iter(fetcher)
    fetcher.fetched += fetched


def close_iterators(trainer: Any) -> None:
    """End the loaders' iterators, and their workers with them, also workers that are told to persist."""
    for iterator in getattr(trainer.fit_loop._combined_loader._iterator, "iterators", []):
        for end in ("close", "_shutdown_workers"):
            if hasattr(iterator, end):
                getattr(iterator, end)()
    for loader in train_loaders(trainer):
        if getattr(loader, "_iterator", None) is not None:  # it would go on with copies of the old weights
            loader._iterator._shutdown_workers()
            loader._iterator = None


def saved_loader_state(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """State of the one train loader in a checkpoint, a copy; None where it holds none or several."""
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader") or []
    return deepcopy(states[0]) if len(states) == 1 else None  # litdata goes on writing into what it has loaded


def save_loader_state(checkpoint: dict[str, Any], state: dict[str, Any]) -> None:
    """Put ``state`` where a resume looks for it."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [state]
