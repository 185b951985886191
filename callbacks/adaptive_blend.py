"""Lets the blend follow what training shows, within bounds, on the exact stream."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_cpt.adaptive import BlendRule, Memory, Seen, Weights, held, scaled
from lit_cpt.ledger import drawn
from lit_cpt.phases import next_phase, phases_begun
from lit_cpt.stream import BlendedDataLoader
from lit_cpt.stream.switching import only_loader
from lit_cpt.telling import logged, publish, record, steps_between_logs

log = logging.getLogger(__name__)

DIGITS = 6  # of a weight: what the diary tells is what the stream draws by


class AdaptiveBlendCallback(Callback):
    """Asks a rule for new weights every so many steps; the next batch is the first that is drawn by them.

    Each phase begins with its own blend, from which the rule starts anew and to which the bounds refer; sources that
    rest in it stay at rest, and a planned switch of phase comes where it was planned. A change is a leg of the stream's
    history like any switch, kept by checkpoints and counted by the ledger; the run's diary tells it as ``blend``, the
    loggers get ``weight/<source>``. Rank 0 decides for all. On another number of ranks losses are summed in another
    order, so that a rule may come to other weights in their last digits.

    Args:
        rule: A `BlendRule`: `Bandit`, `ExcessLoss`, `WeakScores` (`lit_cpt.adaptive`), or your own.
        every_n_steps: Optimizer steps between decisions; a multiple of ``trainer.log_every_n_steps``, at which the
            losses by source are logged.
        at_least: Least weight of a source, as a factor of the phase's, in [0, 1].
        at_most: Largest, at least 1.
        inertia: Share of the weights at work that stays in each decision, in [0, 1).
        max_epochs: Passes over a source beyond which it gets no more, as far as the others can take its place; repeats
            beyond four are worth little (arXiv 2305.16264).

    Raises:
        ValueError: A number out of range, or, when training begins, a loader that is no `BlendedDataLoader`.
    """

    def __init__(self, rule: BlendRule, every_n_steps: int = 100, at_least: float = 0.25, at_most: float = 4.0,
                 inertia: float = 0.0, max_epochs: float = 4.0) -> None:
        ranges = {"every_n_steps": (every_n_steps, every_n_steps >= 1, "at least 1"),
                  "at_least": (at_least, 0 <= at_least <= 1, "in [0, 1]"),
                  "at_most": (at_most, at_most >= 1, "at least 1"),
                  "inertia": (inertia, 0 <= inertia < 1, "at least 0 and below 1"),
                  "max_epochs": (max_epochs, max_epochs > 0, "above 0")}
        for name, (value, fits, accepted) in ranges.items():
            if not fits:
                raise ValueError(f"{name}={value} must be {accepted}.")
        self.rule, self.every_n_steps, self.inertia = rule, every_n_steps, inertia
        self.at_least, self.at_most, self.max_epochs = at_least, at_most, max_epochs
        self.phases = 0  # that had begun when the rule started anew
        self.start: Weights = {}  # the phase's own blend, without sources that rest
        self.memory: Memory = {}
        self.decided = -1  # the step of the last decision
        self.known: dict[str, float] = {}  # what had been logged where the run was resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the stream can follow, and that there is something to go by."""
        loader = only_loader(trainer)
        if not isinstance(loader, BlendedDataLoader):
            raise ValueError(f"AdaptiveBlendCallback found a {type(loader).__name__}; it needs a BlendedDataLoader "
                             "(lit_cpt.stream.blended), whose changes are exact.")
        every = steps_between_logs(trainer)
        if not every or self.every_n_steps % every:
            raise ValueError(f"every_n_steps={self.every_n_steps} is no multiple of trainer.log_every_n_steps={every}, "
                             "at which losses by source are logged: change one of them.")
        self.look(trainer, pl_module)  # a checkpoint may have been made just before a decision

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Decide, if it is time."""
        if not trainer.fit_loop._should_accumulate():
            self.look(trainer, pl_module)

    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew with a phase; decide every so many steps, but not where a phase begins."""
        step, begun = trainer.global_step, phases_begun(trainer)
        if len(begun) != self.phases:
            weights = only_loader(trainer).weights
            self.phases, self.memory = len(begun), {}
            self.start = scaled({name: weight for name, weight in weights.items() if weight})
        if step % self.every_n_steps == 0 and step not in (self.decided, begun[-1][1]):
            coming = next_phase(trainer)
            if coming is None or coming[1] != step:  # it may be begun only after this callback was asked
                self.decide(trainer, pl_module)

    def decide(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the rule, hold its answer within the bounds, and have the next batch drawn by it."""
        loader = only_loader(trainer)
        now = scaled({name: loader.weights[name] for name in self.start})
        proposed, memory = self.rule.propose(self.seen(trainer, now), self.memory)
        mixed = {name: self.inertia * now[name] + (1 - self.inertia) * share
                 for name, share in scaled(proposed).items()}
        decision = self.within_bounds(mixed, self.room(trainer, loader)), memory
        self.decided, (weights, self.memory) = trainer.global_step, trainer.strategy.broadcast(decision)
        loader.change(weights)
        log.info("blend from step %d: %s", trainer.global_step,
                 ", ".join(f"{name} {share:.3g}" for name, share in weights.items()))
        record(pl_module, "blend", weights=weights, rule=type(self.rule).__name__)
        publish(trainer, {f"weight/{name}": share for name, share in weights.items()})

    def seen(self, trainer: Trainer, now: Weights) -> Seen:
        """What the rule goes by; what is not finite tells nothing."""
        metrics = {name: value for name, value in {**self.known, **logged(trainer, "(.+)")}.items()
                   if math.isfinite(value)}
        losses = {name: metrics[tag] for name in self.start if (tag := f"train/{name}/loss") in metrics}
        return Seen(self.start, now, losses, metrics)

    def within_bounds(self, weights: Weights, room: Weights) -> Weights:
        """``weights`` between the phase's times `at_least` and times `at_most`, and within the ``room`` of each."""
        high = {name: min(self.at_most * share, room[name]) for name, share in self.start.items()}
        low = {name: min(self.at_least * share, high[name]) for name, share in self.start.items()}
        return scaled({name: round(share, DIGITS) for name, share in held(weights, low, high).items()})

    def room(self, trainer: Trainer, loader: BlendedDataLoader) -> Weights:
        """Largest share of the rest of the run that each source can take within ``max_epochs``."""
        batch = loader.stride * trainer.accumulate_grad_batches
        left = (trainer.max_steps - trainer.global_step) * batch
        dataset = loader.dataset
        seen = drawn(dataset.history, loader.position, dataset.passed)
        return {name: max(0.0, self.max_epochs * dataset.blocks[name] - seen[name]) / left if left > 0 else 1.0
                for name in self.start}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the next decision would see: a resumed run has not logged it."""
        checkpoint["callbacks"][self.state_key]["known"] = {**self.known, **logged(trainer, "(.+)")}

    def state_dict(self) -> dict[str, Any]:
        """What was decided, and what the rule remembers."""
        return {name: getattr(self, name) for name in ("phases", "start", "memory", "decided", "known")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, value in state_dict.items():
            setattr(self, name, value)
