"""Shows how far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_cpt.phases import next_phase, phase_of, phases_begun
from lit_cpt.units import format_count, format_seconds

log = logging.getLogger(__name__)


class RunProgressBar(ProgressBar):
    """One bar for the whole run: phase, loss, learning rate and speed as last logged, tokens, and what comes next.

    Args:
        refresh_steps: Steps between looks at the clock: looking at every step costs more than a tiny model's step.
        log_seconds: Where the output is no terminal, seconds between lines.
    """

    def __init__(self, refresh_steps: int = 20, log_seconds: float = 30.0) -> None:
        super().__init__()
        self.refresh_steps, self.log_seconds = refresh_steps, log_seconds
        self.enabled = True
        self.bar: Any = None
        self.began = self.said = 0.0
        self.first_step = 0

    def disable(self) -> None:
        """Say nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        self.began = self.said = time.monotonic()
        self.first_step = trainer.global_step
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the bar, or say a line if it is time."""
        step = trainer.global_step
        if not self.enabled or step % self.refresh_steps:
            return
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(", ".join(self.state(trainer)))
        elif time.monotonic() - self.said >= self.log_seconds and step > self.first_step:
            self.said = time.monotonic()
            rate = (step - self.first_step) / (self.said - self.began)
            left = f"{format_seconds((trainer.max_steps - step) / rate)} left"
            log.info("step %d of %d, %s", step, trainer.max_steps, ", ".join([*self.state(trainer), left]))

    def state(self, trainer: Trainer) -> list[str]:
        """What is worth reading beside the steps."""
        metrics, step = trainer.callback_metrics, trainer.global_step
        begun, coming = phases_begun(trainer), next_phase(trainer)
        parts = [phase_of(begun, step)] if coming or len(begun) > 1 else []
        shown = [("loss", "train/loss", "{:.3f}"), ("eta", "train/eta", "{:.3g}")]
        parts += [f"{name} {form.format(float(metrics[key]))}" for name, key, form in shown if key in metrics]
        if (tokens := getattr(trainer.lightning_module, "tokens_seen", None)) is not None:
            parts.append(f"{format_count(tokens)} tokens")
        if (speed := metrics.get("speed/tokens_per_second")) is not None:
            parts.append(f"{format_count(float(speed))} tokens/s")
        return [*parts, *([f"{coming[0]} in {coming[1] - step:,} steps"] if coming and coming[1] > step else [])]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar full."""
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
