"""Chunk files on one disk, within a budget, shared by the processes of a node; files and locks are all they share.

| file beside the metadata | what it says |
|---|---|
| ``chunk`` | it lies here whole; a shared lock on it: a process reads it, or is about to |
| ``chunk.fetch`` | it is being fetched, by the process that has the lock, and all its bytes are spoken for |
| ``chunk.part*`` | what has come of it |
| ``.in-use`` | a shared lock on it: a process reads this folder |
| ``.budget`` | its lock, in the first folder, is held by whoever counts, reserves or evicts |

The locks are ``flock``'s, which the kernel drops when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

INDEX = "index.json"
IN_USE, BUDGET, FETCH, PART = ".in-use", ".budget", ".fetch", ".part"
OPEN_FILES = 65_536  # wanted: a pin and a mapping for every chunk of the live set

Key = tuple[str, int]  # source, chunk


@dataclass(frozen=True)
class Chunk:
    """A chunk as the index lists it."""

    name: str
    bytes: int


def chunks_of(folder: Path | str) -> list[Chunk]:
    """The chunks that a folder's index lists."""
    index = json.loads((Path(folder) / INDEX).read_bytes())
    return [Chunk(entry["filename"], entry["chunk_bytes"]) for entry in index["chunks"]]


class Reservation:
    """Room for a chunk that this process fetches, and the right to do so.

    Args:
        path: Where the chunk shall lie.
        lock: Descriptor of its ``.fetch`` file, locked.
    """

    def __init__(self, path: str, lock: int) -> None:
        self.path, self.lock = path, lock
        self.part = Path(path + PART)

    def publish(self) -> int:
        """Show what lies in ``part`` as the whole chunk; returns a pin on it."""
        pin = os.open(self.part, os.O_RDONLY)
        fcntl.flock(pin, fcntl.LOCK_SH)
        os.fsync(pin)  # or a node that loses power may find a file of the right size without its content
        os.replace(self.part, self.path)
        self.cancel()
        return pin

    def cancel(self) -> None:
        """Give back what room and rights are left."""
        remove_parts(self.path)
        unlock(self.lock)


class Shelf:
    """The chunks of some folders that lie on this disk.

    Processes that share folders must name the same ones: what they may hold together is counted over these.

    Args:
        folders: Source to its local folder, which holds the index.
        budget: Bytes that the chunks of all folders may take.

    Raises:
        OSError: A folder lies on a file system without locks.
    """

    def __init__(self, folders: Mapping[str, Path], budget: int) -> None:
        self.budget, self.peak = budget, 0
        self.chunks = {source: chunks_of(folder) for source, folder in folders.items()}
        self.paths: dict[Key, str] = {(source, number): str(folders[source] / chunk.name)
                                      for source, chunks in self.chunks.items() for number, chunk in enumerate(chunks)}
        self._keys = {path: key for key, path in self.paths.items()}
        self._places = sorted({os.path.dirname(path) for path in self.paths.values()})
        self._lock = str(min(folders.values()) / BUDGET)
        self._used = [os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT) for folder in folders.values()]
        try:
            for used in self._used:
                fcntl.flock(used, fcntl.LOCK_SH)
        except OSError as error:
            raise OSError(f"{min(folders.values())} cannot be locked ({error}): a cache needs flock. "
                          "Put the cache on a disk of this node.") from error

    def close(self) -> None:
        """Let go of the folders."""
        while self._used:
            unlock(self._used.pop())

    def size(self, key: Key) -> int:
        """Bytes of a chunk."""
        return self.chunks[key[0]][key[1]].bytes

    def pin(self, key: Key) -> int | None:
        """Keep a chunk from being evicted until `unlock`; None where it does not lie here whole."""
        try:
            pin = os.open(self.paths[key], os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(pin, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found = os.fstat(pin)
            if found.st_nlink and found.st_size == self.size(key):
                os.utime(pin)
                return pin
        except BlockingIOError:
            pass  # someone is evicting it
        os.close(pin)
        return None

    def reserve(self, key: Key, yielding: Callable[[], Key | None] | None = None) -> Reservation | None:
        """Make room for a chunk by evicting those that were used least recently and that nobody has pinned.

        Args:
            key: The chunk.
            yielding: Called while there is not enough room: unpins a chunk and returns it, None when there is
                none left. With it the chunk gets its room whatever the budget; without, only within.

        Returns:
            None if another thread or process fetches it or just has, or if there is no room.
        """
        path = self.paths[key]
        with self._counting():
            if is_locked(path + FETCH) or self._is_whole(key) or not self._make_room(self.size(key), yielding):
                return None  # a whole chunk is never replaced: its pins would stay with the former file
            os.makedirs(os.path.dirname(path), exist_ok=True)
            lock = os.open(path + FETCH, os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX)
            return Reservation(path, lock)

    def wait_for_other(self, key: Key) -> bool:
        """Wait until nobody fetches this chunk any more; whether anybody did."""
        try:
            other = os.open(self.paths[key] + FETCH, os.O_RDWR)
        except FileNotFoundError:
            return False
        fcntl.flock(other, fcntl.LOCK_EX)
        unlock(other)
        return True

    def _is_whole(self, key: Key) -> bool:
        path = self.paths[key]
        return os.path.exists(path) and os.path.getsize(path) == self.size(key)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            unlock(lock)

    def _make_room(self, need: int, yielding: Callable[[], Key | None] | None) -> bool:
        total, oldest_first = self._found()
        for key in oldest_first:
            if total + need <= self.budget:
                break
            total -= self._evict(key)
        while yielding and total + need > self.budget and (yielded := yielding()):
            total -= self._evict(yielded)
        fits = yielding is not None or total + need <= self.budget
        self.peak = max(self.peak, total + need * fits)
        return fits

    def _found(self) -> tuple[int, Sequence[Key]]:
        """Bytes taken or spoken for, and the whole chunks, least recently used first."""
        whole: dict[Key, float] = {}
        coming = set()
        for place in filter(os.path.isdir, self._places):
            for entry in os.scandir(place):
                if entry.path in self._keys:
                    whole[self._keys[entry.path]] = entry.stat().st_mtime_ns
                elif entry.name.endswith(FETCH) and (key := self._keys.get(entry.path.removesuffix(FETCH))):
                    if is_locked(entry.path):
                        coming.add(key)
                    else:  # its process died
                        remove_parts(entry.path.removesuffix(FETCH))
        return sum(map(self.size, whole.keys() | coming)), sorted(whole, key=whole.__getitem__)

    def _evict(self, key: Key) -> int:
        """Delete a chunk that nobody has pinned; returns the bytes that this frees."""
        try:
            lock = os.open(self.paths[key], os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(self.paths[key])
            return self.size(key)
        except BlockingIOError:
            return 0
        finally:
            unlock(lock)


def unlock(descriptor: int) -> None:
    """Unlock and close: closing alone would leave the lock with children forked meanwhile."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_locked(path: str) -> bool:
    """Whether anybody has a lock on this file."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def is_used(folder: Path) -> bool:
    """Whether a process reads this folder's chunks."""
    return is_locked(str(folder / IN_USE))


def remove_parts(path: str) -> None:
    """Delete all that a fetch of this chunk left but the chunk itself."""
    directory, name = os.path.split(path)
    for found in sorted(os.listdir(directory), reverse=True):  # the .fetch last: with it the others are found
        if found in (name + PART, name + FETCH) or found.startswith(f"{name}{PART}."):
            with suppress(FileNotFoundError):  # its own process may be at it as well
                os.unlink(os.path.join(directory, found))


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
