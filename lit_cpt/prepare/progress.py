"""How far a preparation is: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from typing import Any

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS = 30.0


class Progress:
    """One bar for all workers: share of the input bytes, documents, tokens per second, time left.

    Args:
        total_bytes: Size of the inputs on disk.
        done_bytes: What finished parts have read already.
    """

    def __init__(self, total_bytes: int, done_bytes: int = 0) -> None:
        self.total_bytes, self.bytes = total_bytes, done_bytes
        self.documents = self.tokens = 0
        self.started = self.last_line = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc="prepare",
                total=total_bytes,
                initial=done_bytes,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]",
            )

    def add(self, bytes: int, documents: int, tokens: int) -> None:
        """Count what a worker has done since it last told."""
        self.bytes += bytes
        self.documents += documents
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(self.counts(), refresh=False)
            self.bar.update(bytes)
        elif time.monotonic() - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            log.info("prepare: %.0f%%, %s", 100 * self.bytes / max(self.total_bytes, 1), self.counts())

    def counts(self) -> str:
        """Documents and tokens so far in this run, and tokens per second."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{self.documents:,} documents, {self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
