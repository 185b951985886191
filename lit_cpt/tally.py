"""Sums from one log to the next: of whole steps, on the device until they are asked for, kept across a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Amount = torch.Tensor | float


class Tally:
    """Sums of amounts by name.

    What is added counts once its step is whole: a checkpoint between two micro-batches of a step holds nothing of
    the first, as it does not hold its gradient.
    """

    def __init__(self) -> None:
        self.step: dict[str, Amount] = {}
        self.whole: dict[str, Amount] = {}

    def add(self, amounts: Mapping[str, Amount]) -> None:
        """Add a micro-batch's amounts: numbers, or tensors of the same shape each time."""
        add_to(self.step, amounts)

    def close_step(self) -> None:
        """The step is whole."""
        add_to(self.whole, self.step)
        self.step = {}

    def totals(self, reduce: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
        """The sums of whole steps since `clear`, on the CPU.

        Args:
            reduce: Sums a vector over the ranks; called once, so all ranks call this, with the same names.
            device: Where the vector is made.
        """
        if not self.whole:
            return {}
        sums = {name: torch.as_tensor(amount, dtype=torch.float32, device=device)
                for name, amount in self.whole.items()}
        vector = reduce(torch.cat([value.flatten() for value in sums.values()])).cpu()
        parts = vector.split([value.numel() for value in sums.values()])
        return {name: part.view(value.shape) for part, (name, value) in zip(parts, sums.items(), strict=True)}

    def restore(self, totals: Mapping[str, torch.Tensor], rank: int, device: torch.device) -> None:
        """Go on from saved `totals`, which the first rank holds for all: their number may have changed."""
        self.step, self.whole = {}, {name: value.to(device) * (rank == 0) for name, value in totals.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.whole = {}


def add_to(sums: dict[str, Amount], amounts: Mapping[str, Amount]) -> None:
    """Add ``amounts`` to ``sums``."""
    for name, amount in amounts.items():
        sums[name] = sums[name] + amount if name in sums else amount
