"""Tells spikes from the values before them, on the device: nothing is read back to judge a step."""

from __future__ import annotations

from typing import Any

import torch

NORMAL = 1.4826  # standard deviations in a median absolute deviation of normal noise
FLOOR = 0.01  # of the median: the least deviation, so that a window of nearly equal values sees no spike in noise
TINY = torch.finfo(torch.float32).tiny
STRICT = 2.0  # a value whose logarithm is judged is a spike beyond so many times the threshold


class Watch:
    """Robust z-scores of a few values against a window of their past: distance from the median, in deviations.

    The deviation is the median absolute one. What enters the window is held to ``threshold`` deviations above the
    median, so that a new level is learnt after some steps and an outlier moves nothing; what is not finite never
    enters. The norm of a healthy gradient is skewed (in a small run from scratch up to twelve times its median, with no
    trace in the loss): of such a value the logarithm is judged, and by twice the threshold.

    Args:
        names: What the values are called.
        window: Steps that are remembered.
        threshold: Deviations above the median beyond which a value is a spike.
        least: Steps before any value is called a spike.
        skewed: Those of the names whose logarithm is judged.
    """

    def __init__(self, names: tuple[str, ...], window: int = 128, threshold: float = 6.0, least: int = 16,
                 skewed: tuple[str, ...] = ()) -> None:
        self.names, self.window, self.least = names, window, least
        self.logs = torch.tensor([name in skewed for name in names])
        self.limits = torch.where(self.logs, STRICT * threshold, threshold)  # shape (names,), in deviations
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
            for name in ("past", "seen", "logs", "limits"):
                setattr(self, name, getattr(self, name).to(values.device))
        values = torch.where(self.logs, values.clamp_min(TINY).log(), values)
        median = self.past.nanmedian(dim=1).values
        spread = (self.past - median[:, None]).abs().nanmedian(dim=1).values
        scale = torch.maximum(NORMAL * spread, FLOOR * torch.where(self.logs, 1.0, median.abs())).clamp_min(TINY)
        known, finite = self.seen >= self.least, values.isfinite()
        score = torch.where(known, (values - median) / scale, 0.0)
        held = torch.where(known, torch.minimum(values, median + self.limits * scale), values)
        place = (self.seen % self.window)[:, None]
        self.past.scatter_(1, place, torch.where(finite[:, None], held[:, None], self.past.gather(1, place)))
        self.seen += finite
        return torch.where(finite, score, torch.inf)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"past": self.past.tolist(), "seen": self.seen.tolist(), "logs": self.logs.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with this past; one of another window, or of other logarithms, is forgotten."""
        past = torch.tensor(state["past"])
        if past.shape == self.past.shape and state.get("logs") == self.logs.tolist():
            self.past, self.seen = past, torch.tensor(state["seen"])
