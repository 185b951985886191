"""Tells how fast a run is: tokens a second, share of the device's peak, waiting for data, memory, time left."""

from __future__ import annotations

import logging
import resource
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves

from lit_cpt.footprint import GIB, peak_flops
from lit_cpt.model_size import model_size
from lit_cpt.parallel import data_rank
from lit_cpt.pauses import paused, paused_seconds
from lit_cpt.telling import log_due, publish, record

log = logging.getLogger(__name__)


HUNGRY, A_WHILE = 0.2, 1.0  # share of the time, and seconds, that training waits for batches and that are told


class ThroughputCallback(Callback):
    """Logs, where the Trainer logs, how the time since the last log was spent; no step waits for it.

    ``speed/tokens_per_second`` of all ranks; ``speed/data_wait``, the share of time in which training waited for a
    batch; ``speed/paused``, the share that went into validations, evaluations and checkpoints, which the others leave
    out; ``speed/memory_gib``, the most that rank 0 has held (of a GPU since the last log, else of the process since it
    began); ``speed/hours_left`` at the pace of this fit, pauses included; and ``speed/mfu`` (model FLOPs utilisation)
    where work and peak are known. A ``data_wait`` above a fifth is said once, until it has halved.

    Args:
        flops_per_token: Of forward and backward; counted where left out and the module holds a model of transformers.
        device_flops: The peak of one device, a second; known of the GPUs in `lit_cpt.footprint.GPUS`.

    Raises:
        ValueError: A number that is not positive.
    """

    def __init__(self, flops_per_token: float | None = None, device_flops: float | None = None) -> None:
        for name, value in (("flops_per_token", flops_per_token), ("device_flops", device_flops)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be above 0; leave it out to have it found out.")
        self.flops_per_token, self.device_flops = flops_per_token, device_flops
        self.validating: Any = None
        self.hungry = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; the peak is asked for here, the work at the first batch, which tells its length."""
        self.began = self.told = time.monotonic()
        self.first_step, self.told_paused = trainer.global_step, paused_seconds(trainer)
        self.waited, self.tokens = 0.0, 0
        self.idle: tuple[float, float] | None = None  # since when, and paused for how long by then
        if self.device_flops is None and trainer.strategy.root_device.type == "cuda":
            self.device_flops = peak_flops(torch.cuda.get_device_name(trainer.strategy.root_device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        if self.idle is not None:
            since, before = self.idle
            self.waited += time.monotonic() - since - (paused_seconds(trainer) - before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        """Count a batch, and tell if it is time."""
        rows, length = trained_shape(pl_module, batch)
        self.tokens += rows * length * data_rank(trainer)[1]
        if log_due(trainer):
            self.tell(trainer, pl_module, length)
        self.idle = (time.monotonic(), paused_seconds(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation is a pause."""
        self.validating = paused(trainer)
        self.validating.__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It ends."""
        if self.validating is not None:
            self.validating.__exit__(None, None, None)
            self.validating = None

    def tell(self, trainer: Trainer, pl_module: LightningModule, length: int) -> None:
        """Log the interval."""
        if self.flops_per_token is None and self.device_flops is not None:
            self.flops_per_token = work_of(pl_module, length)
        now, rest = time.monotonic(), paused_seconds(trainer)
        passed, off = now - self.told, rest - self.told_paused
        busy, made = max(passed - off, 1e-9), trainer.global_step - self.first_step
        values = {"tokens_per_second": self.tokens / busy, "data_wait": self.waited / busy, "paused": off / passed,
                  "memory_gib": memory(trainer.strategy.root_device) / GIB}
        if trainer.max_steps > 0:
            values["hours_left"] = (trainer.max_steps - trainer.global_step) * (now - self.began) / made / 3600
        if self.flops_per_token and self.device_flops:
            values["mfu"] = self.flops_per_token * values["tokens_per_second"] / (
                self.device_flops * trainer.world_size)
        publish(trainer, {f"speed/{name}": value for name, value in values.items()})
        self.warn(pl_module, values["data_wait"])
        self.told, self.told_paused, self.waited, self.tokens = now, rest, 0.0, 0

    def warn(self, pl_module: LightningModule, share: float) -> None:
        """Say that training waits for data, where it has begun to."""
        if share > HUNGRY and self.waited >= A_WHILE and not self.hungry:
            log.warning("%.0f %% of the time since the last log went into waiting for batches: give data.workers more, "
                        "or the sources a faster disk", 100 * share)
            record(pl_module, "data_wait", share=round(share, 3))
            self.hungry = True
        self.hungry = self.hungry and share > HUNGRY / 2


def trained_shape(module: LightningModule, batch: Any) -> tuple[int, int]:
    """Sequences of a batch and the tokens trained in each; a block of lit_cpt holds one more, the last target."""
    sequences = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
    given = getattr(getattr(module, "recipe", None), "horizon", None) is not None
    return len(sequences), max(1, sequences[0].numel() - given)


def work_of(module: LightningModule, length: int) -> float | None:
    """FLOPs a token, forward and backward; None where the module's model cannot be counted."""
    config = getattr(getattr(module, "model", None), "config", None)
    if config is None:
        return None
    try:
        return model_size(config.to_dict(), length, torch.bfloat16).flops
    except Exception as error:  # a model whose work cannot be counted can be trained nevertheless
        log.info("the model's work is not known, and no MFU is told: %s", error)
        return None


def memory(device: torch.device) -> float:
    """Bytes held at most."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    held = float(torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return held
