from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.blends import BlendHistory
from lit_cpt.orders import SourceOrder
from lit_cpt.shards import SMALL, ShardedDraws, shards_of

NAMES = ("a", "b", "c")
WEIGHTS = st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.5]), min_size=3, max_size=3).filter(any)
LEGS = st.lists(st.tuples(st.integers(1, 300), WEIGHTS), max_size=4)
CHUNKS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
quick = settings(max_examples=60, deadline=None)


def history_of(first, legs, seed=7):
    history = BlendHistory(NAMES, dict(zip(NAMES, first, strict=True)), seed)
    start, future = 0, []
    for length, weights in legs:
        start += length
        future.append((start, dict(zip(NAMES, weights, strict=True))))
    history.plan(0, future)
    return history


def walked(history, source, blocks, shards, samples, window=2):
    """(epoch, chunk, block) of every draw from ``source``, in the order of the samples, with its shard."""
    draws = ShardedDraws(history, source, sum(blocks), shards)
    order = SourceOrder("x", blocks, 7, window, sharded=draws)
    chosen, turns, found = history.choose(0, samples), [0] * shards, []
    for draw, sample in enumerate(np.flatnonzero(chosen == source).tolist()):
        shard = sample % shards
        found.append((draw // order.total, shard, *order.locate(draw, shard, turns[shard])))
        turns[shard] += 1
    return found


@quick
@given(WEIGHTS, LEGS, st.integers(1, 9), st.integers(0, 900), st.integers(0, 2))
def test_counts_per_shard_equal_counting_one_by_one(first, legs, shards, position, source):
    history = history_of(first, legs)
    draws = ShardedDraws(history, source, 10, shards)
    samples = np.flatnonzero(history.choose(0, position) == source)
    assert draws.counts(position) == np.bincount(samples % shards, minlength=shards).tolist()
    assert sum(draws.counts(position)) == history.counts(position)[source]


@quick
@given(WEIGHTS, LEGS, CHUNKS, st.integers(1, 6), st.integers(1, 4))
def test_every_epoch_reads_each_block_once_whatever_the_switches(first, legs, blocks, shards, window):
    history = history_of(first, legs)
    for source in range(3):
        found = Counter((epoch, chunk, block) for epoch, _, chunk, block
                        in walked(history, source, blocks, shards, 900, window))
        assert all(count == 1 for count in found.values())
        whole = max((epoch for epoch, _, _ in found), default=0)
        assert Counter(epoch for epoch, _, _ in found if epoch < whole) == dict.fromkeys(range(whole), sum(blocks))


@quick
@given(WEIGHTS, LEGS, CHUNKS)
def test_one_shard_is_the_plain_order(first, legs, blocks):
    history, plain = history_of(first, legs), SourceOrder("x", blocks, 7, 2)
    places = [place[2:] for place in walked(history, 0, blocks, 1, 500)]
    assert places == [plain.locate(draw) for draw in range(len(places))]
    draws = ShardedDraws(history, 0, sum(blocks), 1)
    assert [draws.place(draw // plain.total, 0, draw) for draw in range(len(places))] == [
        (0, draw % plain.total) for draw in range(len(places))]


@quick
@given(WEIGHTS, WEIGHTS, st.integers(1, 400), CHUNKS, st.integers(2, 5))
def test_what_comes_before_a_switch_does_not_know_of_it(first, second, start, blocks, shards):
    foretold = walked(history_of(first, [(start, second)]), 0, blocks, shards, start)
    assert foretold == walked(history_of(first, []), 0, blocks, shards, start)


@quick
@given(WEIGHTS, LEGS, st.integers(0, 800), st.integers(0, 2))
def test_the_sample_of_a_draw_is_found_without_walking(first, legs, draw, source):
    history = history_of(first, legs)
    samples = np.flatnonzero(history.choose(0, 30_000) == source)
    draws = ShardedDraws(history, source, 10, 3)
    if draw < len(samples):
        assert draws.sample_of(draw, draws.leg_of(draw)) == samples[draw]


def test_a_shard_reads_neighbouring_chunks_of_an_epoch():
    blocks = [50] * 64
    found = walked(history_of([0.5, 0.3, 0.2], []), 0, blocks, 8, 6400, window=2)
    for shard in range(8):
        chunks = {chunk for epoch, owner, chunk, _ in found if (epoch, owner) == (0, shard)}
        assert len(chunks) <= 64 // 8 + 2  # its share, and one cut in two at either end


def test_looking_ahead_names_the_chunks_of_the_next_window():
    history, blocks, shards = history_of([0.5, 0.3, 0.2], []), [10] * 30, 4
    draws = ShardedDraws(history, 0, 300, shards)
    order = SourceOrder("x", blocks, 7, 3, sharded=draws)
    turns, ahead, seen = [0] * shards, {}, {}
    for draw, sample in enumerate(np.flatnonzero(history.choose(0, 3000) == 0).tolist()):
        shard = sample % shards
        window, _ = order.window_at(draw // 300, draw, shard, turns[shard])
        if seen.get(shard) is not window:
            assert ahead.get(shard, window.chunks) == window.chunks
            seen[shard] = window
        ahead[shard] = order.chunks_after(draw // 300, draw, shard, turns[shard])
        turns[shard] += 1


def test_a_position_far_out_is_reached_without_walking_there():
    history = history_of([0.5, 0.3, 0.2], [(10**9, [0.2, 0.3, 0.5])])
    draws = ShardedDraws(history, 2, 16_000 * 4375, 64)
    counts = draws.counts(10**12)
    assert sum(counts) == history.counts(10**12)[2]
    assert max(counts) - min(counts) < 100


@pytest.mark.parametrize(("blocks", "shards"), [(SMALL * 8 - 1, 1), (SMALL * 8, 8)])
def test_a_small_source_is_not_cut(blocks, shards):
    assert shards_of(blocks, 8) == shards
