"""Lightning callbacks; each answers one question and works alone. Importing one imports no other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "lit_cpt.callbacks":
    raise ImportError(f"imported as {__name__!r}: run `pip install -e .`, then import `lit_cpt.callbacks`.")

if TYPE_CHECKING:
    from lit_cpt.callbacks.adaptive_blend import AdaptiveBlendCallback
    from lit_cpt.callbacks.branch_point import BranchPointCallback
    from lit_cpt.callbacks.dashboard import DashboardCallback
    from lit_cpt.callbacks.eval import EvalCallback
    from lit_cpt.callbacks.forgetting import ForgettingCallback
    from lit_cpt.callbacks.graceful_stop import GracefulStopCallback
    from lit_cpt.callbacks.phase_switch import PhaseSwitchCallback
    from lit_cpt.callbacks.run_checkpoint import RunCheckpointCallback
    from lit_cpt.callbacks.run_progress import RunProgressBar
    from lit_cpt.callbacks.stability import StabilityCallback
    from lit_cpt.callbacks.throughput import ThroughputCallback
    from lit_cpt.callbacks.token_ledger import TokenLedgerCallback

HOMES = {"AdaptiveBlendCallback": "adaptive_blend", "BranchPointCallback": "branch_point",
         "DashboardCallback": "dashboard", "EvalCallback": "eval", "ForgettingCallback": "forgetting",
         "GracefulStopCallback": "graceful_stop", "PhaseSwitchCallback": "phase_switch",
         "RunCheckpointCallback": "run_checkpoint", "RunProgressBar": "run_progress",
         "StabilityCallback": "stability", "ThroughputCallback": "throughput", "TokenLedgerCallback": "token_ledger"}
__all__ = ["AdaptiveBlendCallback", "BranchPointCallback", "DashboardCallback", "EvalCallback", "ForgettingCallback",
           "GracefulStopCallback", "PhaseSwitchCallback", "RunCheckpointCallback", "RunProgressBar",
           "StabilityCallback", "ThroughputCallback", "TokenLedgerCallback"]


def __getattr__(name: str) -> Any:
    """Import a callback when it is first asked for."""
    if name not in HOMES:
        raise AttributeError(f"lit_cpt.callbacks has no {name!r}; it has {', '.join(HOMES)}.")
    return getattr(importlib.import_module(f"lit_cpt.callbacks.{HOMES[name]}"), name)
