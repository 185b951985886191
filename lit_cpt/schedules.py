"""Learning-rate curves over a run's progress, each with its inverse.

A curve maps progress (tokens seen over the token horizon, 0 to 1) to a learning rate ``eta``, and a
learning rate back to the progress at which the curve falls to it. The inverse is what makes a switch
"when LR = eta_max / 5" known to the step before training. Torch-free: the module's ``LRScheduler`` is
one thin adapter over these.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal


class Curve(ABC):
    """A learning rate as a function of progress. Subclass it for a curve of your own: ``eta`` is enough."""

    eta_max: float

    @abstractmethod
    def eta(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1].

        Raises:
            ValueError: ``progress`` is outside [0, 1].
        """

    @property
    def peak(self) -> float:
        """Progress from which the curve only falls (0 unless it warms up)."""
        return 0.0

    def progress(self, eta: float) -> float:
        """Progress at which the curve, past its peak, first falls to ``eta`` (to 1e-15, by bisection).

        Curves with a closed form override this.

        Raises:
            ValueError: The curve never falls to ``eta``.
        """
        low, high = self.peak, 1.0
        self.check_reached(eta, self.eta(high))
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.eta(middle) <= eta else (middle, high)
        return self.peak if self.eta(self.peak) <= eta else high

    def check_reached(self, eta: float, bottom: float) -> None:
        """Refuse an ``eta`` outside ``bottom`` to ``eta_max`` (one part in 10^9 of slack for rounding)."""
        if not bottom * (1 - 1e-9) <= eta <= self.eta_max * (1 + 1e-9):
            raise ValueError(
                f"eta={eta:g} is never reached: this curve runs from {self.eta_max:g} to {bottom:g}. "
                "Lower eta_min, or trigger on tokens instead."
            )


def check_progress(progress: float) -> None:
    """Refuse a progress outside [0, 1]."""
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress={progress} is outside [0, 1]: it is tokens seen over the token horizon.")


def check_rate(name: str, rate: float) -> None:
    """Refuse a peak rate that is not a positive finite number."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{name}={rate} must be a positive finite number, such as 4.5e-5.")


@dataclass(frozen=True)
class Decay(Curve):
    """A curve that falls from ``eta_max`` at progress 0 to ``eta_min`` at progress 1.

    Args:
        eta_max: Rate at the start; continued pretraining starts at the rate where pretraining ended.
        eta_min: Rate at the end, in [0, eta_max]; the paper's floor, ``eta_max / 100``, where not given.
    """

    eta_max: float
    eta_min: float | None = None

    def __post_init__(self) -> None:
        check_rate("eta_max", self.eta_max)
        if self.eta_min is None:
            object.__setattr__(self, "eta_min", self.eta_max / 100)
        if not 0.0 <= self.bottom <= self.eta_max:
            raise ValueError(f"eta_min={self.eta_min} must lie in [0, eta_max={self.eta_max:g}].")

    @property
    def bottom(self) -> float:
        """``eta_min`` as a number."""
        return float(self.eta_min)  # type: ignore[arg-type]  # __post_init__ has filled it

    @abstractmethod
    def height(self, progress: float) -> float:
        """The curve's shape: 1 at progress 0, 0 at progress 1, never rising."""

    @abstractmethod
    def fall(self, height: float) -> float:
        """Inverse of `height`: the first progress at which the shape is down to ``height`` in [0, 1]."""

    def eta(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1]."""
        check_progress(progress)
        return self.bottom + (self.eta_max - self.bottom) * self.height(progress)

    def progress(self, eta: float) -> float:
        """Progress at which the curve falls to ``eta``: the exact inverse of `eta`."""
        self.check_reached(eta, self.bottom)
        if eta >= self.eta_max or self.bottom == self.eta_max:
            return 0.0
        return self.fall(max(0.0, (eta - self.bottom) / (self.eta_max - self.bottom)))


@dataclass(frozen=True)
class Cosine(Decay):
    """Half a cosine from ``eta_max`` to ``eta_min``: the paper's curve (arXiv 2407.07263).

    >>> round(Cosine(1e-4, 1e-6).progress(1e-4 / 5), 4)
    0.7113
    """

    def height(self, progress: float) -> float:
        """(1 + cos(pi * progress)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def fall(self, height: float) -> float:
        """arccos(2 * height - 1) / pi."""
        return math.acos(2.0 * height - 1.0) / math.pi


@dataclass(frozen=True)
class Linear(Decay):
    """A straight line from ``eta_max`` to ``eta_min``."""

    def height(self, progress: float) -> float:
        """1 - progress."""
        return 1.0 - progress

    def fall(self, height: float) -> float:
        """1 - height."""
        return 1.0 - height


@dataclass(frozen=True)
class WSD(Decay):
    """Warm-up, stable, decay without its warm-up: ``eta_max``, then a fall over the last part (2404.06395).

    Args:
        eta_max: Rate of the stable part.
        eta_min: Rate at the end.
        decay: Share of the horizon that decays, in (0, 1].
        shape: How it falls; ``1-sqrt`` as in Haegele et al. (2405.18392).
    """

    decay: float = 0.2
    shape: Literal["linear", "1-sqrt", "cosine"] = "1-sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay={self.decay} must lie in (0, 1]: it is the share of the horizon that decays.")
        if self.shape not in ("linear", "1-sqrt", "cosine"):
            raise ValueError(f"shape={self.shape!r} is unknown: choose 'linear', '1-sqrt' or 'cosine'.")

    def height(self, progress: float) -> float:
        """1 until the decay starts, then the shape."""
        along = max(0.0, progress - (1.0 - self.decay)) / self.decay
        along = min(along, 1.0)
        if self.shape == "linear":
            return 1.0 - along
        return 1.0 - math.sqrt(along) if self.shape == "1-sqrt" else 0.5 * (1.0 + math.cos(math.pi * along))

    def fall(self, height: float) -> float:
        """Start of the decay plus the inverse of its shape."""
        along = {"linear": 1.0 - height, "1-sqrt": (1.0 - height) ** 2,
                 "cosine": math.acos(2.0 * height - 1.0) / math.pi}[self.shape]
        return (1.0 - self.decay) + self.decay * along


@dataclass(frozen=True)
class InverseSqrt(Decay):
    """``eta_max / sqrt(1 + k * progress)``, with k such that it ends at ``eta_min`` (which must be above 0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.bottom < self.eta_max:
            raise ValueError(f"eta_min={self.eta_min} must lie in (0, eta_max={self.eta_max:g}): "
                             "an inverse square root never reaches 0.")

    @property
    def stretch(self) -> float:
        """The k of the formula."""
        return (self.eta_max / self.bottom) ** 2 - 1.0

    def height(self, progress: float) -> float:
        """The formula, rescaled to [0, 1]."""
        rate = self.eta_max / math.sqrt(1.0 + self.stretch * progress)
        return (rate - self.bottom) / (self.eta_max - self.bottom)

    def fall(self, height: float) -> float:
        """((eta_max / eta)^2 - 1) / k."""
        rate = self.bottom + height * (self.eta_max - self.bottom)
        return min(1.0, ((self.eta_max / rate) ** 2 - 1.0) / self.stretch)


@dataclass(frozen=True)
class Constant(Curve):
    """The same rate throughout."""

    eta_max: float

    def __post_init__(self) -> None:
        check_rate("eta_max", self.eta_max)

    def eta(self, progress: float) -> float:
        """``eta_max``."""
        check_progress(progress)
        return self.eta_max

    def progress(self, eta: float) -> float:
        """0 for ``eta_max``; any other rate is never reached."""
        self.check_reached(eta, self.eta_max)
        return 0.0


@dataclass(frozen=True)
class Rewarm(Curve):
    """A straight climb from the rate where pretraining ended to ``curve.eta_max``, then ``curve`` (2308.04014).

    Args:
        curve: What follows the climb, over the rest of the horizon.
        fraction: Share of the horizon that climbs, in (0, 1).
        eta_start: Rate at progress 0, in [0, curve.eta_max].
    """

    curve: Curve
    fraction: float
    eta_start: float

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise ValueError(
                f"fraction={self.fraction} must lie in (0, 1): it is the share of the horizon that climbs."
            )
        if not 0.0 <= self.eta_start <= self.curve.eta_max:
            raise ValueError(f"eta_start={self.eta_start} must lie in [0, eta_max={self.curve.eta_max:g}].")

    @property
    def eta_max(self) -> float:  # type: ignore[override]  # derived here, a field elsewhere
        """Peak rate: the inner curve's."""
        return self.curve.eta_max

    @property
    def peak(self) -> float:
        """End of the climb (and of the inner curve's own, if it has one)."""
        return self.fraction + (1.0 - self.fraction) * self.curve.peak

    def eta(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1]."""
        check_progress(progress)
        if progress < self.fraction:
            return self.eta_start + (self.eta_max - self.eta_start) * progress / self.fraction
        return self.curve.eta(min(1.0, (progress - self.fraction) / (1.0 - self.fraction)))

    def progress(self, eta: float) -> float:
        """Progress at which the curve falls to ``eta`` after the climb."""
        return self.fraction + (1.0 - self.fraction) * self.curve.progress(eta)


@dataclass(frozen=True)
class Warmup(Rewarm):
    """`Rewarm` from 0: for training from scratch. The paper's recipe has none."""

    eta_start: float = 0.0
