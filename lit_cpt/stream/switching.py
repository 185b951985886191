"""How a train loader is given other weights: ours exactly, any object with ``set_weights``, litdata's own parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

from lit_cpt.stream.fetching import (
    epoch_goes_on,
    fetch_anew,
    fetched_ahead,
    save_loader_state,
    saved_loader_state,
    train_loaders,
    trained_batches,
    untrained_batches,
)

log = logging.getLogger(__name__)
Weights = Mapping[str, float] | Sequence[float]
PLACES = ("dataset", "sampler", "batch_sampler")  # of a loader, where set_weights is looked for after itself


class Switchable(Protocol):
    """What a loader, dataset, sampler or batch sampler of your own needs so that its weights can be switched.

    A sampler or batch sampler may add ``state_dict()`` and ``load_state_dict(state)``: the state after the indices
    handed out so far, from which the next ``iter()`` goes on with the same ones. Then a switch and a resume lose and
    repeat nothing.
    """

    def set_weights(self, weights: Any) -> None:
        """Draw by ``weights``, as they were given to `PhaseSwitchCallback`, from the next ``iter()`` on."""


class TrainStream:
    """A train loader whose weights can be switched; each hook is called by `PhaseSwitchCallback`.

    Args:
        trainer: The trainer at ``on_train_start``.
        loader: Its only train loader.
    """

    def __init__(self, trainer: Any, loader: Any) -> None:
        self.trainer, self.loader = trainer, loader

    def check(self, weights: Weights) -> None:
        """Refuse, before anything is trained, weights that this stream could not take later."""

    def tell_limits(self) -> None:
        """Say, once in a run, what this stream cannot do, and the cure."""

    def start(self, saved: dict[str, Any] | None, weights: Weights | None) -> None:
        """Training begins, or goes on from the ``saved`` loader state with ``weights``, if a phase has begun."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; called before `start`."""

    def state(self) -> dict[str, Any]:
        """What a resume needs beyond the loader's own state."""
        return {}

    def batch_fetched(self) -> None:
        """A batch was fetched and is about to be trained."""

    def epoch_begins(self) -> None:
        """An epoch after the first begins; its iterator is not made yet."""

    def switch(self, weights: Weights) -> None:
        """Train by ``weights`` from the next batch on."""
        raise NotImplementedError

    def repair(self, checkpoint: dict[str, Any]) -> None:
        """Set the saved loader state to what was trained."""


class BlendedStream(TrainStream):
    """Our own loader: it switches, saves and resumes at the exact sample."""

    def check(self, weights: Weights) -> None:
        """Refuse weights without names and names that no source has."""
        if not isinstance(weights, Mapping):
            names = ", ".join(f"{name}: ..." for name in self.loader.dataset.names)
            raise ValueError(f"weights={list(weights)} are a list, but the sources of this stream have names: write "
                             f"weights={{{names}}}.")
        if hasattr(self.loader.dataset, "history"):
            self.loader.dataset.history.ordered(weights)

    def start(self, saved: dict[str, Any] | None, weights: Weights | None) -> None:
        """Go on at ``saved`` also where Lightning has dropped it (its issue 20550); a new loader has no history."""
        if saved is None and weights is not None:
            self.switch(weights)
        elif saved is not None and self.loader.state_dict() != saved:
            self.loader.load_state_dict(saved)

    def switch(self, weights: Weights) -> None:
        """Draw by ``weights`` from the next batch on."""
        self.loader.set_weights(weights)

    def repair(self, checkpoint: dict[str, Any]) -> None:
        """Give back the batch whose training failed, if that is why the checkpoint is written."""
        untrained = untrained_batches(self.trainer)
        if untrained > 0 and saved_loader_state(checkpoint) is not None:
            save_loader_state(checkpoint, self.loader.state_dict(back=untrained))


class ProtocolStream(TrainStream):
    """A loader that holds a `Switchable` of the user's.

    The iterator is made anew at a switch, so that the next batch is of the new weights whatever was prefetched. Where
    the switchable keeps state, it is first set back to the last trained batch: its state when the iterator was made is
    kept, and as many batches of indices as were trained since are drawn again and dropped.

    Args:
        trainer: The trainer at ``on_train_start``.
        loader: Its only train loader.
        switchable: The object with ``set_weights``.
    """

    def __init__(self, trainer: Any, loader: Any, switchable: Any) -> None:
        super().__init__(trainer, loader)
        self.switchable = switchable
        draws = switchable in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        self.stateful = draws and all(hasattr(switchable, name) for name in ("state_dict", "load_state_dict"))
        self.anchor: tuple[int, Any] = (0, None)  # batches trained and the switchable's state, when it had drawn those
        self.loaded: dict[str, Any] = {}

    @property
    def ahead(self) -> int:
        """Batches drawn before they are trained, once the iterator stands."""
        workers = getattr(self.loader, "num_workers", 0)
        prefetched: int = workers * (getattr(self.loader, "prefetch_factor", None) or 0)
        return prefetched + fetched_ahead(self.trainer)

    def start(self, saved: dict[str, Any] | None, weights: Weights | None) -> None:
        """Go on at the last trained batch, by the weights of the phase that has begun."""
        if weights is not None:
            self.switchable.set_weights(weights)
        if self.stateful and self.loaded:
            self.switchable.load_state_dict(self.loaded["switchable"])
            self.draw_again(self.loaded["batches"])
        if weights is not None or (self.stateful and self.loaded):
            self.set_anchor(0)
            fetch_anew(self.trainer)
        else:
            self.set_anchor(self.ahead)

    def set_anchor(self, ahead: int) -> None:
        """Remember the state of the switchable, which has drawn ``ahead`` batches beyond the trained ones."""
        if self.stateful:
            self.anchor = (trained_batches(self.trainer) + ahead, deepcopy(self.switchable.state_dict()))

    def draw_again(self, batches: int) -> None:
        """Move the switchable on by ``batches``."""
        drawn = iter(self.loader.batch_sampler or self.loader.sampler)
        for _ in range(batches):
            next(drawn)

    def epoch_begins(self) -> None:
        """Its batches are counted from here."""
        self.set_anchor(0)

    def switch(self, weights: Weights) -> None:
        """Set the weights; batches drawn by the old ones go back, or are dropped where there is no way back."""
        since = trained_batches(self.trainer) - self.anchor[0]
        goes_on, back = epoch_goes_on(self.trainer), self.stateful and since >= 0
        if goes_on and back:
            self.switchable.load_state_dict(deepcopy(self.anchor[1]))
            self.draw_again(since)
        elif goes_on and self.ahead:
            cure = "" if self.stateful else (f"; give {type(self.switchable).__name__} state_dict() and "
                                             "load_state_dict(state), and they go back")
            log.warning("up to %d batches that were drawn by the old weights are dropped untrained%s", self.ahead, cure)
        self.switchable.set_weights(weights)
        self.set_anchor(0)
        if goes_on:
            fetch_anew(self.trainer)

    def state(self) -> dict[str, Any]:
        """The anchor and how far it is behind; empty within the first batches, which were drawn before training."""
        since = trained_batches(self.trainer) - self.anchor[0]
        return {"switchable": self.anchor[1], "batches": since} if self.stateful and since >= 0 else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep it for `start`."""
        self.loaded = state


class SnapshotStream(TrainStream):
    """A loader that saves its own state as of the last batch it handed out, such as litdata's.

    Lightning holds one batch more than was trained where the loader has no length, so the state after each batch is
    kept until that batch is trained.
    """

    def __init__(self, trainer: Any, loader: Any) -> None:
        super().__init__(trainer, loader)
        self.snapshots: dict[int, Any] = {}  # batches trained -> the loader's state when it had handed out those

    def set_weights(self, weights: Weights) -> None:
        """Have the next iterator draw by ``weights``."""
        self.loader.set_weights(weights)

    def start(self, saved: dict[str, Any] | None, weights: Weights | None) -> None:
        """Go on at ``saved``, by the weights of the phase that has begun."""
        if weights is not None:
            self.set_weights(weights)
        if saved is not None:
            self.rewind(saved)
        else:
            if weights is not None:
                fetch_anew(self.trainer)
            self.snapshots = {trained_batches(self.trainer) + fetched_ahead(self.trainer): self.snapshot()}

    def snapshot(self) -> Any:
        """The loader's state, safe from what the loader does next."""
        return deepcopy(self.loader.state_dict())

    def rewind(self, state: Any) -> None:
        """Fetch anew from ``state``, which is that of the last trained batch."""
        self.loader.load_state_dict(deepcopy(state))
        fetch_anew(self.trainer)
        trained = trained_batches(self.trainer)
        self.snapshots = {trained: deepcopy(state), **({trained + 1: self.snapshot()} if fetched_ahead(
            self.trainer) else {})}

    def batch_fetched(self) -> None:
        """Note the state; that of batches trained before the last is not needed any more."""
        trained = trained_batches(self.trainer)
        self.snapshots[trained + 1 + fetched_ahead(self.trainer)] = self.snapshot()
        self.snapshots = {batches: state for batches, state in self.snapshots.items() if batches >= trained}

    def switch(self, weights: Weights) -> None:
        """Set the weights, and go back to the last trained batch if the epoch has more."""
        self.set_weights(weights)
        state = self.snapshots.get(trained_batches(self.trainer))
        if epoch_goes_on(self.trainer):
            self.rewind(self.snapshot() if state is None else state)  # None if nothing is trained yet

    def repair(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the last trained batch, not of the last fetched one."""
        state = self.snapshots.get(trained_batches(self.trainer))
        if state is not None and saved_loader_state(checkpoint) is not None:
            save_loader_state(checkpoint, deepcopy(state))


def found_switchable(loader: Any) -> Any:
    """The object with ``set_weights`` in ``loader``: itself, its dataset or a sampler; None without one."""
    held = [loader, *(getattr(loader, place, None) for place in PLACES)]
    return next((each for each in held if hasattr(each, "set_weights")), None)


def only_loader(trainer: Any) -> Any:
    """The one loader that ``trainer`` trains on.

    Raises:
        ValueError: There are several, or none.
    """
    loaders = train_loaders(trainer)
    if len(loaders) != 1:
        kinds = ", ".join(type(loader).__name__ for loader in loaders) or "none"
        raise ValueError(f"found the train loaders {kinds}; lit_cpt's callbacks need exactly one. Blend the data "
                         "inside one loader, such as lit_cpt.stream.BlendedDataLoader.")
    return loaders[0]
