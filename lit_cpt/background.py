"""Checkpoints that several ranks write while they train on: copied, written aside, and renamed when whole."""

from __future__ import annotations

import io
import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import StorageWriter

from lit_cpt.publishing import COMPLETE, WRITING, publish, publish_folder, publish_text

log = logging.getLogger(__name__)

# torch 2.11's stager works once, and keeps no memory either; 2.14's is known to keep both. Between them: not tried.
KEEPS_STAGER = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
REST = "meta.pt"  # where Lightning looks for what is no tensor of model and optimizer


class BackgroundWriter:
    """Writes one checkpoint at a time, each rank its part; all ranks make and call it alike.

    It keeps a copy of this rank's part in host memory (weights and moments), from the first checkpoint on.

    Args:
        open_writer: Gives what writes this rank's part into a folder.
        pinned: Whether the copies come from a GPU, through page-locked memory.
    """

    def __init__(self, open_writer: Callable[[Path], StorageWriter], pinned: bool = False) -> None:
        self.open_writer = open_writer
        self.group: Any = dist.new_group(backend="gloo")  # its collectives must not mix with those of training
        self.staging = StagingOptions(use_pinned_memory=pinned, use_shared_memory=False, use_async_staging=False,
                                      use_non_blocking_copy=pinned)
        self.stager = DefaultStager(self.staging)
        self.path: Path | None = None  # what is written, or was and is not yet waited for
        self.failure: BaseException | None = None
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.queued: list[Callable[[], object]] | None = None  # None: nothing is being written

    def start(self, state: dict[str, Any], rest: dict[str, Any], path: Path) -> None:
        """Copy everything, and begin to write it; nothing else may be unfinished.

        Args:
            state: Tensors, of which each rank holds its part.
            rest: Everything else; that of rank 0 is written.
            path: The folder that will be there once it is whole.

        Raises:
            OSError: Rank 0 could not make a folder; raised on every rank.
        """
        aside = path.with_name(WRITING.format(path.name))
        frozen = io.BytesIO()
        problem: list[OSError | None] = [None]
        if self.first:
            torch.save(rest, frozen)  # now: it holds objects that training goes on changing
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            except OSError as error:
                problem = [error]
        dist.broadcast_object_list(problem, src=0, group=self.group)
        if problem[0] is not None:
            raise problem[0]
        self.path, self.failure, self.queued = path, None, []
        self.ended.clear()
        if not KEEPS_STAGER:
            self.stager = DefaultStager(self.staging)
        writing = dcp.async_save(state, storage_writer=self.open_writer(aside), process_group=self.group,
                                 async_stager=self.stager)
        assert isinstance(writing, Future)  # the copying is over
        writing.add_done_callback(lambda done: self.end(done, frozen, aside, path))

    @property
    def first(self) -> bool:
        """Whether this rank publishes."""
        return dist.get_rank() == 0

    def end(self, writing: Future[Any], frozen: io.BytesIO, aside: Path, path: Path) -> None:
        """All ranks have written, or one failed: publish, and do what waited for it."""
        try:
            writing.result()
            if self.first:
                publish(aside / REST, lambda file: file.write(frozen.getbuffer()))
                publish_text(aside / COMPLETE, "")
                publish_folder(aside, path)
            for action in self.released():
                action()
        except BaseException as error:
            self.failure = error
            if self.first:
                shutil.rmtree(aside, ignore_errors=True)
        finally:
            self.released()
            self.ended.set()

    def released(self) -> list[Callable[[], object]]:
        """What was queued; from now on nothing is."""
        with self.lock:
            queued, self.queued = self.queued, None
        return queued or []

    def later(self, action: Callable[[], object]) -> None:
        """Do ``action`` when what is being written is whole; never, if it fails; now, if nothing is."""
        with self.lock:
            if self.queued is not None:
                self.queued.append(action)
                return
            failed = self.path is not None and self.failure is not None
        if not failed:
            action()

    def wait(self) -> tuple[Path | None, BaseException | None]:
        """Wait for what is being written: which it was (None if nothing), and why it failed (None if it did not)."""
        path = self.path
        if path is not None:
            self.ended.wait()
            self.path = None
        return path, self.failure if path is not None else None
