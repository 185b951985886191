"""Chunks of remote sources on this node: fetched ahead, held while they are read, within a budget of bytes.

litdata's own staging thread assumes that a worker visits each chunk once and in order; read in any other order
it loses requests, for 30 s each. Here a reader says which chunks it will need (`ChunkStore.expect`), which it
needs now (`ChunkStore.hold`) and which no more (`ChunkStore.release`), and litdata reads the local folder as
if it had always been there. What lies on the disk, and who may delete it, is `lit_cpt.shelf`'s.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lit_cpt.remote import Fetcher, RemoteSource, Storage, Unreachable
from lit_cpt.shelf import Key, Shelf, allow_open_files, unlock

LOOK_AGAIN_SECONDS = 1.0  # after which a full disk is looked at again: other processes release without a word
BEGINNING = threading.Lock()

log = logging.getLogger(__name__)


@dataclass
class Figures:
    """What a store of one process has done so far.

    Attributes:
        waits: Calls of `ChunkStore.hold` that had to wait.
        wait_seconds: For how long, together.
        longest_wait_seconds: The longest of them.
        downloads: Chunks that this process fetched.
        downloaded_bytes: Their bytes.
        peak_bytes: Most bytes on the disk, fetched or spoken for, of all processes that share the folders.
    """

    waits: int = 0
    wait_seconds: float = 0.0
    longest_wait_seconds: float = 0.0
    downloads: int = 0
    downloaded_bytes: int = 0
    peak_bytes: int = 0

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        self.waits += 1
        self.wait_seconds += seconds
        self.longest_wait_seconds = max(self.longest_wait_seconds, seconds)


@dataclass
class Hold:
    """A pinned chunk, and how often it is held."""

    pin: int
    count: int = 0


class ChunkStore:
    """Keeps chunks of remote sources in their local folders, as many as the budget allows.

    Threads, locks and clients are made in the process that first asks for a chunk, so a store may be built
    before workers fork, and pickled. Processes may share the folders; then each names all of them.

    Args:
        folders: Source to its URL and its local folder (`lit_cpt.remote.stage_metadata`).
        budget: Bytes that all chunks may take; `check_budget` says how many are needed.
        storage: How to reach the store.
        threads: Chunks fetched ahead at once.

    Attributes:
        figures: What was waited for and downloaded, in this process.
    """

    def __init__(self, folders: Mapping[str, RemoteSource], budget: int, storage: Storage, threads: int = 4) -> None:
        if not folders:
            raise ValueError("folders={} names no source: a store needs at least one.")
        for name, value in (("budget", budget), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.folders, self.budget, self.storage, self.threads = dict(folders), budget, storage, threads
        self._forget_all()

    def _forget_all(self) -> None:
        self.figures = Figures()
        self._owner = 0  # the process whose threads, locks and clients these are
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._held: dict[Key, Hold] = {}
        self._expected: dict[Key, int | None] = {}  # in order, with the pin of those that lie here
        self._urgent: deque[Key] = deque()
        self._waiting: Counter[Key] = Counter()
        self._flying: set[Key] = set()
        self._failed: dict[Key, BaseException] = {}
        self._placing: Key | None = None  # what a thread seeks room for: one at a time, or their order would be lost
        self._full = False  # no room for what is expected next

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folders", "budget", "storage", "threads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_all()

    def expect(self, source: str, chunks: Sequence[int]) -> None:
        """Say which chunks will be needed next, in this order: they are fetched while there is room.

        Each stays here until the next `hold` of it, or until `abandon`.
        """
        self._begin()
        with self._changed:
            for number in chunks:
                key = self._key(source, number)
                if self._expected.get(key) is None:
                    self._expected[key] = self._shelf.pin(key)
            self._woken()

    def hold(self, source: str, chunk: int) -> None:
        """Wait until a chunk lies whole in the local folder; it stays there until released as often as held.

        Raises:
            Unreachable: It cannot be had, or not within ``retry_seconds``.
        """
        self._begin()
        key, begun = self._key(source, chunk), time.monotonic()
        with self._changed:
            waited = False
            while not self._take(key):
                waited = True
                self._demand(key, begun + self.storage.retry_seconds)
            self._held[key].count += 1
            if waited:
                self.figures.waited(time.monotonic() - begun)

    def release(self, source: str, chunk: int) -> None:
        """Undo one `hold`."""
        key = self._key(source, chunk)
        with self._changed:
            if self._owner != os.getpid() or key not in self._held:
                raise ValueError(f"chunk {chunk} of source {source!r} is released, but this process does not hold it.")
            self._held[key].count -= 1
            if not self._held[key].count:
                unlock(self._held.pop(key).pin)
                self._woken()

    def abandon(self) -> None:
        """Forget what is expected, because the plan has changed."""
        if self._owner == os.getpid():
            with self._changed:
                while self._expected:
                    self._unpin(self._expected.popitem()[1])
                self._woken()

    def close(self) -> None:
        """Let go of everything and end the threads, once what they fetch has come; it begins anew when asked again."""
        if self._owner == os.getpid():
            self.abandon()
            with self._changed:
                while self._held:
                    unlock(self._held.popitem()[1].pin)
                self._owner = 0
                self._stop.set()
                self._shelf.close()
                self._urgent.clear()
                self._flying.clear()
                self._changed.notify_all()
            atexit.unregister(self._end)

    def _begin(self) -> None:
        if self._owner != os.getpid():
            with BEGINNING:
                if self._owner != os.getpid():
                    self._start()

    def _start(self) -> None:
        figures = self.figures if self._owner == 0 else Figures()
        self._forget_all()
        self.figures = figures
        self._shelf = Shelf({source: place.folder for source, place in self.folders.items()}, self.budget)
        self._fetchers = {source: Fetcher(place.url, self.storage, chunks=True)
                          for source, place in self.folders.items()}
        allow_open_files()
        self._crew = [threading.Thread(target=self._work, args=(self._shelf, self._stop, number == 0), daemon=True,
                                       name=f"chunks-{number}") for number in range(self.threads + 1)]
        for thread in self._crew:
            thread.start()
        atexit.register(self._end)
        self._owner = os.getpid()

    def _end(self) -> None:
        """Close, and see the threads end before the interpreter does."""
        crew = self._crew
        self.close()
        for thread in crew:
            thread.join(timeout=5.0)

    def _key(self, source: str, chunk: int) -> Key:
        if source not in self.folders:
            raise ValueError(f"source {source!r} is not among the store's: {', '.join(self.folders)}.")
        if self._owner == os.getpid() and not 0 <= chunk < len(self._shelf.chunks[source]):
            raise ValueError(f"source {source!r} has no chunk {chunk}: it has {len(self._shelf.chunks[source])}.")
        return source, int(chunk)

    def _take(self, key: Key) -> bool:
        """Pin a chunk if it lies here; whether it does."""
        pin = self._expected.pop(key, None)
        if key in self._held:
            self._unpin(pin)
            return True
        if pin is None:
            pin = self._shelf.pin(key)
        if pin is not None:
            self._held[key] = Hold(pin)
        return pin is not None

    def _demand(self, key: Key, deadline: float) -> None:
        """Ask for a chunk at once, and wait until something has changed."""
        if key not in self._flying and key not in self._urgent:
            self._urgent.append(key)
            self._changed.notify_all()
        self._waiting[key] += 1
        try:
            if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                raise Unreachable(f"chunk {key[1]} of source {key[0]!r} did not come from {self.folders[key[0]].url} "
                                  f"in {self.storage.retry_seconds:g} s. To wait longer, raise retry_seconds.")
            if self._stop.is_set():
                raise Unreachable(f"chunk {key[1]} of source {key[0]!r} was waited for when the store was closed.")
            if key in self._failed:
                raise self._failed.pop(key)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    def _woken(self) -> None:
        self._full = False
        self._changed.notify_all()

    @staticmethod
    def _unpin(pin: int | None) -> None:
        if pin is not None:
            unlock(pin)

    def _work(self, shelf: Shelf, stop: threading.Event, only_urgent: bool) -> None:
        """A thread's life: fetch what is asked for, then what is expected; one thread keeps to what is asked for."""
        while (key := self._next(stop, only_urgent)) is not None:
            pin, failure = None, None
            try:
                pin = self._bring(key, shelf, stop)
            except BaseException as error:
                failure = error
            with self._changed:
                if stop.is_set():
                    self._unpin(pin)
                    return
                self._arrived(key, pin, failure)
                self._placed(key)

    def _next(self, stop: threading.Event, only_urgent: bool) -> Key | None:
        """Wait for something to fetch; None when the store is closed."""
        with self._changed:
            while not stop.is_set():
                key = self._urgent.popleft() if self._urgent else None
                if key is None and not only_urgent and not self._placing:
                    key = self._first_expected()
                if key is not None and (key in self._waiting or not self._full):
                    self._flying.add(key)
                    if key not in self._waiting:
                        self._placing = key
                    return key
                if not self._changed.wait(LOOK_AGAIN_SECONDS if key else None):
                    self._full = False
            return None

    def _first_expected(self) -> Key | None:
        return next((key for key, pin in self._expected.items() if pin is None and key not in self._flying), None)

    def _bring(self, key: Key, shelf: Shelf, stop: threading.Event) -> int | None:
        """Fetch a chunk unless it is here; a pin on it, or None where there is no room for what nobody waits for."""
        while (pin := shelf.pin(key)) is None:
            urgent = key in self._waiting
            room = shelf.reserve(key, self._yield_one if urgent else None)
            if room:
                break
            if not shelf.wait_for_other(key) and not urgent:
                return shelf.pin(key)  # it may have come meanwhile
        else:
            return pin
        self._placed(key)
        try:
            chunk = shelf.chunks[key[0]][key[1]]
            self._fetchers[key[0]].fetch(chunk.name, room.part, chunk.bytes, stop)
            pin = room.publish()
        except BaseException:
            room.cancel()
            raise
        with self._changed:
            self.figures.downloads += 1
            self.figures.downloaded_bytes += chunk.bytes
            self.figures.peak_bytes = shelf.peak
        return pin

    def _placed(self, key: Key) -> None:
        """Let the next thread seek room."""
        with self._changed:
            if self._placing == key:
                self._placing = None
            self._changed.notify_all()

    def _arrived(self, key: Key, pin: int | None, failure: BaseException | None) -> None:
        """Hand a chunk on to whoever waits for it or expects it."""
        self._flying.discard(key)
        if pin is not None and (key in self._waiting or key in self._expected):
            self._unpin(self._expected.get(key))
            self._expected[key] = pin
        elif pin is not None:
            unlock(pin)
        elif failure is not None and key in self._waiting:
            self._failed[key] = failure
        elif failure is not None:
            log.warning("chunks are not fetched ahead until they are needed: %s", failure)
            self._expected = {key: pin for key, pin in self._expected.items() if pin is not None}
        elif key in self._waiting:
            self._urgent.append(key)  # someone came to wait while it was found that there is no room
        else:
            self._full = True

    def _yield_one(self) -> Key | None:
        """Unpin what is expected last; returns None when nothing is left to yield."""
        with self._changed:
            for key in reversed(self._expected):
                if self._expected[key] is not None and key not in self._waiting:
                    self._unpin(self._expected[key])
                    self._expected[key] = None
                    return key
        return None


def live_set(sizes: Mapping[str, Sequence[int]], shards: int, window: int) -> int:
    """Bytes that must fit if every window shall be here before it opens.

    In every source each shard reads one window of chunks while the next one is fetched.

    Args:
        sizes: Bytes of the chunks of each source.
        shards: Shards whose chunks lie in one cache.
        window: Chunks of a shard's window.

    >>> live_set({"web": [10] * 100, "qa": [7, 9]}, shards=4, window=2)
    176
    """
    return sum(sum(sorted(chunks, reverse=True)[:2 * shards * window]) for chunks in sizes.values())


def check_budget(budget: int, sizes: Mapping[str, Sequence[int]], shards: int, window: int) -> None:
    """Refuse a cache that would evict what it is about to need.

    Raises:
        ValueError: ``budget`` is below `live_set`.
    """
    needed = live_set(sizes, shards, window)
    if budget < needed:
        raise ValueError(
            f"a cache of {budget / 1e9:.3g} GB is too small: {len(sizes)} sources x {shards} shards x 2 windows of "
            f"{window} chunks need {needed / 1e9:.3g} GB ({needed} bytes), or chunks would be downloaded again and "
            "again. Raise the cache's budget, lower the window, or use more nodes, which share the shards."
        )


def forget(dataset: Any, chunk: int) -> None:
    """Unmap a chunk that litdata's ``TokensLoader`` has mapped; do so before `ChunkStore.release`."""
    if dataset.cache is None or dataset.cache._reader is None:
        return
    loader = dataset.cache._reader._item_loader
    loader._buffers.pop(chunk, None)
    mapping = loader._mmaps.pop(chunk, None)
    loader._counter.pop(chunk, None)
    if mapping is not None:
        with suppress(BufferError):  # a view of it is alive; it is unmapped with that
            mapping._mmap.close()
