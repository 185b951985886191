"""Shows how far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lit_cpt.phases import next_event, next_phase, phase_of, phases_begun
from lit_cpt.units import format_count, format_seconds

log = logging.getLogger(__name__)

WIDE = 100  # columns from which on there is room for a bar
MARGIN = 3  # columns that stay free: what a terminal shows of Ctrl-C must not wrap
CLEAR = "" if os.name == "nt" else "\x1b[K\x1b[0m"  # takes away what it has shown behind the line


class RunProgressBar(ProgressBar):
    """One line for the whole run, the most important first; what a narrow terminal has no room for is left out.

    Steps, what training waits for, phase, loss as last logged, time left, what comes next, tokens a second, learning
    rate, tokens. Lines of the log pass above it. Where the output is no terminal, a line is logged now and then.

    Args:
        refresh_steps: Steps between looks at the clock: looking at every step costs more than a tiny model's step.
        log_seconds: Where the output is no terminal, seconds between lines.
    """

    def __init__(self, refresh_steps: int = 20, log_seconds: float = 30.0) -> None:
        super().__init__()
        self.refresh_steps, self.log_seconds = refresh_steps, log_seconds
        self.enabled = True
        self.bar: Any = None
        self.waits_for: str | None = None
        self.logs = ExitStack()  # takes lines of the log past the bar
        self.began = self.said = 0.0
        self.first_step = self.shown = 0

    def disable(self) -> None:
        """Say nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        self.began, self.said = 0.0, time.monotonic()
        self.first_step = self.shown = trainer.global_step
        if self.enabled and sys.stderr.isatty():
            self.logs.enter_context(logging_redirect_tqdm())
            self.bar = tqdm(initial=self.first_step, total=trainer.max_steps, dynamic_ncols=True,
                            bar_format="{postfix}")
            self.draw(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        """Take the time from the first batch on: what is asked and validated before it comes only once."""
        self.began = self.began or time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the bar, or say a line if it is time."""
        step = trainer.global_step
        if not self.enabled or step == self.shown or step % self.refresh_steps:
            return
        self.shown = step
        if self.bar is not None:
            self.draw(trainer)
        elif time.monotonic() - self.said >= self.log_seconds:
            self.said = time.monotonic()
            log.info("step %d of %d, %s", step, trainer.max_steps, ", ".join(self.state(trainer)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation may take long."""
        self.show_pause("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self.show_pause(None)

    def show_pause(self, what: str | None) -> None:
        """Show what training waits for; None when it goes on."""
        self.waits_for = what
        if self.bar is not None:
            self.draw(self.trainer)

    def draw(self, trainer: Trainer) -> None:
        """Show the line as it is now."""
        columns, most = self.bar.format_dict["ncols"] or WIDE, f"{trainer.max_steps:,}"
        graph, width = ("{percentage:3.0f}%|{bar:10}| ", 17) if columns >= WIDE else ("", 0)
        room = columns - width - len(f"{most}/{most}, ") - MARGIN
        self.bar.bar_format = f"{graph}{{n:,}}/{{total:,}}{{postfix}}{CLEAR}"
        self.bar.n = trainer.global_step
        self.bar.set_postfix_str(fitted(self.state(trainer), room))

    def state(self, trainer: Trainer) -> list[str]:
        """What is worth reading beside the steps, the most important first."""
        metrics, step, coming = trainer.callback_metrics, trainer.global_step, next_event(trainer)
        begun, made = phases_begun(trainer), step - self.first_step
        parts = [self.waits_for] if self.waits_for else []
        parts += [phase_of(begun, step)] if len(begun) > 1 or next_phase(trainer) else []
        parts += [f"loss {float(metrics['train/loss']):.3f}"] if "train/loss" in metrics else []
        if made:
            parts.append(f"{format_seconds((trainer.max_steps - step) * (time.monotonic() - self.began) / made)} left")
        parts += [f"{coming[0]} in {coming[1] - step:,} steps"] if coming else []
        if (speed := metrics.get("speed/tokens_per_second")) is not None:
            parts.append(f"{format_count(float(speed))} tokens/s")
        parts += [f"LR {float(metrics['train/eta']):.3g}"] if "train/eta" in metrics else []
        if (tokens := getattr(trainer.lightning_module, "tokens_seen", None)) is not None:
            parts.append(f"{format_count(tokens)} tokens")
        return parts

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar full."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is."""
        self.close()

    def close(self) -> None:
        """Leave the line as the run left it."""
        if self.bar is not None:
            self.waits_for = None
            self.draw(self.trainer)
            self.bar.close()
            self.bar = None
        self.logs.close()


def fitted(parts: Sequence[str], room: int) -> str:
    """As many of ``parts``, the first ones, as fit into ``room`` columns.

    >>> fitted(["qa", "loss 2.314", "3m 20s left"], 20)
    'qa, loss 2.314'
    """
    lines = (", ".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((line for line in lines if len(line) <= room), "")
