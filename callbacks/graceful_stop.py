"""Ends a run on a signal, with everything saved."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_cpt.checkpoints import finish_copying, finish_saving, save_now
from lit_cpt.telling import record

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """A run ended on request, with everything saved; its text says how to go on."""


class GracefulStopCallback(Checkpoint):
    """SIGINT (Ctrl-C) or SIGTERM end a run after the current step, saved; a run that ends by itself is saved too.

    The step is finished first because a half-applied update cannot be resumed bit for bit. A second Ctrl-C
    stops at once. Being a `Checkpoint`, it runs after all other callbacks, so that what they decided at this
    step is saved.

    Raises:
        Stopped: Out of ``trainer.fit``, once the checkpoint is whole.
    """

    def __init__(self) -> None:
        self.asked_by: int | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the two signals for the length of the training."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.ask)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the request; the second one is not waited for."""
        if self.asked_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked_by = number
        log.info("%s: saving at the end of this step (again: stop now)", signal.Signals(number).name)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop if asked, on all ranks at the same step."""
        if trainer.fit_loop._should_accumulate():
            return
        asked = self.asked_by is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            path = save_now(trainer, "signal")
            finish_saving(trainer)  # a launcher may end all ranks as soon as one of them has left
            finish_copying(trainer)
            record(pl_module, "stop", reason="signal", checkpoint=str(path))
            raise Stopped(f"stopped at step {trainer.global_step}; saved {path}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        save_now(trainer, "end")
        finish_saving(trainer)
        self.give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the signals as they were found."""
        self.give_back()

    def give_back(self) -> None:
        """Restore the signals' handlers, while Lightning's own are still below ours."""
        self.asked_by = None
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()
