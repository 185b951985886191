"""Chunks on disk: what is evicted, what never is, and what crashed processes leave."""

from __future__ import annotations

import errno
import os
import resource
import time
from pathlib import Path

import pytest

from lit_cpt.manifest import write_json
from lit_cpt.shelf import OPEN_FILES, Reservation, Shelf, allow_open_files, chunks_of, is_locked, is_used, unlock

SIZE, COUNT = 100, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chunks = [{"filename": f"part-{number % 2}/chunk-{number}.bin", "chunk_bytes": SIZE} for number in range(COUNT)]
    write_json(tmp_path / "index.json", {"chunks": chunks, "config": {}})
    return tmp_path


def shelf_of(folder: Path, chunks: float = 3) -> Shelf:
    return Shelf({"web": folder}, int(chunks * SIZE))


def bring(shelf: Shelf, chunk: int) -> int | None:
    """Write a chunk as a fetch would; returns its pin, None where there is no room."""
    room = shelf.reserve(("web", chunk))
    if room is None:
        return None
    room.part.write_bytes(bytes([chunk]) * SIZE)
    return room.publish()


def put(shelf: Shelf, *chunks: int) -> None:
    """Chunks that nobody has pinned; the first is the least recently used."""
    for chunk in chunks:
        pin = bring(shelf, chunk)
        assert pin is not None
        unlock(pin)
        past = time.time_ns() - (COUNT - chunk) * 10**9
        os.utime(shelf.paths["web", chunk], ns=(past, past))


def here(shelf: Shelf) -> set[int]:
    return {chunk for (_, chunk), path in shelf.paths.items() if os.path.exists(path)}


def test_a_shelf_knows_its_chunks_by_the_index(folder):
    assert [(chunk.name, chunk.bytes) for chunk in chunks_of(folder)][:2] == [
        ("part-0/chunk-0.bin", SIZE), ("part-1/chunk-1.bin", SIZE)]


def test_the_least_recently_used_chunk_goes_first(folder):
    shelf = shelf_of(folder)
    put(shelf, 0, 1, 2)
    unlock(shelf.pin(("web", 0)))  # used again
    put(shelf, 3)
    assert here(shelf) == {0, 2, 3}


def test_a_pinned_chunk_is_never_evicted_whoever_asks(folder):
    shelf, other = shelf_of(folder), shelf_of(folder)
    put(shelf, 0, 1, 2)
    pins = [shelf.pin(("web", chunk)) for chunk in (0, 1, 2)]
    assert other.reserve(("web", 3)) is None
    assert here(other) == {0, 1, 2}
    unlock(pins[1])
    assert other.reserve(("web", 3)) is not None
    assert here(other) == {0, 2}


def test_who_cannot_wait_gets_room_beyond_the_budget_and_what_others_yield(folder):
    shelf = shelf_of(folder)
    put(shelf, 0, 1, 2)
    pins = {chunk: shelf.pin(("web", chunk)) for chunk in (0, 1, 2)}
    yielded = iter([2])

    def give_up():
        chunk = next(yielded, None)
        if chunk is not None:
            unlock(pins[chunk])
        return None if chunk is None else ("web", chunk)

    assert shelf.reserve(("web", 3), give_up)
    assert (here(shelf), shelf.peak) == ({0, 1}, 3 * SIZE)
    assert shelf.reserve(("web", 4), give_up)
    assert (here(shelf), shelf.peak) == ({0, 1}, 4 * SIZE)


def test_what_is_being_fetched_is_counted_and_fetched_once(folder):
    shelf, other = shelf_of(folder, chunks=1), shelf_of(folder, chunks=1)
    room = shelf.reserve(("web", 0))
    assert isinstance(room, Reservation)
    assert other.reserve(("web", 0)) is None  # it comes already
    assert other.reserve(("web", 1)) is None  # no room
    room.cancel()
    assert not other.wait_for_other(("web", 0))
    assert other.reserve(("web", 1)) is not None


def test_a_chunk_is_shown_whole_and_pinned(folder):
    shelf = shelf_of(folder)
    room = shelf.reserve(("web", 0))
    room.part.write_bytes(b"x" * SIZE)
    assert shelf.pin(("web", 0)) is None
    pin = room.publish()
    assert is_locked(shelf.paths["web", 0])
    unlock(pin)
    assert not is_locked(shelf.paths["web", 0])
    assert sorted(os.listdir(folder / "part-0")) == ["chunk-0.bin"]


def test_a_chunk_that_is_here_is_not_fetched_again(folder):
    shelf, other = shelf_of(folder), shelf_of(folder)
    pin = bring(shelf, 0)
    assert other.reserve(("web", 0)) is None, "replaced, it would lie here without the pin"
    unlock(pin)


def test_a_truncated_chunk_is_not_taken_for_whole(folder):
    shelf = shelf_of(folder)
    put(shelf, 0)
    Path(shelf.paths["web", 0]).write_bytes(b"short")
    assert shelf.pin(("web", 0)) is None
    put(shelf, 0)
    unlock(shelf.pin(("web", 0)))


def test_what_a_dead_process_was_fetching_is_cleaned_up(folder):
    shelf = shelf_of(folder, chunks=1)
    room = shelf.reserve(("web", 0))
    for suffix in ("", ".tmp.123", ".lock"):
        Path(f"{room.part}{suffix}").write_bytes(b"half")
    os.close(room.lock)  # as the kernel does
    assert shelf.reserve(("web", 1))
    assert os.listdir(folder / "part-0") == []


def test_one_reads_a_folder_until_it_is_closed(folder):
    assert not is_used(folder)
    shelf = shelf_of(folder)
    assert is_used(folder)
    shelf.close()
    assert not is_used(folder)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(before[1], OPEN_FILES)
        assert hard == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_file_system_without_locks_is_refused(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=r"cannot be locked \(.*Operation not supported\).*Put the cache on a disk"):
        shelf_of(folder)
