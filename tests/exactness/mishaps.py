"""What befalls a run on its last rank alone, while the others know nothing of it: a callback of the run under test.

It strikes in the first attempt only, so that the very same command resumes the run.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from faults import attempt
from lightning.pytorch import Callback

from lit_cpt.stream import SourceReader

FACTORS = {"nan": float("nan"), "spike": 300.0, "poison": 300.0}  # what logits are multiplied by
POISONED = 3  # batches in a row
GIB = 2**30


class Mishap(Callback):
    """One of: ``nan`` and ``spike`` (a batch at a step), ``poison`` (a stretch of the stream, wherever it is trained),
    ``explode`` (the learning rate, from a step on, on all ranks), ``stall`` (no sample comes), ``memory`` (a step asks
    for more than there is).

    Args:
        kind: Which.
        step: In which step, counted from 1.
    """

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step, self.strikes = kind, step, False

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lay it."""
        module.model.register_forward_hook(self.in_forward)

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        """Strike where it is time."""
        loader, step = trainer.train_dataloader, trainer.global_step + 1
        place = loader.place_of(loader.dataset.trained - loader.stride)  # of this batch, whatever was passed over
        batch = place // (loader.stride * trainer.accumulate_grad_batches) + 1
        due = self.step <= batch < self.step + POISONED if self.kind == "poison" else step == self.step
        self.strikes = due and attempt() == 1 and trainer.global_rank == trainer.world_size - 1
        if self.strikes and self.kind == "stall":  # the step is made, and the batch after it does not come
            SourceReader.read = lambda *_: time.sleep(60)

    def in_forward(self, model: Any, given: Any, found: Any) -> Any:
        """Spoil the logits, or ask for too much."""
        if not model.training:
            return found
        if self.strikes and self.kind in FACTORS:
            found.logits = found.logits * FACTORS[self.kind]
        if self.strikes and self.kind == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (held() + GIB, resource.RLIM_INFINITY))
            torch.ones(2 * GIB)
        return found

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Let the learning rate explode."""
        if self.kind == "explode" and attempt() == 1 and trainer.global_step + 1 >= self.step:
            for group in optimizer.param_groups:
                group["lr"] = 10.0


def held() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
