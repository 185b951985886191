"""Waiting for a batch: told while it lasts, and given up in the end, so that a dead disk is no silence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

log = logging.getLogger(__name__)

TOLD = 60.0  # seconds of waiting for one batch after which it is told; after twice as many, again


class Stalled(RuntimeError):
    """No batch came within the time that one may take."""


def patient(batches: Iterator[Any], seconds: float, awaited: Callable[[], str]) -> Generator[Any, None, None]:
    """Hand on ``batches``, which a thread of its own fetches: whoever waits for one is free to speak and to give up.

    A read that holds Python's lock, such as one from a mapped file whose disk is gone, holds the waiting too; in a
    loader's worker it does not.

    Args:
        batches: Where they come from.
        seconds: That one batch may take; 0 waits for ever.
        awaited: Says what is waited for.

    Raises:
        Stalled: A batch took longer.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    found: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    thread = Thread(target=fetch, args=(batches, asked, found), name="fetch", daemon=True)
    thread.start()
    try:
        while True:
            asked.put(True)
            batch, error = wait(found, seconds or math.inf, awaited)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        asked.put(False)
        thread.join(timeout=1.0)  # at once, unless its read hangs


def fetch(batches: Iterator[Any], asked: SimpleQueue[bool],
          found: SimpleQueue[tuple[Any, BaseException | None]]) -> None:
    """Answer each question with a batch, or with what came instead, until there is none."""
    while asked.get():
        try:
            found.put((next(batches), None))
        except BaseException as error:
            found.put((None, error))


def wait(found: SimpleQueue[Any], seconds: float, awaited: Callable[[], str]) -> Any:
    """The answer, once it is there."""
    began, due = time.monotonic(), TOLD
    while True:
        try:
            return found.get(timeout=max(0.0, began + min(due, seconds) - time.monotonic()))
        except Empty:
            if due >= seconds:
                raise Stalled(f"no batch came within {seconds:g} s: {awaited()}. Look at the disk or mount that holds "
                              "these sources; data.timeout says how long a batch may take.") from None
            log.warning("waited %.0f s for a batch: %s", due, awaited())
            due *= 2
