"""A learning-rate curve of one's own: a class in any file that Python finds, named in YAML by its import path."""

from dataclasses import dataclass

from lit_cpt.schedules import Curve


@dataclass(frozen=True)
class Exponential(Curve):
    """Falls by the same factor in every step, from ``eta_max`` to ``eta_min``."""

    eta_max: float
    eta_min: float

    def eta(self, progress: float) -> float:
        """eta_max * (eta_min / eta_max) ^ progress."""
        return self.eta_max * (self.eta_min / self.eta_max) ** progress
