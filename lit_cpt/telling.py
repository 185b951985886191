"""How callbacks tell what they found, in any Lightning project: in a run's diary, to its loggers, to each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch


def steps_between_logs(trainer: Any) -> int:
    """Optimizer steps between two at which ``trainer`` logs; 0 if it logs at none."""
    return int(trainer.log_every_n_steps)


def log_due(trainer: Any) -> bool:
    """Whether the batch that was just trained ends a step at which ``trainer`` logs."""
    every = steps_between_logs(trainer)
    return not trainer.fit_loop._should_accumulate() and every > 0 and trainer.global_step % every == 0


def rate(trainer: Any) -> float:
    """Learning rate of the next step: the highest of the first optimizer's parameter groups."""
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)


def record(module: Any, kind: str, **fields: Any) -> None:
    """Add an event to the run's diary, where the module keeps one."""
    if (keep := getattr(module, "record", None)) is not None:
        keep(kind, **fields)


def logged(trainer: Any, pattern: str) -> dict[str, float]:
    """The values logged last whose whole names match ``pattern``, by the part that it picks out."""
    found = [(re.fullmatch(pattern, name), value) for name, value in trainer.callback_metrics.items()]
    return {match[1]: float(value) for match, value in found if match}


def show(trainer: Any, values: Mapping[str, float]) -> None:
    """Let others find ``values`` in ``trainer.callback_metrics``, at once."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def publish(trainer: Any, values: Mapping[str, float]) -> None:
    """Give ``values`` to the loggers, at the steps made, and `show` them."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)
    show(trainer, values)
