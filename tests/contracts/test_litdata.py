"""What litdata does where lit_cpt counts on it or works around it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import pytest
import torch
from conftest import BLOCKS_PER_CHUNK, LENGTH, SIZES, name_of, named_block, write_blocks
from contract import relied_on, worked_around
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming.sampler import ChunkedIndex
from litdata.utilities.env import _DistributedEnv, _WorkerEnv
from torch.utils.data import DataLoader, IterableDataset

READER, DATASET, LOADER, STOCK = (f"lit_cpt/stream/{name}.py" for name in ("reader", "dataset", "loader", "stock"))
CREW, PUBLISH, GUIDE = "lit_cpt/prepare/crew.py", "lit_cpt/prepare/publish.py", "docs/data.md"
WEIGHTS = [0.5, 0.3, 0.2]


def opened(folder: Path | str, **settings: Any) -> StreamingDataset:
    """A dataset of blocks, as sources are opened."""
    return StreamingDataset(str(folder), item_loader=TokensLoader(block_size=LENGTH + 1), **settings)


def cached(folder: Path | str) -> StreamingDataset:
    """The same, with its cache created as the stream does."""
    dataset = opened(folder)
    dataset.cache = dataset._create_cache(_WorkerEnv.detect())
    return dataset


def combined(sources: dict[str, str], weights: list[float]) -> CombinedStreamingDataset:
    """Three sources in litdata's own combination."""
    return CombinedStreamingDataset([opened(sources[name]) for name in SIZES], seed=42, weights=weights,
                                    iterate_over_all=False)


def stock_loader(dataset: Any, workers: int = 0, batch: int = 4) -> StreamingDataLoader:
    """litdata's own loader of plain tensors."""
    return StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=torch.stack)


def names(batches: Any, count: int) -> list[tuple[int, int]]:
    """(source, row) of the samples of ``count`` batches."""
    return [name_of(block) for batch in itertools.islice(batches, count) for block in batch]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No launcher started this process."""
    for name in ("WORLD_SIZE", "RANK", "GLOBAL_RANK", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# Reading ----------------------------------------------------------------------------------------------


def test_create_cache_opens_a_source_and_its_reader_holds_the_item_loader(sources):
    with relied_on(READER, "it finds the loader of tokens at dataset._create_cache(worker)._reader._item_loader"):
        cache = opened(sources["a"])._create_cache(_WorkerEnv.detect())
        assert isinstance(cache._reader._item_loader, TokensLoader)


def test_fields_1_and_2_of_a_chunk_interval_are_its_first_block_and_its_end(sources):
    with relied_on(READER, "it takes the sizes of chunks from get_chunk_intervals()"):
        intervals = cached(sources["c"]).cache.get_chunk_intervals()
        assert [(interval[1], interval[2]) for interval in intervals] == [(0, 16), (16, 32), (32, 37)]


def test_a_chunked_index_reads_any_block_in_any_order(sources):
    rows = list(range(SIZES["a"]))
    random.Random(0).shuffle(rows)
    with relied_on(READER, "it reads dataset[ChunkedIndex(index, chunk_index)] at random"):
        dataset = cached(sources["a"])
        read = [dataset[ChunkedIndex(index=row, chunk_index=row // BLOCKS_PER_CHUNK)] for row in rows[:200]]
        assert [name_of(block) for block in read] == [(0, row) for row in rows[:200]]


def test_a_dataset_whose_cache_was_taken_away_opens_itself_again(sources):
    dataset = cached(sources["c"])
    with relied_on(DATASET, "it sets cache to None, so that no open file crosses into a worker"):
        dataset.cache = None
        assert name_of(dataset[ChunkedIndex(index=20, chunk_index=1)]) == (2, 20)


def mapped_chunks(source: str, keep: int | None) -> int:
    """Chunks that stay mapped after 20 were touched."""
    dataset = cached(source)
    loader = dataset.cache._reader._item_loader
    loader._mmap_keep = keep or loader._mmap_keep
    for chunk in range(20):
        dataset[ChunkedIndex(index=chunk * BLOCKS_PER_CHUNK, chunk_index=chunk)]
    return len(loader._mmaps)


def test_mmap_keep_is_the_number_of_chunks_that_stay_mapped(sources):
    with relied_on(READER, "it sets TokensLoader._mmap_keep to the chunks that a window needs"):
        assert [mapped_chunks(sources["a"], keep) for keep in (2, 12)] == [2, 12]


def test_few_chunks_stay_mapped_by_themselves(sources):
    with worked_around(READER, "it raises _mmap_keep, lest a chunk is mapped anew at nearly every block"):
        assert mapped_chunks(sources["a"], None) <= 4


def test_a_block_is_a_copy_of_what_is_mapped(sources):
    dataset = cached(sources["a"])
    with relied_on(READER, "chunks are unmapped while batches still hold their blocks"):
        block = dataset[ChunkedIndex(index=0, chunk_index=0)]
        mapping = dataset.cache._reader._item_loader._mmaps[0]
        assert not mapping.ctypes.data <= block.data_ptr() < mapping.ctypes.data + mapping.nbytes
        assert torch.equal(block, named_block(0, 0))


def test_a_chunk_that_is_taken_out_of_the_loaders_mappings_is_mapped_anew(sources):
    dataset = cached(sources["a"])
    dataset[ChunkedIndex(index=0, chunk_index=0)]
    with relied_on("lit_cpt/store.py", "forget() unmaps a chunk by taking it out of _buffers, _mmaps and _counter"):
        loader = dataset.cache._reader._item_loader
        assert [0 in held for held in (loader._buffers, loader._mmaps, loader._counter)] == [True] * 3
        loader._buffers.pop(0)
        loader._counter.pop(0)
        mapping = loader._mmaps.pop(0)
        mapping._mmap.close()
        assert mapping._mmap.closed
        assert name_of(dataset[ChunkedIndex(index=1, chunk_index=0)]) == (0, 1)


def test_blocks_do_not_cross_chunks(tmp_path):
    write_blocks(tmp_path, [named_block(0, row) for row in range(20)], blocks_per_chunk=10)  # two chunks of 90 tokens
    with relied_on("lit_cpt/plan.py", "it counts dim // block size for each chunk"):
        assert len(StreamingDataset(str(tmp_path), item_loader=TokensLoader(block_size=40))) == 4


# Processes and ranks ----------------------------------------------------------------------------------


class WhoAmI(IterableDataset):
    """Yields what litdata says about the worker."""

    def __iter__(self):
        worker = _WorkerEnv.detect()
        yield worker.rank, worker.world_size


def test_a_worker_knows_its_number_among_the_workers():
    with relied_on(DATASET, "it deals batches out by _WorkerEnv.detect().rank and world_size"):
        told = [tuple(pair) for pair in DataLoader(WhoAmI(), batch_size=None, num_workers=2)]
        assert (sorted(told), next(iter(WhoAmI()))) == ([(0, 2), (1, 2)], (0, 1))


def test_the_environment_tells_rank_and_world_size_without_a_process_group(environment):
    environment.setenv("WORLD_SIZE", "4")
    environment.setenv("GLOBAL_RANK", "3")
    with relied_on(LOADER, "it asks _DistributedEnv.detect() for the rank; so does lit_cpt/data.py"):
        found = _DistributedEnv.detect()
        assert (found.world_size, found.global_rank) == (4, 3)


def test_the_rank_that_torchrun_gives_is_not_seen_before_the_process_group(environment):
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "1")
    with worked_around(LOADER, "it asks for the rank when batches are first read, not when it is built"):
        found = _DistributedEnv.detect()
        assert (found.world_size, found.global_rank) == (2, 0)


def test_a_dataset_keeps_the_rank_it_was_built_with(sources, environment):
    dataset = opened(sources["c"])
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("GLOBAL_RANK", "1")
    with worked_around(LOADER, "it asks for the rank when batches are first read"):
        assert len(list(dataset)) == SIZES["c"]


def test_the_length_of_a_dataset_is_that_of_its_distributed_env(sources, environment):
    environment.setenv("WORLD_SIZE", "4")
    dataset = opened(sources["c"])
    with relied_on("lit_cpt/data.py", "ValidationBlocks sets distributed_env, to deal a split out itself"):
        assert len(dataset) < SIZES["c"]
        dataset = opened(sources["c"])
        dataset.distributed_env = _DistributedEnv(1, 0, 1)
        assert len(dataset) == SIZES["c"]


@pytest.mark.parametrize("workers", [0, 2])
def test_get_iterator_starts_workers_that_shutdown_workers_ends(sources, workers):
    loader = stock_loader(opened(sources["c"]), workers)
    with relied_on(LOADER, "a switch closes the iterator of _get_iterator() by _shutdown_workers and makes another"):
        for _ in range(2):
            iterator = loader._get_iterator()
            assert len(next(iterator)) == 4
            assert hasattr(iterator, "_shutdown_workers") == bool(workers)
            if workers:
                iterator._shutdown_workers()
                assert not any(worker.is_alive() for worker in iterator._workers)


def test_a_loader_hands_its_dataset_the_batch_size_and_plain_tensors_to_the_collate_function(sources):
    dataset = combined(sources, WEIGHTS)
    loader = stock_loader(dataset)
    with relied_on(DATASET, "it reads self.batch_size, which the loader sets, and self._datasets; and blocks reach "
                            "the collate function as they are"):
        assert (dataset.batch_size, len(dataset._datasets)) == (4, 3)
        assert loader.collate_fn([torch.ones(2), torch.ones(2)]).shape == (2, 2)


def test_a_combined_dataset_tells_how_it_was_built(sources):
    stock = combined(sources, [5, 3, 2])
    with relied_on("lit_cpt/stream/convert.py", "blended() takes all of this over into a stream of ours"):
        assert (stock._seed, stock._weights) == (42, WEIGHTS)
        assert (stock._iterate_over_all, stock._batching_method) == (False, "stratified")
        assert stock_loader(stock).collate_fn.collate_fn is torch.stack
        assert stock._datasets[0].input_dir.path == sources["a"]


# Writing ----------------------------------------------------------------------------------------------


def generated(_: int, ending: str, folder: Path) -> Any:
    """What the worker of `litdata.optimize` runs: 40 blocks, then the given end."""
    for row in range(40):
        yield named_block(0, row)
    (folder / "cache").write_text(os.environ["DATA_OPTIMIZER_CACHE_FOLDER"])
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "full disk":
        raise OSError(28, "No space left on device")


def write(folder: Path, ending: str = "well") -> tuple[Path, list[dict[str, Any]]]:
    """A dataset written as preparation does, and the chunks that its index names."""
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
            patch.setenv(name, str(folder / name.lower()))
        litdata.optimize(partial(generated, ending=ending, folder=folder), inputs=[0], output_dir=str(folder),
                         chunk_bytes=16 * (LENGTH + 1) * 4, num_workers=1, item_loader=TokensLoader(),
                         start_method="fork", keep_data_ordered=False, reorder_files=False, verbose=False)
    return folder, json.loads((folder / "index.json").read_bytes())["chunks"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("optimize") / "part")


def test_optimize_numbers_the_chunks_of_its_only_worker(written):
    folder, chunks = written
    with relied_on(PUBLISH, "it renames chunk-0-N.bin to chunk-PART-N.bin"):
        assert len(chunks) > 1
        assert [chunk["filename"] for chunk in chunks] == [f"chunk-0-{number}.bin" for number in range(len(chunks))]
        assert {path.name for path in folder.glob("*.bin")} == {chunk["filename"] for chunk in chunks}


def test_chunk_bytes_is_the_size_of_the_file_and_dim_counts_its_tokens(written):
    folder, chunks = written
    with relied_on(PUBLISH, "it checks files by chunk_bytes; lit_cpt/plan.py and prepare/crew.py add dim up"):
        assert [chunk["chunk_bytes"] for chunk in chunks] == [
            (folder / chunk["filename"]).stat().st_size for chunk in chunks]
        assert sum(chunk["dim"] for chunk in chunks) == 40 * (LENGTH + 1)


def test_optimize_works_in_the_cache_folder_of_the_environment(written):
    folder, _ = written
    with relied_on(CREW, "preparations are kept apart by DATA_OPTIMIZER_CACHE_FOLDER"):
        assert (folder / "data_optimizer_cache_folder").is_dir()
        assert (folder / "cache").read_text() == str(folder / "data_optimizer_cache_folder")


def test_chunks_lie_under_any_name_that_the_index_gives_them(written, tmp_path):
    folder, _ = written
    index = json.loads((folder / "index.json").read_bytes())
    for number, chunk in enumerate(index["chunks"]):
        content = (folder / chunk["filename"]).read_bytes()
        chunk["filename"] = f"chunk-{7 + number}-0.bin"
        (tmp_path / chunk["filename"]).write_bytes(content)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with relied_on(PUBLISH, "it renames chunks and writes one index over the parts"):
        assert [name_of(block) for block in opened(tmp_path)] == [(0, row) for row in range(40)]


def test_a_full_disk_in_the_worker_of_optimize_is_told_with_its_number(tmp_path):
    with relied_on(CREW, "it finds the errno in the text of litdata's error"), \
            pytest.raises(RuntimeError, match=r"OSError: \[Errno 28\] No space left"):
        write(tmp_path / "part", "full disk")


def test_optimize_does_not_notice_that_its_worker_was_killed(tmp_path):
    with worked_around(CREW, "Crew.check compares the tokens of the index with those that the worker counted"):
        assert sum(chunk["dim"] for chunk in write(tmp_path / "part", "killed")[1]) < 40 * (LENGTH + 1)


# The combined dataset ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_set_within_an_epoch_change_nothing(sources, workers):
    dataset = combined(sources, [1.0, 0.0, 0.0])
    batches = iter(stock_loader(dataset, workers))
    next(batches)
    dataset._weights = [0.0, 1.0, 0.0]
    with worked_around(STOCK, "it starts the stream anew at a switch, instead of setting the weights"):
        assert {source for source, _ in names(batches, 20)} == {0}


def test_weights_set_between_epochs_are_those_of_the_next(sources):
    dataset = combined(sources, [1.0, 0.0, 0.0])
    loader = stock_loader(dataset)
    names(loader, 2)
    dataset._weights = [0.0, 1.0, 0.0]
    with relied_on(STOCK, "a stream that is started anew draws by the new _weights"):
        assert {source for source, _ in names(loader, 5)} == {1}


def test_the_state_of_a_combined_dataset_holds_no_weights(sources):
    loader = stock_loader(combined(sources, WEIGHTS))
    next(iter(loader))
    with worked_around(STOCK, "it saves the weights beside litdata's state"):
        assert "weights" not in json.dumps(loader.state_dict(), default=str)


def test_all_workers_draw_the_same_pattern_of_sources(sources):
    loader = stock_loader(combined(sources, WEIGHTS), workers=2, batch=8)
    drawn = [[name_of(block)[0] for block in batch] for batch in itertools.islice(loader, 8)]
    with worked_around(GUIDE, "the guide gives it as a reason for a stream of our own"):
        assert drawn[0::2] == drawn[1::2]


def test_one_source_at_its_end_ends_the_epoch_of_all(sources):
    drawn = [name_of(block)[0] for block in combined(sources, [0.1, 0.1, 0.8])]
    with worked_around(GUIDE, "the guide gives it as a reason for a stream whose sources wrap around one by one"):
        assert drawn.count(2) == SIZES["c"]
        assert drawn.count(0) < SIZES["a"] / 4


def test_weights_and_a_pass_over_all_sources_exclude_each_other(sources):
    with worked_around(GUIDE, "the guide says that litdata cannot cycle sources by weight"), \
            pytest.raises(ValueError, match="iterate_over_all"):
        CombinedStreamingDataset([opened(sources["a"])], weights=[1.0], iterate_over_all=True)


def test_a_tiny_source_gives_most_of_many_workers_nothing(sources, environment):
    environment.setenv("WORLD_SIZE", "8")
    dataset = opened(sources["c"], drop_last=True)
    shuffler = dataset._create_shuffler(dataset._create_cache(_WorkerEnv.detect()))
    shares, _ = shuffler.get_chunks_and_intervals_per_workers(dataset.distributed_env, 4, 4, 0)
    with worked_around(GUIDE, "the guide gives it as a reason for a stream of our own"):
        assert sum(not share for share in shares) > len(shares) / 2


def resume(loader: StreamingDataLoader, state: dict[str, Any]) -> list[tuple[int, int]]:
    """Samples of the next 6 batches of a loader that goes on at ``state``."""
    loader.load_state_dict(state)
    return names(loader, 6)


def went_on_and_resumed(sources: dict[str, str], workers: int, before: int) -> tuple[Any, Any]:
    """Samples after ``before`` batches: of the loader that goes on, and of one that was given its state."""
    one, other = (stock_loader(combined(sources, WEIGHTS), workers) for _ in range(2))
    batches = iter(one)
    names(batches, before)
    state = deepcopy(one.state_dict())
    return names(batches, 6), resume(other, state)


def test_a_combined_stream_resumes_exactly_without_workers(sources):
    with relied_on(STOCK, "it promises exact resume for a stock stream in one process"):
        for before in (3, 7):
            went_on, resumed = went_on_and_resumed(sources, 0, before)
            assert went_on == resumed


def test_a_combined_stream_does_not_resume_exactly_with_two_workers(sources):
    with worked_around(STOCK, "it promises no exact resume with several workers; try many positions before it does"):
        assert any(went_on != resumed for went_on, resumed in
                   (went_on_and_resumed(sources, 2, before) for before in (5, 7)))


def test_a_combined_stream_resumes_only_with_as_many_workers(sources):
    loader = stock_loader(combined(sources, WEIGHTS))
    next(iter(loader))
    other = stock_loader(combined(sources, WEIGHTS), workers=2)
    with worked_around(GUIDE, "the guide gives it as a reason for a stream of our own"), \
            pytest.raises(ValueError, match="(?i)worker"):
        resume(other, loader.state_dict())


def test_a_combined_loader_with_weights_has_no_length(sources):
    with worked_around(LOADER, "it has a length, lest Lightning reads one batch ahead"), pytest.raises(TypeError):
        len(stock_loader(combined(sources, WEIGHTS)))
