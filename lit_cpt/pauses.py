"""Time in which a run does not train: what callbacks take for evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

SECONDS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # by Trainer


@contextmanager
def paused(trainer: Any, what: str | None = None) -> Iterator[None]:
    """Count the time inside as a pause of ``trainer``.

    Args:
        trainer: The Trainer that waits.
        what: What it waits for, such as ``evaluating``; callbacks with a ``show_pause`` are told, and None at its end.
    """
    began = time.monotonic()
    if what is not None:
        show(trainer, what)
    try:
        yield
    finally:
        SECONDS[trainer] = paused_seconds(trainer) + time.monotonic() - began
        if what is not None:
            show(trainer, None)


def paused_seconds(trainer: Any) -> float:
    """Seconds for which ``trainer`` has paused so far."""
    return SECONDS.get(trainer, 0.0)


def show(trainer: Any, what: str | None) -> None:
    """Tell the callbacks that show it what ``trainer`` waits for."""
    for callback in trainer.callbacks:
        if hasattr(callback, "show_pause"):
            callback.show_pause(what)
