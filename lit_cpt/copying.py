"""Copies a run's checkpoints to its mirror while training goes on, each rank the parts that it wrote."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lit_cpt.mirror import Index, Mirror, opened_index, write_index
from lit_cpt.publishing import COMPLETE

WAIT = timedelta(days=365)  # of a rank for what rank 0 has next; where rank 0 is gone the connection breaks

log = logging.getLogger(__name__)


class Copier:
    """Copies one checkpoint at a time, the newest first, and deletes old ones once a newer one is in the mirror.

    All ranks make and finish it alike. A thread of rank 0 decides what is next, and tells those of the others.
    A copy that fails is told in the log and tried again with the next checkpoint: training does not end.

    Args:
        mirror: Where to.
        last: Name of the checkpoint that training goes on from, None for a new run.

    Raises:
        FileExistsError: The mirror holds another run; this and the others are raised on every rank.
        Unreachable: The store did not answer.
        ValueError: The store refused.
    """

    def __init__(self, mirror: Mirror, last: str | None) -> None:
        self.objects = mirror.objects
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self.group: Any = dist.new_group(backend="gloo", timeout=WAIT) if several else None
        self.index = self._opened(last)
        self.changed = threading.Condition()
        self.waiting: dict[str, Path] = {}  # what is to be copied, in the order it was saved
        self.failed: dict[str, Path] = {}
        self.busy: Path | None = None
        self.retired: dict[str, Callable[[], object] | None] = {}  # to be deleted, and what is put off until then
        self.best, self.newest, self.closing, self.put_off = self.index.best, last, False, False
        self.thread = threading.Thread(target=self._follow if self.rank else self._lead, name="mirror", daemon=True)
        self.thread.start()

    # What the callback asks for; on rank 0, which alone keeps the books ------------------------------------------

    def add(self, path: Path) -> None:
        """Copy this checkpoint, which is whole."""
        with self.changed:
            self.waiting.update({**self.failed, path.name: path})
            self.failed, self.newest, self.put_off = {}, path.name, False
            self.retired.pop(path.name, None)
            self.changed.notify_all()

    def retire(self, path: Path, delete: Callable[[], object]) -> None:
        """Delete a checkpoint in the mirror, and here by ``delete``, though not while it is being copied."""
        with self.changed:
            for places in (self.waiting, self.failed):
                places.pop(path.name, None)
            self.retired[path.name] = delete if (held := self.busy == path) else None
            self.changed.notify_all()
        if not held:
            delete()

    def prefer(self, path: Path) -> None:
        """Let the mirror name ``path`` as the best."""
        with self.changed:
            self.best = path.name
            self.changed.notify_all()

    def finish(self) -> None:
        """Wait until everything is copied or has failed; all ranks call this, and then no more of the rest."""
        with self.changed:
            self.closing = True
            if self.waiting or self.busy:
                log.info("waiting until %s holds the newest checkpoint", self.objects.url)
            self.changed.notify_all()
        while self.thread.is_alive():
            self.thread.join(1.0)  # so that a signal is heard
        self.tell_missing()

    def tell_missing(self) -> None:
        """Say what is not in the mirror."""
        with self.changed:
            missing = [*self.failed, *self.waiting, *([self.busy.name] if self.busy else [])]
        if missing:
            log.error("not in %s: %s; whole in the run's folder, and copied when the run is resumed", self.objects.url,
                      ", ".join(missing))

    # The thread of rank 0 ----------------------------------------------------------------------------------------

    def _opened(self, last: str | None) -> Index:
        """The index, on every rank."""
        told: list[Any] = [None]
        if self.rank == 0:
            try:
                index = opened_index(self.objects)
                if last is None and index.checkpoints:
                    raise FileExistsError(f"{self.objects.url} holds the checkpoints of another run: name a folder of "
                                          "its own for this one.")
                told = [Index(index.checkpoints, last, index.best)]
            except (OSError, ValueError) as error:
                told = [error]
        if self.group is not None:
            dist.broadcast_object_list(told, src=0, group=self.group)
        if isinstance(told[0], Index):
            return told[0]
        raise told[0]

    def _lead(self) -> None:
        try:
            while self._awaited():
                if self.busy is None or self._copied(self.busy):
                    self._tidy()
        except Exception:
            log.exception("nothing is copied to %s any more", self.objects.url)
        finally:
            with suppress(Exception):  # the others may be gone
                self._tell(None)

    def _awaited(self) -> bool:
        """Wait for something to do; False when there is nothing more to come."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closing or self._untidy())
            if self.waiting:
                self.busy = self.waiting.pop(next(reversed(self.waiting)))
            return self.busy is not None or self._untidy()

    def _untidy(self) -> bool:
        """Whether there is something to delete or to name, and a newer checkpoint in the mirror."""
        there = self.index.checkpoints
        better = self.best != self.index.best and self.best in there
        return self.newest in there and not self.put_off and (better or bool(self.retired))

    def _copied(self, path: Path) -> bool:
        """Copy a checkpoint; whether it is in the mirror."""
        began, failure = time.monotonic(), None
        try:
            if path.name in self.index.checkpoints:  # of a past that training went back from
                self._write(self.index.without(path.name))
            files = self._sent(path)
            self._write(self.index.having(path.name, files))
            log.info("checkpoint %s is in %s (%.1f s)", path.name, self.objects.url, time.monotonic() - began)
        except OSError as error:
            failure = error
            log.error("checkpoint %s is NOT in %s: %s It is whole in %s; training goes on, and the copy is tried again "
                      "with the next checkpoint.", path.name, self.objects.url, error, path.parent)
        with self.changed:
            self.busy = None
            if failure is not None:
                late = self.waiting if self.closing else {}  # they would fail too, each after as long a time
                self.failed = {name: one for name, one in {**self.failed, path.name: path, **late}.items()
                               if name not in self.retired}
                late.clear()
            delete = self.retired.get(path.name)
        if delete is not None:
            delete()
        return failure is None

    def _sent(self, path: Path) -> dict[str, int]:
        """Have every rank send its parts; the checkpoint's objects and their bytes.

        Raises:
            OSError: A rank could not.
        """
        self._tell(path)
        outcomes = self._gathered(self._send(path))
        if problems := [one for one in outcomes if isinstance(one, str)]:
            raise OSError(problems[0])
        files = {name: size for one in outcomes for name, size in one.items()}
        if path.is_dir():  # last, so that no tool takes half a copy of the folder for a checkpoint
            self.objects.put(path / COMPLETE, f"{path.name}/{COMPLETE}")
            files[f"{path.name}/{COMPLETE}"] = (path / COMPLETE).stat().st_size
        return files

    def _tidy(self) -> None:
        """Delete what is retired, the index first, and name the best."""
        with self.changed:
            if not self._untidy():
                return
            gone, best = list(self.retired), self.best
        try:
            index = self.index.without(*gone)
            self._write(Index(index.checkpoints, index.last, best if best in index.checkpoints else index.best))
            for name in gone:
                self.objects.delete(name)
                with self.changed:
                    self.retired.pop(name, None)
        except OSError as error:
            self.put_off = True  # until the next checkpoint
            log.warning("old checkpoints could not be deleted from %s: %s", self.objects.url, error)

    def _write(self, index: Index) -> None:
        write_index(self.objects, index)
        with self.changed:
            self.index = index

    # What every rank does ----------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Send what rank 0 says, until it says that it was the last."""
        try:
            while (path := self._tell(None)) is not None:
                self._gathered(self._send(path))
        except Exception as error:
            log.debug("rank 0 is gone: %s", error)

    def _tell(self, path: Path | None) -> Path | None:
        """What rank 0 tells all others."""
        told: list[Path | None] = [path]
        if self.group is not None:
            dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def _gathered(self, mine: dict[str, int] | str) -> list[Any]:
        """What came of it on each rank."""
        outcomes: list[Any] = [mine] * self.ranks
        if self.group is not None:
            dist.all_gather_object(outcomes, mine, group=self.group)
        return outcomes

    def _send(self, path: Path) -> dict[str, int] | str:
        """Upload this rank's parts: their names and bytes, or what went wrong."""
        try:
            files = {name: path.parent / name for name in parts_of(path, self.rank, self.ranks)}
            for name, file in files.items():
                self.objects.put(file, name)
            return {name: file.stat().st_size for name, file in files.items()}
        except Exception as error:
            return f"{error}"


def parts_of(path: Path, rank: int, ranks: int) -> list[str]:
    """The files of a checkpoint that a rank wrote, beginning with the checkpoint's own name; without `COMPLETE`."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [str(file.relative_to(path.parent)) for file in files
            if file.name != COMPLETE and writer_of(file) % ranks == rank]


def writer_of(file: Path) -> int:
    """The rank that wrote a file of a checkpoint: ``__3_0.distcp`` is of rank 3, all else of rank 0."""
    return int(file.name.split("_")[2]) if file.suffix == ".distcp" else 0
