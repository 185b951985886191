"""Saves a run where other runs will go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_cpt.checkpoints import save_now


class BranchPointCallback(Callback):
    """Saves after each of the given optimizer steps a checkpoint that is kept for good.

    Another run goes on from it with ``--ckpt_path FILE --allow-change ...``, as the arms of `lit-cpt ablate` do.

    Args:
        steps: Optimizer steps made, at least 1 each; those past the end are never reached.

    Raises:
        ValueError: A step below 1.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        if wrong := [step for step in steps if step < 1]:
            raise ValueError(f"steps={list(steps)}: {wrong[0]} is below 1; before the first step there is nothing to "
                             "go on from.")
        self.steps = frozenset(steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if this step is one of them, and whole."""
        if trainer.global_step in self.steps and not trainer.fit_loop._should_accumulate():
            save_now(trainer, "branch")
