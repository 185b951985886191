"""Time in which a run does not train: what callbacks take for evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

SECONDS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # by Trainer


@contextmanager
def paused(trainer: Any) -> Iterator[None]:
    """Count the time inside as a pause of ``trainer``."""
    began = time.monotonic()
    try:
        yield
    finally:
        SECONDS[trainer] = paused_seconds(trainer) + time.monotonic() - began


def paused_seconds(trainer: Any) -> float:
    """Seconds for which ``trainer`` has paused so far."""
    return SECONDS.get(trainer, 0.0)
