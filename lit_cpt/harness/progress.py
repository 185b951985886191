"""Says now and then how far a long evaluation is."""

from __future__ import annotations

import logging
import time

from lit_cpt.units import format_seconds

log = logging.getLogger(__name__)


class Progress:
    """Says a line every so often.

    Args:
        name: Of what is worked on.
        aloud: Whether to say anything: on the first rank only.
        seconds: Between lines.
    """

    def __init__(self, name: str, aloud: bool = True, seconds: float = 30.0) -> None:
        self.name, self.aloud, self.seconds = name, aloud, seconds
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Note that ``done`` of ``total`` are over."""
        now = time.monotonic()
        if self.aloud and now - self.said >= self.seconds:
            self.said = now
            log.info("%s: %d of %d %s, %s", self.name, done, total, what, format_seconds(now - self.began))
