from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import LENGTH, SIZES, ideal_stream, write_source
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.blends import Blend
from lit_cpt.plan import blocks_of, described, plan, render, source_blocks
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Constant, Cosine

FIRST, SECOND, THIRD = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}, {"b": 0.5, "c": 0.5}
PAPER = Recipe("300B", Cosine(4.5e-5), [Phase("general", Blend({"web": 0.7, "code": 0.3})), Phase(
    "qa", Blend({"web": 0.5, "qa": 0.5}), Trigger(eta_over_eta_max=0.2))])
BATCH = Batch(4096, 1152)


def recipe_of(*later, tokens=2000, first=FIRST):
    return Recipe(tokens, Cosine(1e-2), [Phase("first", Blend(first)), *(
        Phase(f"later{i}", Blend(blend), when) for i, (blend, when) in enumerate(later))])


# The paper ---------------------------------------------------------------------------------------------


def test_the_papers_switch_falls_at_71_percent_of_its_horizon():
    [general, qa] = plan(PAPER, BATCH).phases
    assert qa.start.fraction == pytest.approx(0.7113, abs=5e-5)
    assert qa.start.tokens == pytest.approx(213.4e9, rel=2e-4)
    assert qa.start.eta == pytest.approx(9e-6, rel=1e-3)
    assert qa.start.eta <= 9e-6 < PAPER.eta_at(qa.start.tokens - BATCH.tokens_per_step)
    assert (general.stop, qa.stop.tokens, qa.stop.eta) == (qa.start, 300 * 10**9, pytest.approx(4.5e-7))


def test_the_papers_other_statement_of_the_switch_stands_beside_it():
    [(first, by_eta), (second, by_tokens)] = plan(PAPER, BATCH).other_triggers
    assert (first, second) == ("LR = eta_max/5", "tokens = 250B")
    assert by_tokens.fraction == pytest.approx(0.8333, abs=5e-5)
    assert by_tokens.tokens >= 250 * 10**9 > by_tokens.tokens - BATCH.tokens_per_step
    assert by_tokens.eta < by_eta.eta


def test_a_statement_that_falls_outside_the_run_is_left_out():
    short = Recipe("1B", Constant(1e-4), [Phase("general", Blend({"web": 1.0}))])
    assert plan(short, BATCH).other_triggers == []


def test_triggers_are_told_in_words():
    assert described(Trigger(eta_over_eta_max=0.2)) == "LR = eta_max/5"
    assert described(Trigger(tokens="250B")) == "tokens = 250B"


# Samples and epochs --------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(0.1, 0.9), st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_samples_of_each_source_and_phase_are_those_of_the_stream(seed, fraction, global_batch):
    recipe = recipe_of((SECOND, Trigger(fraction=fraction)), (THIRD, Trigger(fraction=0.95)))
    batch = Batch(LENGTH, global_batch)
    result = plan(recipe, batch, SIZES, seed)
    starts = [phase.start.step * global_batch for phase in result.phases]
    legs = list(zip(starts, (FIRST, SECOND, THIRD), strict=True))
    stream = ideal_stream(legs, result.steps * global_batch, seed=seed)
    names = list(SIZES)
    for phase, start, stop in zip(result.phases, starts, [*starts[1:], len(stream)], strict=True):
        drawn = Counter(names[source] for source, _ in stream[start:stop])
        assert {part.name: part.samples for part in phase.sources if part.samples} == dict(drawn)
        assert sum(part.tokens for part in phase.sources) == phase.tokens
    total = Counter(names[source] for source, _ in stream)
    assert {part.name: part.samples for part in result.sources} == dict(total)
    assert all(part.epochs == part.samples / SIZES[part.name] for part in result.sources)


def test_a_source_of_weight_zero_is_not_listed_and_one_too_rare_to_be_drawn_is():
    resting = plan(recipe_of(first={"a": 0.5, "b": 0.5, "c": 0.0}), Batch(LENGTH, 4)).phases[0]
    assert [part.name for part in resting.sources] == ["a", "b"]
    rare = plan(recipe_of(tokens=64, first={"a": 0.9999, "b": 0.0001}), Batch(LENGTH, 4)).phases[0]
    assert [(part.name, part.samples) for part in rare.sources] == [("a", 8), ("b", 0)]


def test_epochs_are_unknown_where_the_size_is():
    known = [part.name for part in plan(recipe_of(), Batch(LENGTH, 4), {"a": 9}).sources if part.epochs is not None]
    assert known == ["a"]


def test_blocks_are_counted_chunk_by_chunk(sources):
    assert source_blocks(sources, LENGTH) == SIZES
    per_chunk = 16 * (LENGTH + 1) // 25  # a block of 25 tokens never spans two chunks
    assert blocks_of(sources["a"], 24) == SIZES["a"] // 16 * per_chunk


def test_epochs_of_a_plan_come_from_the_blocks_on_disk(sources):
    result = plan(recipe_of(), Batch(LENGTH, 4), source_blocks(sources, LENGTH))
    assert {part.name: part.epochs for part in result.sources} == {
        part.name: part.samples / SIZES[part.name] for part in result.sources}


def test_a_folder_that_is_no_source_is_named_with_its_source(sources, tmp_path):
    with pytest.raises(FileNotFoundError, match="source 'mine': there is no folder '.*gone'"):
        source_blocks({**sources, "mine": tmp_path / "gone"}, LENGTH)
    with pytest.raises(FileNotFoundError, match="source 'mine': .* is not a prepared source"):
        source_blocks({"mine": tmp_path}, LENGTH)


# Steps -----------------------------------------------------------------------------------------------------


def test_a_last_step_that_reaches_past_the_horizon_ends_the_curve_at_its_end():
    result = plan(recipe_of(tokens=100), Batch(LENGTH, 4))
    assert (result.steps, result.phases[0].stop.tokens, result.phases[0].tokens) == (4, 100, 128)
    assert result.phases[0].stop.eta == pytest.approx(1e-4)


def test_the_curve_is_drawn_from_start_to_end():
    curve = plan(recipe_of(tokens=2000), Batch(LENGTH, 4)).curve
    assert (curve[0], curve[-1], len(curve)) == ((0, 1e-2), (2000, pytest.approx(1e-4)), 201)


def test_a_phase_without_a_step_is_refused():
    with pytest.raises(ValueError, match="phase 'later0' would run from step 1 to 1: no step at all"):
        plan(recipe_of((SECOND, Trigger(fraction=0.9)), tokens=32), Batch(LENGTH, 4))


def test_a_plan_is_plain_values_and_survives_json():
    result = plan(PAPER, BATCH, {"web": 10**6})
    told = json.loads(json.dumps(result.describe()))
    assert told["phases"][1]["start"]["step"] == result.phases[1].start.step
    assert told["phases"][0]["sources"][0] == {"name": "code", "weight": 0.3, "epochs": None, "samples": pytest.approx(
        0.3 * 213.4e9 / 4096, rel=1e-3), "tokens": pytest.approx(0.3 * 213.4e9, rel=1e-3)}


# Text --------------------------------------------------------------------------------------------------------


def test_the_text_tells_switch_blends_and_both_statements():
    lines = render(plan(PAPER, BATCH)).splitlines()
    assert lines[0] == "300B tokens in 63,579 steps of 4.719M tokens; LR 4.5e-05 to 4.5e-07"
    [switch] = [line for line in lines if line.startswith("qa ") and "eta_over_eta_max" in line]
    assert switch.split() == ["qa", "eta_over_eta_max=0.2", "45,225", "213.4B", "71.13%", "8.999e-06", "86.61B"]
    assert ["general", "qa", "all"] in [line.split() for line in lines]
    assert ["source", *["weight", "tokens", "epochs"] * 3] in [line.split() for line in lines]
    assert ["qa", "-", "-", "-", "0.5", "43.3B", "?", "0.1443", "43.3B", "?"] in [line.split() for line in lines]
    assert "the paper states its switch twice; on this curve:" in lines
    assert "tokens = 250B        step 52,982, 250B tokens (83.33%), LR 3.434e-06" in lines[-1]


def test_one_phase_needs_no_totals_and_no_switch():
    text = render(plan(recipe_of(), Batch(LENGTH, 4)))
    assert "twice" not in text
    assert [line.split() for line in text.splitlines()][6:8] == [["first"], ["source", "weight", "tokens", "epochs"]]


def test_a_source_seen_too_often_is_marked():
    lines = render(plan(recipe_of(), Batch(LENGTH, 4), {"a": 400, "b": 150, "c": 2})).splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" !")] == ["c"]
    assert "!" not in render(plan(recipe_of(), Batch(LENGTH, 4), SIZES))


WAITING = recipe_of((SECOND, Trigger(fraction=0.5)), (THIRD, Trigger(metric="val/c/loss < 1.2")),
                    ({"a": 1.0}, Trigger(fraction=0.9)))


def test_a_phase_that_waits_for_a_metric_and_those_behind_it_have_no_place_in_the_plan():
    result, known = (plan(recipe, Batch(LENGTH, 4), SIZES) for recipe in (
        WAITING, recipe_of((SECOND, Trigger(fraction=0.5)))))
    assert result.phases[:2] == known.phases
    assert result.sources == known.sources
    for phase in result.phases[2:]:
        assert (phase.start, phase.stop, phase.tokens) == (None, None, 0)
    told = json.loads(json.dumps(result.describe()))["phases"][2]
    assert (told["start"], told["when"]) == (None, "val/c/loss < 1.2")
    assert told["sources"] == [{"name": name, "weight": 0.5, "samples": 0, "tokens": 0, "epochs": None}
                               for name in ("b", "c")]


def test_the_text_says_what_is_not_foretold():
    lines = render(plan(WAITING, Batch(LENGTH, 4), SIZES)).splitlines()
    [row] = [line for line in lines if line.startswith("later1 ") and "<" in line]
    assert row.split() == ["later1", "val/c/loss", "<", "1.2", *"?????"]
    [c] = [line.split() for line in lines if line.startswith("c ")]
    assert (c[7:10], c[10:13]) == (["0.5", "?", "?"], ["-", "-", "-"])
    told = lines.index("phase later1 begins when val/c/loss < 1.2: not foretold")
    assert lines[told + 1] == "phase later2 begins when fraction = 0.9, after later1: not foretold".replace(" = ", "=")
    assert lines[told + 2] == "the figures are of a run that stays in phase later0 to the end"
    assert "foretold" not in render(plan(PAPER, BATCH))


def test_a_curve_of_another_shape_moves_the_switch():
    wsd = Recipe(2000, WSD(1e-2, decay=0.2), PAPER.phases)
    assert plan(wsd, Batch(LENGTH, 1)).phases[1].start.fraction > 0.8 > plan(
        Recipe(2000, Cosine(1e-2), PAPER.phases), Batch(LENGTH, 1)).phases[1].start.fraction


def test_an_unprepared_validation_split_moves_nothing(tmp_path):
    folder = write_source(tmp_path / "d", 0, 20, validation=0)
    assert blocks_of(folder, LENGTH) == 20
