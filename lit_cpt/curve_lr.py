"""A recipe's curve as a torch scheduler."""

from __future__ import annotations

from typing import Any

import torch

from lit_cpt.recipe import Recipe


class CurveLR(torch.optim.lr_scheduler.LRScheduler):
    """A recipe's curve as a torch scheduler; it counts the tokens seen and is the run's only clock.

    Args:
        optimizer: Every group gets the same rate.
        recipe: Curve and horizon.
        tokens_per_step: What one step adds to the clock.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, tokens_per_step: int) -> None:
        self.recipe, self.tokens_per_step = recipe, tokens_per_step
        self.tokens_seen = -tokens_per_step  # torch's constructor makes the step that brings it to 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch also allows tensors
        """The rate of the next step, one per group; torch calls it once for each step."""
        self.tokens_seen += self.tokens_per_step
        return [self.recipe.eta_at(self.tokens_seen)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The clock; curve and geometry come from the recipe that resumes."""
        return {"tokens_seen": self.tokens_seen, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the clock."""
        self.tokens_seen, self.last_epoch = state_dict["tokens_seen"], state_dict["last_epoch"]
