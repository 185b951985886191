"""Saves a run's checkpoints: regularly, before every validation, at a switch, at the end and on an exception."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_cpt.agenda import EVERY_N_STEPS, KEEP
from lit_cpt.checkpoints import (
    clear_leftovers,
    damage,
    finish_saving,
    folder_of,
    newest_whole,
    point,
    remove,
    save,
    step_path,
    when_saved,
    write_whole,
)
from lit_cpt.copying import Copier
from lit_cpt.counters import validation_due
from lit_cpt.mirror import Mirror
from lit_cpt.pauses import paused

log = logging.getLogger(__name__)

FOR_GOOD = ("switch", "branch")  # reasons for which a checkpoint stays
BEFORE_THE_END = (*FOR_GOOD, "evaluation")  # asked for while callbacks are still being told of a batch's end


class RunCheckpointCallback(Checkpoint):
    """Writes ``checkpoints/step-00001000.ckpt`` and so on, each whole or not at all; ``last.ckpt`` names the newest.

    A step is written once, however many ask for it (`lit_cpt.checkpoints.save_now`). It is also written before
    each validation, when the run ends, and when an exception ends it, unless that came within the optimizer's
    update. A metric belongs to the checkpoint of the step that was validated, which is there already by then.
    Being a `Checkpoint`, it runs after other callbacks, and saves what they decided at this step.

    Args:
        every_n_steps: Optimizer steps between regular checkpoints.
        keep: Checkpoints to keep, the newest; at least 1. Those at a phase switch and the best stay too.
        keep_every: Save and keep each step that is a multiple of this.
        monitor: Metric of a validation, such as ``val/web/loss``: ``best.ckpt`` names its best checkpoint.
        mode: Whether the best value is the least (``min``) or the greatest (``max``).
        mirror: Where checkpoints are copied to in the background, such as ``s3://bucket/run1``; what is deleted here is
            deleted there too.

    Raises:
        ValueError: A number below 1, another mode, or no such mirror.
    """

    def __init__(self, every_n_steps: int = EVERY_N_STEPS, keep: int = KEEP, keep_every: int | None = None,
                 monitor: str | None = None, mode: Literal["min", "max"] = "min",
                 mirror: str | Mirror | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} must be 'min' or 'max'.")
        self.every_n_steps, self.keep, self.keep_every = every_n_steps, keep, keep_every
        self.monitor, self.mode = monitor, mode
        self.mirror = Mirror(mirror) if isinstance(mirror, str) else mirror
        self.copier: Copier | None = None
        self.steps: list[int] = []  # of the checkpoints that this run has, in the order they were written
        self.kept: list[int] = []  # of those that stay for good
        self.best: tuple[float, int] | None = None
        self.asked: str | None = None
        self.training = False
        self.saved_step = self.first_step = 0
        self.update: tuple[int, int] | None = None
        self.lead: list[int] = []

    # When ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the Trainer write whole checkpoints."""
        self.training, self.update, self.asked = False, None, None
        write_whole(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what is there; a killed run may have left half a file."""
        folder = folder_of(trainer)
        self.training, self.lead = True, leads(trainer)
        self.first_step = self.saved_step = trainer.global_step
        here = bool(trainer.ckpt_path) and Path(str(trainer.ckpt_path)).resolve().parent == folder.resolve()
        if not here:  # the records are of another run's files
            self.steps, self.kept, self.best, self.saved_step = [], [], None, -1
        there = self.begin_copying(Path(str(trainer.ckpt_path)).resolve().name if here else None)
        self.steps = [step for step in self.steps if (path := step_path(folder, step)).exists() or path.name in there]
        if trainer.is_global_zero:
            clear_leftovers(folder)
            self.copy_rest(folder)
        self.answer(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        """Note what the update will write to."""
        self.update = (trainer.global_step, writes(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if it is time, was asked for, or a validation comes next."""
        self.answer(trainer)
        if trainer.global_step > self.first_step and validation_due(trainer):
            self.save_step(trainer, "validation")
        if trainer.fit_loop._should_accumulate():
            return
        if any(every and trainer.global_step % every == 0 for every in (self.every_n_steps, self.keep_every)):
            self.save_step(trainer, "regular")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the step that was validated is the best."""
        self.answer(trainer)
        if self.training and not trainer.sanity_checking:
            self.judge(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self.save_step(trainer, "end")
        finish_saving(trainer)
        if self.monitor and self.best is None:
            log.warning("%s was never logged by a validation: there is no best.ckpt", self.monitor)
        self.training = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the mirror."""
        self.finish_copying()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was trained, where it can be; the exception goes on whatever comes of it."""
        made = self.training and trainer.global_step > self.first_step and trainer.global_step != self.saved_step
        self.training, interrupted = False, isinstance(exception, KeyboardInterrupt)
        if made and not interrupted and not getattr(exception, "spoilt", False):
            self.save_last(trainer)
        if trainer.world_size == 1 and not interrupted:
            self.finish_copying()
        elif self.copier is not None:
            self.copier.tell_missing()  # another rank may be gone, or know nothing of this

    # How -------------------------------------------------------------------------------------------------------

    def save_last(self, trainer: Trainer) -> None:
        """Save the step that an exception came after, unless its weights are unsound."""
        step, failure = trainer.global_step, self.unsound(trainer)
        if failure is None:
            try:
                self.save_alone(trainer)
            except BaseException as error:
                failure = f"it could not be written ({error})"
        if failure is not None and trainer.is_global_zero:
            whole, _ = newest_whole(folder_of(trainer))
            log.warning("no checkpoint of step %d: %s; the newest whole one is %s", step, failure, whole or "none")

    def save_step(self, trainer: Trainer, reason: str) -> Path:
        """Save the step that was made, unless it is saved; see `lit_cpt.checkpoints.save_now`."""
        if reason not in BEFORE_THE_END:
            self.write_step(trainer, reason)
        elif self.asked not in FOR_GOOD:  # until `answer`: other callbacks may not have seen the batch's end
            self.asked = reason
        return step_path(folder_of(trainer), trainer.global_step)

    def write_step(self, trainer: Trainer, reason: str) -> None:
        """Save it now."""
        step = trainer.global_step
        if step != self.saved_step:
            self.saved_step = step  # also if it fails: no second try of the same step
            self.enlist(step, reason)
            began = time.monotonic()
            path = step_path(folder_of(trainer), step)
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.save()  # whoever goes on from the checkpoint finds on the disk what was logged before it
            with paused(trainer, "saving"):
                save(trainer, path)
            if trainer.is_global_zero:
                waited = time.monotonic() - began
                when_saved(trainer, partial(log.info, "checkpoint %s (%s, %.1f s)", path, reason, waited))
                if self.copier is not None:
                    when_saved(trainer, partial(self.copier.add, path))
        elif step in self.steps:
            self.enlist(step, reason)
        self.retain(trainer)

    def answer(self, trainer: Trainer) -> None:
        """Save what was asked for while other callbacks had not seen the batch's end."""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            self.write_step(trainer, asked)

    def enlist(self, step: int, reason: str) -> None:
        """Note a checkpoint, and whether it stays for good; before it is written, for it holds these notes."""
        self.steps = [*(other for other in self.steps if other != step), step]
        stays = reason in FOR_GOOD or (self.keep_every is not None and step % self.keep_every == 0)
        if stays and step not in self.kept:
            self.kept.append(step)

    def retain(self, trainer: Trainer) -> None:
        """Delete what is neither among the newest nor to stay."""
        best = {self.best[1]} if self.best else set()
        stay = {*self.steps[-self.keep:], *self.kept, *best}
        old, self.steps = [step for step in self.steps if step not in stay], [
            step for step in self.steps if step in stay]
        for step in old if trainer.is_global_zero else []:
            path = step_path(folder_of(trainer), step)
            remove_old = partial(delete, path)
            when_saved(trainer, partial(self.copier.retire, path, remove_old) if self.copier else remove_old)

    def judge(self, trainer: Trainer) -> None:
        """Let ``best.ckpt`` name this step's checkpoint if its metric is the best so far."""
        if self.monitor is None or self.monitor not in trainer.callback_metrics or not self.steps:
            return
        value, step = float(trainer.callback_metrics[self.monitor]), trainer.global_step
        sign = -1 if self.mode == "max" else 1
        if math.isnan(value) or step != self.steps[-1] or (self.best and sign * value >= sign * self.best[0]):
            return
        self.best = (value, step)
        log.info("%s %.4f at step %d is the best so far", self.monitor, value, step)
        if trainer.is_global_zero:
            path = step_path(folder_of(trainer), step)
            when_saved(trainer, partial(point, path.parent, "best", path))
            if self.copier is not None:
                when_saved(trainer, partial(self.copier.prefer, path))
        self.retain(trainer)

    def unsound(self, trainer: Trainer) -> str | None:
        """Why the weights are not those of a whole step; None if they are."""
        if self.update is not None and self.update[0] == trainer.global_step and writes(trainer) != self.update[1]:
            return "the exception came within the optimizer's update"
        if leads(trainer) != self.lead:
            return "the exception came between the optimizer's step and the scheduler's"
        return None

    def save_alone(self, trainer: Trainer) -> None:
        """Save without any other rank, which may be gone or waiting.

        Raises:
            ValueError: This rank does not hold the whole state.
        """
        if trainer.world_size == 1:
            self.save_step(trainer, "exception")
        elif not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(f"under {type(trainer.strategy).__name__} a rank holds only a part of the state")
        elif trainer.is_global_zero:
            path = step_path(folder_of(trainer), trainer.global_step)
            self.enlist(trainer.global_step, "exception")
            trainer.strategy.checkpoint_io.save_checkpoint(
                trainer._checkpoint_connector.dump_checkpoint(weights_only=False), path)
            point(path.parent, "last", path)
            log.info("checkpoint %s (exception)", path)

    # The mirror ------------------------------------------------------------------------------------------------

    def begin_copying(self, last: str | None) -> Collection[str]:
        """Begin to copy checkpoints, where there is a mirror; those that it holds."""
        if self.mirror is None:
            return ()
        self.copier = Copier(self.mirror, last)
        return self.copier.index.checkpoints

    def copy_rest(self, folder: Path) -> None:
        """Copy what an earlier attempt could not."""
        for path in [step_path(folder, step) for step in self.steps]:
            if self.copier is not None and path.name not in self.copier.index.checkpoints and damage(path) is None:
                self.copier.add(path)

    def finish_copying(self) -> None:
        """Wait for the mirror; see `lit_cpt.checkpoints.finish_copying`."""
        copier, self.copier = self.copier, None
        if copier is not None:
            copier.finish()

    # What a resumed run goes on with -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoints there are, which stay, and the best."""
        return {"steps": list(self.steps), "kept": list(self.kept), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on keeping and deleting."""
        self.steps, self.kept = list(state_dict["steps"]), list(state_dict["kept"])
        self.best = tuple(state_dict["best"]) if state_dict["best"] else None


def delete(path: Path) -> None:
    """Delete an old checkpoint; a run does not end because it cannot."""
    try:
        remove(path)
    except OSError as error:
        log.warning("an old checkpoint could not be deleted: %s", error)


def writes(trainer: Trainer) -> int:
    """How often parameters and optimizer state were written in place: torch counts it for each tensor."""
    states = (state.values() for optimizer in trainer.optimizers for state in optimizer.state.values())
    groups = (group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return sum(value._version for values in chain(groups, states) for value in values
               if isinstance(value, torch.Tensor))


def leads(trainer: Trainer) -> list[int]:
    """By how much each scheduler that steps with the optimizer is ahead of the Trainer's count of steps."""
    return [config.scheduler.last_epoch - trainer.global_step for config in trainer.lr_scheduler_configs
            if config.interval == "step" and config.frequency == 1 and hasattr(config.scheduler, "last_epoch")]
