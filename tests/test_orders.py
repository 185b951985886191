from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.orders import SourceOrder

quick = settings(max_examples=40, deadline=None)
PINNED_BLOCKS = [(2, 0), (2, 3), (1, 0), (1, 1), (1, 2), (2, 2), (2, 1), (0, 4), (0, 2), (0, 3), (0, 0), (0, 1), (2, 0),
                 (0, 0)]


def test_the_order_never_changes_silently():
    order = SourceOrder("web", [5, 3, 4], seed=42, window=2)
    assert [order.locate(draw) for draw in range(14)] == PINNED_BLOCKS


CHUNKS = st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any)


@quick
@given(CHUNKS, st.integers(1, 9), st.integers(0, 2**63))
def test_every_epoch_visits_each_block_once(blocks, window, seed):
    order = SourceOrder("web", blocks, seed, window)
    every = sorted((chunk, block) for chunk, count in enumerate(blocks) for block in range(count))
    for epoch in range(3):
        located = [order.locate(epoch * order.total + place) for place in range(order.total)]
        assert sorted(located) == every


@quick
@given(CHUNKS, st.integers(1, 9), st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_a_seek_equals_walking(blocks, window, draws):
    walker = SourceOrder("web", blocks, 5, window)
    walked = [walker.locate(draw) for draw in range(4 * walker.total)]
    seeker = SourceOrder("web", blocks, 5, window)
    places = [draw % (4 * seeker.total) for draw in draws]
    assert [seeker.locate(place) for place in places] == [walked[place] for place in places]


def test_a_seek_far_out_opens_one_window_of_its_epoch():
    order = SourceOrder("web", [4096] * 16_000, seed=1, window=8)
    order.locate(123_456_789)
    [window] = order.open.values()
    assert window.epoch == 123_456_789 // (4096 * 16_000)
    assert window.low <= 123_456_789 % (4096 * 16_000) < window.high
    assert len(window.items) == window.high - window.low == 8 * 4096


def test_two_epochs_have_two_orders():
    order = SourceOrder("web", [8] * 8, seed=1, window=2)
    first, second = ([order.locate(epoch * 64 + place) for place in range(64)] for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_the_blocks_of_a_window_of_chunks_are_shuffled_together_and_windows_do_not_mix():
    order = SourceOrder("web", [10] * 9, seed=1, window=3)
    chunks = [order.locate(place)[0] for place in range(90)]
    windows = [set(chunks[start : start + 30]) for start in (0, 30, 60)]
    assert [len(window) for window in windows] == [3, 3, 3]
    assert len(set().union(*windows)) == 9
    assert chunks[:30] != sorted(chunks[:30], key=chunks.index)  # not chunk after chunk


def test_without_shuffling_a_source_is_read_front_to_back_again_and_again():
    order = SourceOrder("web", [2, 0, 3], seed=1, shuffle=False)
    assert [order.locate(draw) for draw in range(7)] == [
        (0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (0, 0), (0, 1)]


def test_adding_a_source_leaves_the_order_of_the_others_as_it_was():
    alone = SourceOrder("web", [7, 5, 9], seed=42)
    located = [alone.locate(draw) for draw in range(60)]
    for name in ("a source before it", "zzz"):
        together = {each: SourceOrder(each, [7, 5, 9], seed=42) for each in (name, "web")}
        assert [together["web"].locate(draw) for draw in range(60)] == located
        assert [together[name].locate(draw) for draw in range(60)] != located


def test_a_source_without_a_whole_block_is_refused_by_name():
    with pytest.raises(ValueError, match="source 'tiny' holds no whole block: it has fewer tokens"):
        SourceOrder("tiny", [0, 0], seed=1)
