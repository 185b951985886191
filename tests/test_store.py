"""Chunks of remote sources: the same bytes whatever happens to the network, within the budget, without a hang."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time

import pytest
from conftest import LENGTH, name_of, write_source
from litdata import StreamingDataset, TokensLoader
from litdata.streaming.sampler import ChunkedIndex
from object_store import EXPIRED, Fault, object_store_fixture, server  # noqa: F401

from lit_cpt.remote import RemoteSource, Storage, Unreachable, stage_metadata
from lit_cpt.shelf import chunks_of, is_locked, is_used
from lit_cpt.store import ChunkStore, check_budget, forget, live_set

CHUNKS, SIZE = 10, 648  # of 16 blocks each
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("store") / "web", 0, 16 * CHUNKS, validation=0)


@pytest.fixture(scope="module")
def url(source):
    return server().upload(source, "store/web")


@pytest.fixture
def make_store(object_store, url, source, tmp_path):
    """Makes stores of one cache, and closes them."""
    stores = []
    shutil.copy(source / "index.json", tmp_path / "index.json")

    def make(chunks=CHUNKS, retry_seconds=20.0, attempt_seconds=5.0, threads=3):
        storage = Storage(object_store.options(), retry_seconds, attempt_seconds)
        stores.append(ChunkStore({"web": RemoteSource(url, tmp_path)}, int(chunks * SIZE), storage, threads))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def folder_of(store):
    return store.folders["web"].folder


def read(store, number):
    """The bytes of a chunk, which is held meanwhile."""
    store.hold("web", number)
    content = (folder_of(store) / chunks_of(folder_of(store))[number].name).read_bytes()
    store.release("web", number)
    return content


def original(source, number):
    return (source / f"chunk-0-{number}.bin").read_bytes()


def here(store):
    folder = folder_of(store)
    return {number for number, chunk in enumerate(chunks_of(folder)) if (folder / chunk.name).exists()}


def until(claim, seconds=10.0):
    """Wait for what another thread or process brings about."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def left_behind(store):
    """Files of the cache that are neither metadata nor whole chunks."""
    folder = folder_of(store)
    known = {"index.json", ".in-use", ".budget", *(chunk.name for chunk in chunks_of(folder))}
    return {path.name for path in folder.iterdir()} - known


FAULTS = [Fault("error", 503, "SlowDown", share=0.5), Fault("error", 500, "InternalError", share=0.5),
          Fault("error", 429, "TooManyRequests", count=2), Fault("drop", share=0.5), Fault("half", share=0.5),
          Fault("stall", count=1)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_every_chunk_comes_whole_and_once_whatever_the_network_does(object_store, make_store, source, fault):
    store = make_store(attempt_seconds=1.0)
    object_store.fail(fault)
    order = random.Random(1).sample(range(CHUNKS), CHUNKS)
    store.expect("web", order)
    assert [read(store, number) for number in order] == [original(source, number) for number in order]
    until(lambda: store.figures.downloaded_bytes >= CHUNKS * SIZE)  # a chunk is counted once it lies where it is read
    assert (store.figures.downloads, store.figures.downloaded_bytes) == (CHUNKS, CHUNKS * SIZE)
    assert left_behind(store) == set()


def test_litdata_reads_the_folder_as_its_own(make_store, source):
    store = make_store(chunks=2)
    dataset = StreamingDataset(str(folder_of(store)), item_loader=TokensLoader(block_size=LENGTH + 1))
    draws = [(number, block) for number in random.Random(2).choices(range(CHUNKS), k=40) for block in (3, 12)]
    names = []
    for number, block in draws:
        store.hold("web", number)
        names.append(name_of(dataset[ChunkedIndex(index=16 * number + block, chunk_index=number)]))
        forget(dataset, number)
        assert number not in dataset.cache._reader._item_loader._mmaps
        store.release("web", number)
    assert names == [(0, 16 * number + block) for number, block in draws]
    assert store.figures.peak_bytes <= 2 * SIZE


def test_forgetting_a_dataset_that_was_never_read_is_no_error(make_store):
    dataset = StreamingDataset(str(folder_of(make_store())), item_loader=TokensLoader(block_size=LENGTH + 1))
    forget(dataset, 0)


def test_what_is_expected_is_here_before_it_is_held(object_store, make_store):
    store = make_store()
    object_store.shape(delay=0.05)
    store.expect("web", range(CHUNKS))
    until(lambda: here(store) == set(range(CHUNKS)))
    for number in range(CHUNKS):
        store.hold("web", number)
    assert store.figures.waits == 0


def test_what_is_needed_now_overtakes_what_is_expected(object_store, make_store):
    store = make_store(threads=1)
    object_store.shape(delay=0.3)
    store.expect("web", range(9))
    begun = time.monotonic()
    store.hold("web", 9)
    assert time.monotonic() - begun < 2
    assert len(here(store)) < CHUNKS
    assert store.figures.waits == 1
    assert 0.2 < store.figures.wait_seconds == store.figures.longest_wait_seconds < 2


def test_fetching_ahead_stays_within_the_budget_and_evicts_nothing_expected(make_store):
    store = make_store(chunks=4.5)
    store.expect("web", [0, 1, 2, 3, 4, 5])
    until(lambda: here(store) == {0, 1, 2, 3})
    time.sleep(0.3)
    assert here(store) == {0, 1, 2, 3}
    store.hold("web", 0)
    store.release("web", 0)  # now it may go
    until(lambda: here(store) == {1, 2, 3, 4})
    assert store.figures.peak_bytes <= 4.5 * SIZE


def test_a_held_chunk_is_never_evicted(make_store, source):
    store = make_store(chunks=2)
    store.hold("web", 0)
    store.hold("web", 0)
    store.release("web", 0)
    assert [read(store, number) for number in range(1, CHUNKS)] == [original(source, n) for n in range(1, CHUNKS)]
    assert 0 in here(store)
    store.release("web", 0)
    for number in (1, 2):
        read(store, number)
    assert 0 not in here(store)


@pytest.mark.parametrize("chunks", [1, 0.01])
def test_a_cache_of_one_chunk_or_less_is_slow_but_serves_everything(make_store, source, chunks):
    store = make_store(chunks=chunks)
    order = [0, 3, 0, 9, 3, 1]
    store.expect("web", order)
    assert [read(store, number) for number in order] == [original(source, number) for number in order]
    assert store.figures.peak_bytes <= 3 * SIZE


def test_more_may_be_held_than_the_budget_allows(make_store):
    store = make_store(chunks=2)
    for number in range(CHUNKS):
        store.hold("web", number)
    assert here(store) == set(range(CHUNKS))


def test_a_plan_that_changed_gives_up_what_was_expected(make_store):
    store = make_store(chunks=3)
    store.expect("web", [0, 1, 2])
    until(lambda: here(store) == {0, 1, 2})
    store.abandon()
    store.expect("web", [7, 8, 9])
    until(lambda: here(store) == {7, 8, 9})


def test_what_is_asked_of_a_store_must_exist(make_store):
    store = make_store()
    with pytest.raises(ValueError, match="source 'code' is not among the store's: web"):
        store.hold("code", 0)
    with pytest.raises(ValueError, match="source 'web' has no chunk 10: it has 10"):
        store.expect("web", [10])
    with pytest.raises(ValueError, match="chunk 3 of source 'web' is released, but this process does not hold it"):
        store.release("web", 3)


@pytest.mark.parametrize(("changed", "message"), [({"budget": 0}, "budget=0 must be at least 1"),
                                                  ({"threads": 0}, "threads=0 must be at least 1"),
                                                  ({"folders": {}}, "folders={} names no source")])
def test_a_store_wants_sources_room_and_threads(tmp_path, changed, message):
    settings = {"folders": {"web": RemoteSource("s3://b/web", tmp_path)}, "budget": 1, "storage": Storage(),
                "threads": 1, **changed}
    with pytest.raises(ValueError, match=message):
        ChunkStore(**settings)


def test_an_outage_longer_than_litdata_bears_is_one_wait(object_store, make_store, source):
    store = make_store()
    object_store.fail(Fault("error", 503, "SlowDown", seconds=4))
    store.expect("web", [0, 1, 2])
    assert [read(store, number) for number in (0, 1, 2)] == [original(source, number) for number in (0, 1, 2)]
    assert 3 < store.figures.longest_wait_seconds < 15


def test_expired_credentials_stop_who_needs_a_chunk_at_once_and_only_him(object_store, make_store, source, caplog):
    store = make_store(retry_seconds=600)
    store.hold("web", 0)
    object_store.fail(EXPIRED)
    with caplog.at_level(logging.WARNING, logger="lit_cpt"):
        store.expect("web", [1, 2, 3, 4])
        until(lambda: any("not fetched ahead" in record.getMessage() for record in caplog.records))
    assert read(store, 0) == original(source, 0)  # what is here can be trained on
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"chunk-0-1.bin was refused: .*ExpiredToken.* Renew the credentials"):
        store.hold("web", 1)
    assert time.monotonic() - begun < 5
    assert len(caplog.records) <= 3  # a thread each, not a line for every chunk
    object_store.heal()
    assert read(store, 1) == original(source, 1)


def test_a_chunk_that_is_gone_from_the_store_is_named(object_store, make_store, url):
    store = make_store(retry_seconds=600)
    object_store.fail(Fault("error", 404, "NoSuchKey"))
    with pytest.raises(Unreachable, match="store/web/chunk-0-5.bin was refused.*Check bucket"):
        store.hold("web", 5)


def test_no_wait_is_longer_than_the_time_given(object_store, make_store):
    store = make_store(retry_seconds=1.0, attempt_seconds=30.0)
    object_store.fail(Fault("stall"))
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"chunk 4 of source 'web' did not come from s3://.* in 1 s.*retry_seconds"):
        store.hold("web", 4)
    assert time.monotonic() - begun < 3


def test_closing_leaves_no_lock_and_the_store_may_begin_again(make_store, source):
    store = make_store()
    store.expect("web", [0, 1])
    store.hold("web", 2)
    store.close()
    assert not is_used(folder_of(store))
    until(lambda: left_behind(store) == set())  # a fetch under way ends by itself
    until(lambda: not [path for path in folder_of(store).glob("*.bin") if is_locked(str(path))])
    assert read(store, 3) == original(source, 3)
    assert store.figures.downloads >= 2
    store.close()
    store.close()


def test_a_store_travels_to_another_process_unbegun(make_store, source):
    store = make_store()
    store.hold("web", 0)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.budget, copy.threads, copy.storage, copy.folders) == (store.budget, store.threads, store.storage,
                                                                       store.folders)
    assert copy.figures.downloads == 0
    assert read(copy, 1) == original(source, 1)
    copy.close()


def in_child(job, *arguments):
    child = FORK.Process(target=job, args=arguments)
    child.start()
    return child


def read_in_child(store, order, answers):
    contents = [read(store, number) for number in order]
    answers.put((contents, store.figures))
    store.close()


def test_a_fork_of_a_store_at_work_works_and_disturbs_nobody(make_store, source):
    store = make_store()
    store.hold("web", 0)
    answers = FORK.Queue()
    child = in_child(read_in_child, store, [0, 5], answers)
    contents, figures = answers.get(timeout=30)
    child.join(30)
    assert contents == [original(source, 0), original(source, 5)]
    assert figures.downloads == 1  # 0 was here
    assert is_locked(str(folder_of(store) / "chunk-0-0.bin"))
    store.release("web", 0)
    assert not is_locked(str(folder_of(store) / "chunk-0-0.bin"))
    assert read(store, 7) == original(source, 7)


def test_processes_share_a_folder_within_the_budget(object_store, make_store, source):
    store = make_store(chunks=4)
    object_store.shape(delay=0.02)
    answers = FORK.Queue()
    orders = [random.Random(seed).choices(range(CHUNKS), k=25) for seed in range(2)]
    children = [in_child(read_in_child, store, order, answers) for order in orders]
    found = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    wanted = [[original(source, number) for number in order] for order in orders]
    assert sorted(contents for contents, _ in found) == sorted(wanted)
    assert max(figures.peak_bytes for _, figures in found) <= 5 * SIZE  # one chunk each may be on its way
    assert left_behind(store) == set()


def test_processes_that_want_the_same_chunk_fetch_it_once(object_store, make_store):
    store = make_store()
    object_store.shape(delay=0.3)
    answers = FORK.Queue()
    children = [in_child(read_in_child, store, [6], answers) for _ in range(2)]
    assert sum(answers.get(timeout=30)[1].downloads for _ in children) == 1
    for child in children:
        child.join(30)


def test_a_process_killed_while_it_fetches_leaves_a_usable_cache(object_store, make_store, source):
    store = make_store(chunks=3)
    object_store.fail(Fault("stall"))  # it gets half of each chunk and waits for the rest
    child = in_child(read_in_child, store, range(CHUNKS), FORK.Queue())
    until(lambda: any(folder_of(store).glob("*.part*")), 20)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert left_behind(store)
    assert not here(store)
    object_store.heal()
    assert [read(store, number) for number in range(CHUNKS)] == [original(source, number) for number in range(CHUNKS)]
    assert left_behind(store) == set()
    assert store.figures.peak_bytes <= 3 * SIZE


def test_a_cache_of_former_content_is_not_served(object_store, source, tmp_path):
    storage = Storage(object_store.options(), retry_seconds=20)
    folders, contents = [], []
    for content in (source, write_source(tmp_path / "other", 1, 16 * CHUNKS, validation=0)):
        url = object_store.upload(content, "store/changing")
        folders.append(stage_metadata(url, tmp_path / "cache", storage))
        store = ChunkStore({"web": RemoteSource(url, folders[-1])}, CHUNKS * SIZE, storage)
        contents.append(read(store, 0) == original(content, 0))
        store.close()
    assert contents == [True, True]
    assert [folder.exists() for folder in folders] == [False, True]


def test_the_live_set_is_two_windows_of_the_largest_chunks_of_every_shard():
    sizes = {"web": [5, 1, 9, 7, 3], "qa": [2, 2]}
    assert live_set(sizes, shards=1, window=1) == 9 + 7 + 2 + 2
    assert live_set(sizes, shards=2, window=1) == 9 + 7 + 5 + 3 + 4
    assert live_set(sizes, shards=64, window=4) == 25 + 4


def test_a_budget_below_the_live_set_is_refused():
    sizes = {"web": [64_000_000] * 100, "qa": [64_000_000] * 100}
    check_budget(2_048_000_000, sizes, shards=8, window=1)
    with pytest.raises(ValueError, match=r"a cache of 2.05 GB is too small: 2 sources x 8 shards x 2 windows of 1 "
                                         r"chunks need 2.05 GB \(2048000000 bytes\).* Raise .* lower the window"):
        check_budget(2_047_999_999, sizes, shards=8, window=1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault("error", 503, "SlowDown", seconds=30), Fault("drop", seconds=30),
                                   Fault("stall", seconds=10)], ids=lambda fault: fault.kind)
def test_half_a_minute_of_outage_is_one_wait(object_store, make_store, source, fault):
    store = make_store(retry_seconds=120)
    store.hold("web", 0)
    object_store.fail(fault)
    store.expect("web", range(CHUNKS))
    assert [read(store, number) for number in range(CHUNKS)] == [original(source, number) for number in range(CHUNKS)]
    assert fault.seconds * 0.4 < store.figures.longest_wait_seconds < fault.seconds + 20
    until(lambda: store.figures.downloads >= CHUNKS)
    assert store.figures.downloads == CHUNKS
