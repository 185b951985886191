"""What data and blend cannot give each other."""

from __future__ import annotations

import pytest
from conftest import LENGTH, SIZES

from lit_cpt.blends import Blend
from lit_cpt.plan import plan
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine
from lit_cpt.shortfalls import Unused, shortfalls, unused, unused_lines

BATCH = Batch(LENGTH, 4)


def planned(first, *later, tokens=3200, blocks=SIZES):
    phases = [Phase("first", Blend(first)), *(Phase(f"later{place}", Blend(blend), when)
                                              for place, (blend, when) in enumerate(later))]
    return plan(Recipe(tokens, Cosine(1e-2), phases), BATCH, blocks)


def told(result, sources=tuple(SIZES), blocks=SIZES):
    return shortfalls(result, sources, blocks, LENGTH)


def test_a_run_whose_data_suffice_is_told_nothing():
    assert told(planned({"a": 0.75, "b": 0.25})) == []


def test_a_source_seen_too_often_is_named_with_the_source_of_the_rule():
    [line] = told(planned({"a": 0.5, "b": 0.5}, blocks={"a": 400, "b": 25}))
    assert line.startswith("b is seen 8.0 times; repeats beyond 4 are worth little (arXiv 2305.16264)")
    assert told(planned({"a": 0.5, "b": 0.5}, blocks={"a": 400, "b": 50})) == []  # just four times


def test_a_weight_too_small_for_its_phase_draws_nothing():
    [line] = told(planned({"a": 0.9999, "b": 0.0001}, tokens=64))
    assert line == "phase first draws nothing from b: 8 sequences are too few for a weight of 0.0001"


def test_a_share_that_comes_out_otherwise_is_told_and_one_within_a_tenth_is_not():
    [line] = told(planned({"a": 0.75, "b": 0.25}, ({"a": 0.43, "b": 0.57}, Trigger(fraction=0.96))))
    assert line == "phase later0 takes 0.375 of a and not 0.43: 6 of 16 sequences come no closer"  # b: 0.625, not 0.57


def test_a_source_without_a_block_is_told_with_the_length_it_lacks():
    [line] = told(planned({"a": 0.75, "b": 0.25}, blocks={"a": 400, "b": 0}), blocks={"a": 400, "b": 0})
    assert line.startswith(f"b has not one block of {LENGTH + 1} tokens")


def test_a_blend_that_names_what_the_data_lack_is_told_unless_no_data_are_given_yet():
    result = planned({"a": 0.5, "new": 0.5}, blocks={})
    assert told(result, blocks={}) == ["not in data.sources, and so refused by fit: new"]
    assert told(result, sources=(), blocks={}) == []


def test_sources_in_no_phase_and_what_is_never_reached_are_unused():
    found = unused(planned({"a": 0.75, "b": 0.25}, tokens=1600), [*SIZES, "old"])
    assert found.sources == ("c", "old")
    assert found.unread == {"a": pytest.approx(1 - 150 / 400), "b": pytest.approx(1 - 50 / 150)}
    assert unused_lines(found) == ["in no phase, so never trained on: c, old", "never read: 67% of b, 62% of a"]


def test_what_a_phase_that_is_not_foretold_draws_on_is_not_called_unused():
    waiting = planned({"a": 1.0}, ({"a": 0.5, "b": 0.5}, Trigger(metric="val/a/loss < 1")), tokens=1600)
    assert unused(waiting, ["a", "b"]) == Unused((), {})


def test_all_data_in_use_is_not_worth_a_line():
    assert unused_lines(unused(planned({"a": 0.75, "b": 0.25}, tokens=6400), ["a", "b"])) == []
