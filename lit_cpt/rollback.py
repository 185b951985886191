"""Going back: a run that was harmed by its data goes on from before, and passes over what harmed it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


class RolledBack(BaseException):
    """Training is to go on from an earlier checkpoint. No error: nothing that was trained since is worth saving.

    Args:
        checkpoint: From which.
        stretch: First global batch of the stream that is to be passed over, and one past the last.
    """

    spoilt = True  # the weights of now: no checkpoint is made of them

    def __init__(self, checkpoint: Path, stretch: tuple[int, int]) -> None:
        super().__init__(f"go on from {checkpoint}, and pass over global batches {stretch[0]} to {stretch[1]}")
        self.checkpoint, self.stretch = checkpoint, stretch


class Unstable(BaseException):
    """Training was given up.

    Args:
        said: Why, and from where to go on.
        checkpoint: The newest whole one from before the harm; what was saved since is no place to go on from.
    """

    spoilt = True

    def __init__(self, said: str, checkpoint: Path | None = None) -> None:
        super().__init__(said)
        self.checkpoint = checkpoint


def persevere(fit: Callable[[], object], go_back: Callable[[Path, tuple[int, int]], None]) -> None:
    """Call ``fit`` until it returns; each time it is `RolledBack`, ``go_back`` prepares the next call.

    Args:
        fit: Trains.
        go_back: Takes checkpoint and stretch.
    """
    while True:
        try:
            fit()
            return
        except RolledBack as asked:
            log.warning("rolled back: %s", asked)
            go_back(asked.checkpoint, asked.stretch)
