from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal

import pytest
import torch
from conftest import LENGTH, SIZES, chunk_sizes, ideal_stream, name_of, named_block, write_source
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset, check_tokenizers, collate, open_source

FIRST = {"a": 0.60, "b": 0.35, "c": 0.05}
SECOND = {"a": 0.1, "b": 0.2, "c": 0.7}
BATCH = 4
WORKERS = (0, 2, 3)


def stream_of(sources, weights=FIRST, **settings):
    return BlendedStreamingDataset({name: open_source(folder, LENGTH) for name, folder in sources.items()}, weights,
                                   **settings)


def loader_of(sources, weights=FIRST, workers=0, batch_size=BATCH, **settings):
    return BlendedDataLoader(stream_of(sources, weights, **settings), batch_size, 1000, num_workers=workers,
                             collate_fn=collate)


def names_in(batches):
    return [name_of(block) for batch in batches for block in batch]


def take(iterator, count):
    return names_in(itertools.islice(iterator, count))


@pytest.fixture
def as_rank(monkeypatch):
    """Be rank r of w, as a launcher without a process group would say it."""

    def set_rank(rank, world):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("GLOBAL_RANK", str(rank))

    return set_rank


# The stream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_the_stream_that_the_pure_functions_foretell(sources, workers):
    loader = loader_of(sources, workers=workers)
    assert take(iter(loader), 150) == ideal_stream([(0, FIRST)], 600)
    assert loader.position == 600


def test_a_batch_is_whole_blocks_of_int64(sources):
    batch = next(iter(loader_of(sources)))
    assert (batch.shape, batch.dtype) == ((BATCH, LENGTH + 1), torch.int64)
    for block in batch:
        assert torch.equal(block.int(), named_block(*name_of(block)))


def test_the_plan_is_the_same_across_the_pieces_it_is_drawn_in(sources, monkeypatch):
    monkeypatch.setattr("lit_cpt.stream.dataset.PLAN_SAMPLES", 12)
    assert take(iter(loader_of(sources, workers=2)), 20) == ideal_stream([(0, FIRST)], 80)


def test_a_batch_larger_than_the_plan_is_drawn_whole(sources, monkeypatch):
    monkeypatch.setattr("lit_cpt.stream.dataset.PLAN_SAMPLES", 3)
    assert take(iter(loader_of(sources)), 5) == ideal_stream([(0, FIRST)], 20)


def test_loader_and_stream_are_litdatas_own_by_isinstance(sources):
    loader = loader_of(sources)
    assert isinstance(loader, StreamingDataLoader)
    assert isinstance(loader.dataset, CombinedStreamingDataset)
    assert len(loader) == 1000


@pytest.mark.parametrize("settings", [{"seed": 7}, {"window": 2}])
def test_seed_and_window_decide_the_order(sources, settings):
    one = take(iter(loader_of(sources, **settings)), 40)
    assert one == ideal_stream([(0, FIRST)], 160, **settings)
    assert one != ideal_stream([(0, FIRST)], 160)


def test_without_shuffling_each_source_is_read_front_to_back(sources):
    names = take(iter(loader_of(sources, SECOND, shuffle=False)), 30)
    for source, rows in enumerate(SIZES.values()):
        drawn = [row for which, row in names if which == source]
        assert drawn == [place % rows for place in range(len(drawn))]


def test_a_small_source_wraps_alone_and_the_big_one_stays_in_its_first_epoch(sources):
    names = take(iter(loader_of(sources, {"a": 0.2, "c": 0.8})), 100)
    small = [row for source, row in names if source == 2]
    big = [row for source, row in names if source == 0]
    assert len(small) > 8 * SIZES["c"]
    for epoch in range(8):
        assert sorted(small[epoch * 37 : (epoch + 1) * 37]) == list(range(37))
    assert small[:37] != small[37:74]
    assert len(set(big)) == len(big)


def test_the_chunks_are_as_the_ideal_stream_takes_them_to_be(sources):
    stream = stream_of(sources)
    reader = stream.readers(None)[2]
    assert reader.order.blocks.tolist() == chunk_sizes(37) == [16, 16, 5]
    assert reader.begins == [0, 16, 32]
    assert stream.blocks == SIZES


def test_enough_chunks_stay_mapped_for_a_window(sources):
    stream = stream_of(sources, window=6)
    stream.readers(None)
    assert stream._datasets[0].cache._reader._item_loader._mmap_keep == 12


# Ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_slices_of_two_ranks_are_disjoint_and_together_the_global_batch(sources, as_rank, workers):
    slices = []
    for rank in (0, 1):
        as_rank(rank, 2)
        loader = loader_of(sources, workers=workers, batch_size=2)
        slices.append([names_in([batch]) for batch in itertools.islice(iter(loader), 40)])
        assert loader.position == 160
    together = [name for pair in zip(*slices, strict=True) for part in pair for name in part]
    assert together == ideal_stream([(0, FIRST)], 160)


def test_a_state_saved_by_one_rank_resumes_on_two_and_on_none_is_a_sample_lost(sources, as_rank):
    one = loader_of(sources, batch_size=4)
    take(iter(one), 10)
    state = one.state_dict()
    rest = []
    for rank in (0, 1):
        as_rank(rank, 2)
        loader = loader_of(sources, workers=2, batch_size=2)
        loader.load_state_dict(state)
        rest.append([names_in([batch]) for batch in itertools.islice(iter(loader), 10)])
    assert [name for pair in zip(*rest, strict=True) for part in pair for name in part] == ideal_stream(
        [(0, FIRST)], 80)[40:]


@pytest.mark.parametrize(("world", "batch_size", "shards", "workers"), [
    (1, 4, 1, 0), (2, 2, 1, 2), (1, 8, 4, 2), (2, 1, 4, 0)])
def test_a_loader_tells_the_sources_of_its_last_batch(sources, as_rank, world, batch_size, shards, workers):
    state, at = None, 2 * 4 * batch_size * world  # of eight batches, the middle
    for rank in range(world):
        as_rank(rank, world)
        loader = loader_of(sources, batch_size=batch_size, shards=shards, workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        loader.plan([(loader.position + at, SECOND)])
        for number, batch in enumerate(itertools.islice(iter(loader), 24)):
            assert loader.sources == [name_of(block)[0] for block in batch]
            if number == 15:
                loader.set_weights({"c": 1.0})
        state = {**loader.state_dict(), "legs": loader.state_dict()["legs"][:1]}
        assert loader.sources == [2] * batch_size


# Shards ------------------------------------------------------------------------------------------------

# a (400 blocks) is cut into 4; b and c are too small to be.
SHARDED = {"shards": 4, "window": 2}


def global_batches(sources, as_rank, world, count, batch_size=1, state=None, legs=(), **settings):
    """The samples of each global batch of 8, from all ranks."""
    found = [[] for _ in range(count)]
    for rank in range(world):
        as_rank(rank, world)
        loader = loader_of(sources, batch_size=batch_size, **{**SHARDED, **settings})
        if state is not None:
            loader.load_state_dict(state)
        loader.plan(legs)
        batches = iter(loader)
        for number in range(count):
            found[number] += take(batches, 8 // (world * batch_size))
    return [sorted(batch) for batch in found]


@pytest.mark.parametrize(("world", "batch_size", "workers"), [(1, 8, 0), (1, 1, 2), (2, 1, 0), (2, 4, 2), (4, 2, 0)])
def test_a_global_batch_is_the_same_for_any_number_of_ranks_and_workers(sources, as_rank, world, batch_size, workers):
    legs = [(240, SECOND), (400, {"a": 1.0})]
    one = global_batches(sources, as_rank, 1, 120, 2, legs=legs)
    assert global_batches(sources, as_rank, world, 120, batch_size, legs=legs, workers=workers) == one


def test_a_rank_reads_neighbouring_chunks_of_a_source_that_is_cut(sources, as_rank):
    read = []
    for rank in range(4):
        as_rank(rank, 4)
        names = take(iter(loader_of(sources, {"a": 1.0}, batch_size=1, **SHARDED)), 100)
        read.append({row // 16 for _, row in names})
    assert sorted(len(chunks) for chunks in read)[-1] <= 400 / 16 / 4 + 2
    assert len(set.union(*read)) == 25


def test_an_epoch_is_whole_over_all_ranks_with_a_switch_in_the_middle(sources, as_rank):
    batches = global_batches(sources, as_rank, 4, 95, legs=[(320, SECOND)])
    rows = [row for batch in batches for source, row in batch if source == 0]
    assert len(rows) == len(set(rows)) > 200


def test_a_stream_of_shards_resumes_on_other_ranks(sources, as_rank):
    one = global_batches(sources, as_rank, 1, 60, legs=[(240, SECOND)])
    as_rank(0, 2)
    loader = loader_of(sources, batch_size=1, **SHARDED)
    loader.plan([(240, SECOND)])
    take(iter(loader), 4 * 40)
    state = json.loads(json.dumps(loader.state_dict()))
    for world in (1, 2, 4):
        assert global_batches(sources, as_rank, world, 20, state=state) == one[40:]


def test_shards_that_cannot_be_dealt_to_the_ranks_are_refused(sources, as_rank):
    as_rank(0, 3)
    with pytest.raises(ValueError, match="shards=4 is no multiple of the 3 ranks"):
        next(iter(loader_of(sources, **SHARDED)))


def test_a_stream_of_shards_does_not_begin_within_a_round(sources):
    loader = loader_of(sources, batch_size=1, **SHARDED)
    loader.load_state_dict({**loader.state_dict(), "position": 6})
    with pytest.raises(ValueError, match="stands at sample 6, within a round of 4"):
        next(iter(loader))


def test_a_stream_refuses_no_shard(sources):
    with pytest.raises(ValueError, match="shards=0 must be at least 1"):
        stream_of(sources, shards=0)


# Switches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_the_first_batch_after_a_switch_is_wholly_from_the_new_blend(sources, workers):
    loader = loader_of(sources, {"a": 0.5, "b": 0.5}, workers=workers)
    iterator = iter(loader)
    before = take(iterator, 7)
    assert loader.set_weights({"c": 1.0})
    after = take(iterator, 5)
    assert {source for source, _ in before} == {0, 1}
    assert {source for source, _ in after} == {2}
    assert before + after == ideal_stream([(0, {"a": 0.5, "b": 0.5}), (28, {"c": 1.0})], 48)
    assert loader.weights == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert loader.rebuilds == 1


@pytest.mark.parametrize("workers", WORKERS)
def test_a_switch_loses_no_sample_and_repeats_none(sources, workers):
    loader = loader_of(sources, workers=workers)
    iterator = iter(loader)
    names = take(iterator, 9)
    loader.set_weights(SECOND)
    names += take(iterator, 12)
    loader.set_weights(FIRST)
    names += take(iterator, 9)
    assert names == ideal_stream([(0, FIRST), (36, SECOND), (84, FIRST)], 120)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_planned_switch_comes_at_its_sample_and_rebuilds_nothing(sources, workers):
    loader = loader_of(sources, workers=workers)
    assert loader.plan([(36, SECOND)])
    iterator, rebuilds = iter(loader), loader.rebuilds
    names = take(iterator, 9)
    assert loader.set_weights(SECOND) is False
    names += take(iterator, 9)
    assert loader.rebuilds == rebuilds
    assert names == ideal_stream([(0, FIRST), (36, SECOND)], 72)


def test_a_planned_switch_may_fall_inside_a_batch(sources):
    loader = loader_of(sources, workers=2)
    loader.plan([(37, {"c": 1.0})])
    assert take(iter(loader), 12) == ideal_stream([(0, FIRST), (37, {"c": 1.0})], 48)


def test_a_plan_that_is_withdrawn_leaves_the_blend_as_it_is(sources):
    loader = loader_of(sources, workers=2)
    loader.plan([(36, SECOND)])
    iterator = iter(loader)
    names = take(iterator, 9)
    assert loader.plan([])
    assert names + take(iterator, 9) == ideal_stream([(0, FIRST)], 72)


def test_a_plan_for_samples_that_were_handed_out_is_refused(sources):
    loader = loader_of(sources)
    take(iter(loader), 3)
    with pytest.raises(ValueError, match=r"planned starts \[8\] must rise, from position 12"):
        loader.plan([(8, SECOND)])


# Stretches that are passed over -----------------------------------------------------------------------


def without(stream, *stretches):
    return [name for place, name in enumerate(stream) if not any(first <= place < stop for first, stop in stretches)]


@pytest.mark.parametrize("workers", WORKERS)
def test_what_is_passed_over_never_comes_and_all_else_comes_as_before(sources, workers, monkeypatch):
    monkeypatch.setattr("lit_cpt.stream.dataset.PLAN_SAMPLES", 32)
    loader = loader_of(sources, workers=workers)
    loader.dataset.pass_over((40, 60), (100, 200), (56, 64))
    assert take(iter(loader), 60) == without(ideal_stream([(0, FIRST)], 364), (40, 64), (100, 200))
    assert (loader.position, loader.dataset.trained) == (364, 240)
    assert [loader.place_of(trained) for trained in (0, 39, 40, 75, 76)] == [0, 39, 64, 99, 200]


@pytest.mark.parametrize("saved_at", [5, 10, 15])
def test_a_resume_passes_over_what_the_run_did_and_what_is_added(sources, saved_at):
    loader = loader_of(sources)
    loader.dataset.pass_over((20, 40))
    before = take(iter(loader), saved_at)
    resumed = loader_of(sources, workers=2)
    resumed.dataset.pass_over((120, 140), (20, 40))
    resumed.load_state_dict(loader.state_dict())
    assert before + take(iter(resumed), 40 - saved_at) == without(
        ideal_stream([(0, FIRST)], 200), (20, 40), (120, 140))


def test_a_batch_that_was_not_trained_comes_again_across_a_stretch(sources):
    loader = loader_of(sources)
    loader.dataset.pass_over((8, 40))
    take(iter(loader), 2)
    assert loader.position == 40
    assert [loader.state_dict(back)["position"] for back in (0, 1, 2)] == [40, 4, 0]


def test_a_stretch_passes_over_the_same_samples_on_shards_and_ranks(sources, as_rank):
    def batches(world):
        found = []
        for rank in range(world):
            as_rank(rank, world)
            loader = loader_of(sources, batch_size=8 // world, shards=4)
            loader.dataset.pass_over((16, 48))
            found.append([names_in([batch]) for batch in itertools.islice(loader, 12)])
        return [sorted(itertools.chain(*parts)) for parts in zip(*found, strict=True)]

    assert batches(1) == batches(2)


def test_the_sources_of_a_batch_are_told_on_both_sides_of_a_stretch(sources):
    loader = loader_of(sources)
    loader.dataset.pass_over((8, 40))
    batches = iter(loader)
    for _ in range(4):
        names = take(batches, 1)
        assert [list(SIZES).index(loader.dataset.names[source]) for source in loader.sources] == [
            source for source, _ in names]


def test_what_was_handed_out_cannot_be_passed_over(sources):
    loader = loader_of(sources)
    take(iter(loader), 10)
    with pytest.raises(ValueError, match="pass_over has samples 36 to 44, and the run stands at sample 40: only what"):
        loader.dataset.pass_over((36, 44))


def test_weights_for_an_unknown_source_are_refused_and_the_stream_goes_on(sources):
    loader = loader_of(sources)
    iterator = iter(loader)
    names = take(iterator, 2)
    with pytest.raises(ValueError, match="weights name 'd', which no source is called; the sources are 'a', 'b', 'c'"):
        loader.set_weights({"d": 1.0})
    assert names + take(iterator, 2) == ideal_stream([(0, FIRST)], 16)
    assert loader.rebuilds == 0


# State ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("saved_by", "resumed_by"), [(0, 2), (2, 3), (3, 0)])
def test_a_stream_resumes_at_the_exact_sample_with_other_workers(sources, saved_by, resumed_by):
    ideal = ideal_stream([(0, FIRST), (36, SECOND)], 80)
    loader = loader_of(sources, workers=saved_by)
    loader.plan([(36, SECOND)])
    iterator, states = iter(loader), {0: loader.state_dict()}
    for done in range(1, 12):
        next(iterator)
        states[done] = loader.state_dict()
    for done in (0, 1, 8, 9, 10):
        resumed = loader_of(sources, workers=resumed_by)
        resumed.load_state_dict(json.loads(json.dumps(states[done])))
        assert resumed.position == done * BATCH
        assert take(iter(resumed), 5) == ideal[done * BATCH : (done + 5) * BATCH]


def test_a_loader_that_runs_already_goes_on_at_the_state_it_is_given(sources):
    loader = loader_of(sources, workers=2)
    iterator = iter(loader)
    state = loader.state_dict()
    take(iterator, 6)
    loader.load_state_dict(state)
    assert take(iterator, 6) == ideal_stream([(0, FIRST)], 24)


def test_batches_that_were_not_trained_come_again(sources):
    loader = loader_of(sources)
    take(iter(loader), 10)
    resumed = loader_of(sources)
    resumed.load_state_dict(loader.state_dict(back=3))
    assert take(iter(resumed), 3) == ideal_stream([(0, FIRST)], 40)[28:]


def test_the_state_is_small_plain_and_the_same_on_every_rank(sources, as_rank):
    texts = set()
    for rank, world, workers, batch_size in ((0, 1, 0, 4), (0, 2, 0, 2), (1, 2, 2, 2), (3, 4, 0, 1)):
        as_rank(rank, world)
        loader = loader_of(sources, workers=workers, batch_size=batch_size)
        loader.plan([(40, SECOND), (80, FIRST)])
        take(iter(loader), 12)
        texts.add(json.dumps(loader.state_dict()))
    [text] = texts
    assert len(text) < 2048
    assert json.loads(text)["position"] == 48


def test_a_state_does_not_change_after_it_was_taken(sources):
    loader = loader_of(sources)
    iterator, state = iter(loader), loader.state_dict()
    before = json.dumps(state)
    take(iterator, 3)
    loader.set_weights(SECOND)
    assert json.dumps(state) == before


@pytest.mark.parametrize(("change", "says"), [
    ({"version": 0}, "the saved stream has version 0, this lit_cpt reads 1 and 2: resume with the version that wrote"),
    ({"seed": 1}, "the saved stream has seed 1, this one 42"),
    ({"window": 3}, "the saved stream has window 3, this one 8.*Resume with the same"),
    ({"shuffle": False}, "the saved stream has shuffle False, this one True"),
    ({"shards": 4}, "the saved stream has shards 4, this one 1"),
    ({"sources": ["a", "b", "x"]}, r"draws on source 'x', which is not among this one's sources \('a', 'b', 'c'\)"),
    ({"blocks": [400, 150, 38]}, "the saved stream has sources.c 38 blocks, this one 37 blocks"),
])
def test_the_state_of_another_stream_is_refused_with_both_values(sources, change, says):
    loader = loader_of(sources)
    state = {**loader.state_dict(), "position": 40, **change}
    with pytest.raises(ValueError, match=says):
        loader.load_state_dict(state)
    assert loader.position == 0
    assert take(iter(loader), 2) == ideal_stream([(0, FIRST)], 8)


def test_a_change_that_was_allowed_is_taken_over(sources):
    loader = loader_of(sources, seed=7)
    loader.dataset.may_change = frozenset({"data.seed"})
    loader.load_state_dict({**loader_of(sources).state_dict(), "position": 40})
    assert (loader.position, loader.dataset.history.seed) == (40, 7)
    assert take(iter(loader), 5) == ideal_stream([(0, FIRST)], 60, seed=7)[40:]


def test_a_state_of_the_first_version_resumes(sources):
    loader = loader_of(sources)
    state = {**loader.state_dict(), "position": 40, "version": 1}
    del state["shards"]
    loader.load_state_dict(state)
    assert take(iter(loader), 5) == ideal_stream([(0, FIRST)], 60)[40:]


def test_a_state_of_the_first_version_is_refused_by_a_stream_of_several_shards(sources):
    state = {**loader_of(sources).state_dict(), "version": 1}
    del state["shards"]
    with pytest.raises(ValueError, match="the saved stream has shards 1, this one 4"):
        loader_of(sources, shards=4).load_state_dict(state)


def test_a_source_that_the_saved_stream_did_not_know_has_rested(sources):
    early = loader_of({name: sources[name] for name in "ac"}, {"a": 0.7, "c": 0.3})
    names = take(iter(early), 10)
    loader = loader_of(sources, {"a": 1.0})
    loader.load_state_dict(early.state_dict())
    assert names + take(iter(loader), 10) == ideal_stream([(0, {"a": 0.7, "c": 0.3})], 80)
    loader.set_weights({"b": 1.0})
    assert {source for source, _ in take(iter(loader), 5)} == {1}


def test_a_state_of_nothing_is_refused(sources):
    with pytest.raises(ValueError, match="the saved stream has version None"):
        loader_of(sources).load_state_dict({})


# Refusals ------------------------------------------------------------------------------------------------


def test_a_stream_refuses_weights_for_a_source_that_is_not_there(sources):
    with pytest.raises(ValueError, match="weights name 'd', which no source is called"):
        stream_of(sources, {"a": 0.5, "d": 0.5})


def test_a_stream_refuses_a_window_of_no_chunk(sources):
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        stream_of(sources, window=0)


def test_a_stream_refuses_a_source_without_a_whole_block_by_name(sources):
    long = {"a": StreamingDataset(sources["a"], item_loader=TokensLoader(block_size=9)),
            "c": StreamingDataset(sources["c"], item_loader=TokensLoader(block_size=9 * 17))}
    with pytest.raises(ValueError, match="source 'c' holds no whole block.*shorten sequence_length"):
        BlendedStreamingDataset(long, {"a": 0.5, "c": 0.5})


def test_a_loader_refuses_workers_that_outlive_a_switch(sources):
    with pytest.raises(ValueError, match="persistent_workers=True: workers hold a copy of the blend"):
        BlendedDataLoader(stream_of(sources), 4, 10, num_workers=1, persistent_workers=True)


def test_a_loader_refuses_a_dataset_of_another_type(sources):
    with pytest.raises(ValueError, match="dataset is a StreamingDataset; .* a BlendedStreamingDataset"):
        BlendedDataLoader(open_source(sources["a"], LENGTH), 4, 10)


def test_a_folder_that_is_no_prepared_source_is_refused_by_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nothing")):
        open_source(tmp_path / "nothing", LENGTH)


def test_sources_of_one_tokenizer_agree_with_each_other_and_with_the_models(sources):
    check_tokenizers(sources)
    check_tokenizers(sources, "f" * 64)
    check_tokenizers({})


def test_a_source_of_another_tokenizer_is_refused_with_both_fingerprints(sources, tmp_path):
    other = write_source(tmp_path / "other", 3, 5, fingerprint="e" * 64)
    with pytest.raises(ValueError, match=rf"source 'other' \({other}\) was tokenised with 'test', fingerprint "
                                         r"e{12}; source 'a' has f{12}\. Prepare it again"):
        check_tokenizers({**sources, "other": other})
    with pytest.raises(ValueError, match=r"source 'a' .* fingerprint f{12}; the model has 0{12}\."):
        check_tokenizers(sources, "0" * 64)


def test_workers_outlive_the_sigterm_that_a_scheduler_sends_to_all(sources):
    iterator = iter(loader_of(sources, workers=2))
    names = take(iterator, 2)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert names + take(iterator, 20) == ideal_stream([(0, FIRST)], 88)
    iterator.close()
    assert not multiprocessing.active_children()


def test_workers_leave_no_process_behind_after_switches(sources):
    loader = loader_of(sources, workers=2)
    iterator = iter(loader)
    for _ in range(3):
        take(iterator, 2)
        loader.set_weights(SECOND if loader.weights["c"] < 0.5 else FIRST)
    take(iterator, 1)
    assert len(multiprocessing.active_children()) <= 2
    iterator.close()
