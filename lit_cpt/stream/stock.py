"""litdata's own loader over its own combined dataset: what of a switch and a resume can be had, and what cannot."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from litdata import CombinedStreamingDataset, StreamingDataLoader

from lit_cpt.stream.switching import (
    BlendedStream,
    ProtocolStream,
    SnapshotStream,
    TrainStream,
    Weights,
    found_switchable,
    only_loader,
)

log = logging.getLogger(__name__)
ALWAYS = ("the source that runs out first ends the epoch for all of them",
          "a resume needs the same ranks, workers and batch size")
MANY_WORKERS = "with num_workers=%d a switch and a resume may repeat or lose samples (exact up to 1)"
MANY_RANKS = "all %d ranks draw the same sequence of sources"


class StockStream(SnapshotStream):
    """litdata's loader over a `CombinedStreamingDataset`: a switch is exact with at most one worker.

    The weights that count are those the dataset has when an iterator is made. With several workers the first batch
    after a switch is of the new weights too, but litdata's own resume, which the switch stands on, places a few
    samples wrongly (docs/recipe.md).
    """

    def check(self, weights: Weights) -> None:
        """Refuse weights by name, or another number of them than there are datasets."""
        count = len(self.loader.dataset._datasets)
        if isinstance(weights, Mapping):
            raise ValueError(f"weights name {', '.join(weights)}, but the datasets of litdata's "
                             f"CombinedStreamingDataset have no names: give a list of {count} in their order, or make "
                             "the loader ours with lit_cpt.stream.blended(loader, names=[...]).")
        if len(weights) != count:
            raise ValueError(f"weights={list(weights)} are {len(weights)}, but the CombinedStreamingDataset has "
                             f"{count} datasets: give one for each, in their order.")

    def set_weights(self, weights: Weights) -> None:
        """Have the next iterator draw by ``weights``."""
        self.loader.dataset._weights = [float(weight) for weight in weights]

    def tell_limits(self) -> None:
        """Warn of what these parts cannot do."""
        limits = [*ALWAYS]
        if self.loader.num_workers > 1:
            limits.insert(0, MANY_WORKERS % self.loader.num_workers)
        if self.trainer.world_size > 1:
            limits.append(MANY_RANKS % self.trainer.world_size)
        log.warning("the train loader is litdata's own: %s. Cure: train on lit_cpt.stream.blended(loader, "
                    "total_batches=...), which keeps sources and weights.", "; ".join(limits))

    def epoch_begins(self) -> None:
        """Begin anew: having been set back in the epoch before, litdata would go on from there once more."""
        self.loader.restore = False


def switched_stream(trainer: Any) -> TrainStream:
    """What switches the weights of the trainer's loader, the most exact way that the loader allows.

    Raises:
        ValueError: There is not exactly one loader, or nothing in it can be switched.
    """
    loader = only_loader(trainer)
    if all(hasattr(loader, name) for name in ("plan", "set_weights", "position")):
        return BlendedStream(trainer, loader)
    if (switchable := found_switchable(loader)) is not None:
        stateful = switchable is loader and all(hasattr(loader, name) for name in ("state_dict", "load_state_dict"))
        return SnapshotStream(trainer, loader) if stateful else ProtocolStream(trainer, loader, switchable)
    dataset = getattr(loader, "dataset", None)
    if isinstance(loader, StreamingDataLoader) and type(dataset) is CombinedStreamingDataset:
        check_stock(dataset)
        return StockStream(trainer, loader)
    raise ValueError(f"PhaseSwitchCallback found the train loader {type(loader).__name__} over "
                     f"{type(dataset).__name__}, and nothing in it whose weights can be switched. It takes "
                     "lit_cpt.stream.BlendedDataLoader; a loader with set_weights(weights) on itself, its dataset, "
                     "sampler or batch_sampler (under several ranks also Trainer(use_distributed_sampler=False), which "
                     "would hide the sampler); or litdata's StreamingDataLoader over a CombinedStreamingDataset.")


def check_stock(dataset: Any) -> None:
    """Refuse a combined dataset that has no weights to switch."""
    if dataset._iterate_over_all:
        raise ValueError("CombinedStreamingDataset(iterate_over_all=True) goes through all data once and has no "
                         "weights to switch: build it with weights=[...] and iterate_over_all=False.")
