"""Tells spikes from the values before them, on the device: nothing is read back to judge a step."""

from __future__ import annotations

from typing import Any

import torch

NORMAL = 1.4826  # standard deviations in a median absolute deviation of normal noise
FLOOR = 0.01  # of the median: the least deviation, so that a window of nearly equal values sees no spike in noise


class Watch:
    """Robust z-scores of a few values against a window of their past: distance from the median, in deviations.

    The deviation is the median absolute one. What enters the window is held to ``threshold`` deviations above the
    median, so that a new level is learnt after some steps and an outlier moves nothing; what is not finite never
    enters.

    Args:
        names: What the values are called.
        window: Steps that are remembered.
        threshold: Deviations above the median beyond which a value is a spike.
        least: Steps before any value is called a spike.
    """

    def __init__(self, names: tuple[str, ...], window: int = 128, threshold: float = 6.0, least: int = 16) -> None:
        self.names, self.window, self.threshold, self.least = names, window, threshold, least
        self.forget()

    def forget(self) -> None:
        """Begin anew, as where a run goes over to other data."""
        self.past = torch.full((len(self.names), self.window), torch.nan)
        self.seen = torch.zeros(len(self.names), dtype=torch.long)  # finite values, each at its place in the window

    def judge(self, values: torch.Tensor) -> torch.Tensor:
        """Z-scores of the values of a step, shape (names,); infinite where a value is not finite.

        Args:
            values: Shape (names,), fp32; `past` follows it to its device.
        """
        if self.past.device != values.device:
            self.past, self.seen = self.past.to(values.device), self.seen.to(values.device)
        median = self.past.nanmedian(dim=1).values
        spread = (self.past - median[:, None]).abs().nanmedian(dim=1).values
        scale = torch.maximum(NORMAL * spread, FLOOR * median.abs()).clamp_min(torch.finfo(torch.float32).tiny)
        known, finite = self.seen >= self.least, values.isfinite()
        score = torch.where(known, (values - median) / scale, 0.0)
        held = torch.where(known, torch.minimum(values, median + self.threshold * scale), values)
        place = (self.seen % self.window)[:, None]
        self.past.scatter_(1, place, torch.where(finite[:, None], held[:, None], self.past.gather(1, place)))
        self.seen += finite
        return torch.where(finite, score, torch.inf)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"past": self.past.tolist(), "seen": self.seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with this past; one of another window is forgotten."""
        past = torch.tensor(state["past"])
        if past.shape == self.past.shape:
            self.past, self.seen = past, torch.tensor(state["seen"])
