from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.blends import BlendHistory
from lit_cpt.json_lines import append_line
from lit_cpt.ledger import (
    LEDGER,
    added,
    by_phase,
    cut_ledger,
    drawn,
    merged,
    position_of,
    read_ledger,
    repeated,
    shares,
)

stretches = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)).map(lambda one: (one[0], one[0] + one[1])),
                     max_size=5).map(lambda found: merged(*found))


@given(stretches, st.integers(0, 300))
def test_a_position_leaves_as_many_samples_behind_as_were_trained(passed, trained):
    position = position_of(trained, passed)
    before = [place for place in range(position) if not any(first <= place < stop for first, stop in passed)]
    assert len(before) == trained
    assert not any(first <= position < stop for first, stop in passed)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30)).map(lambda one: (one[0], one[0] + one[1]))))
def test_merged_stretches_hold_the_same_samples_and_do_not_touch(given_stretches):
    found = merged(*given_stretches)
    assert ({place for first, stop in found for place in range(first, stop)}
            == {place for first, stop in given_stretches for place in range(first, stop)})
    assert all(stop < first for (_, stop), (first, _) in itertools.pairwise(found))


@given(stretches, st.integers(0, 300), st.integers(0, 9))
def test_what_is_drawn_is_what_the_stream_hands_out(passed, position, seed):
    history = BlendHistory(["a", "b"], {"a": 0.7, "b": 0.3}, seed)
    history.plan(0, [(0, {"a": 0.7, "b": 0.3}), (90, {"a": 0.2, "b": 0.8})])
    chosen = history.choose(0, max(position, 1))[:position]
    kept = [source for place, source in enumerate(chosen)
            if not any(first <= place < stop for first, stop in passed)]
    assert drawn(history, position, passed) == {"a": kept.count(0), "b": kept.count(1)}


def test_each_phase_has_what_was_added_in_it():
    totals = [{"web": 0, "qa": 0}, {"web": 30, "qa": 0}, {"web": 34, "qa": 5}]
    assert by_phase([("general", 0), ("qa", 30)], totals) == {"general": {"web": 30}, "qa": {"web": 4, "qa": 5}}


def test_shares_of_nothing_are_none():
    assert shares({"web": 0}) == {}
    assert shares(added({"web": 1}, {"web": 4, "code": 1})) == {"web": 0.75, "code": 0.25}


def test_a_source_repeats_once_it_is_over_the_cap_and_is_told_once():
    assert repeated({"web": 4.0, "qa": 4.1, "code": 9.0}, 4.0, told=["code"]) == ["qa"]


def test_a_ledger_without_a_file_is_empty(tmp_path):
    assert read_ledger(tmp_path) == []
    cut_ledger(tmp_path, 0)
    assert not (tmp_path / LEDGER).exists()


def test_a_resumed_run_takes_back_the_lines_after_its_checkpoint(tmp_path):
    for step in (10, 20, 30):
        append_line(tmp_path / LEDGER, {"step": step})
    cut_ledger(tmp_path, 20)
    assert [json.loads(line)["step"] for line in (tmp_path / LEDGER).read_text().splitlines()] == [10, 20]
