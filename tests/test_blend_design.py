from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_cpt.blend_design import UNITS, Emphasis, Rule, suggest
from lit_cpt.source_facts import TIERS, SourceFacts
from lit_cpt.units import parse_count

PHASES = (7113, 2887)
FREE = 10**9  # tokens of a source that no cap touches
PLAIN = {"web": SourceFacts(tokens=FREE, share=0.8), "code": SourceFacts(tokens=FREE, share=0.2)}
QA = {"qa": SourceFacts(tokens=FREE, kind="qa")}
quick = settings(max_examples=60, deadline=None)

LEVELS = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
TEXT = st.builds(SourceFacts, tokens=st.integers(300, 30_000), share=st.floats(0.01, 1), score=LEVELS,
                 tier=st.sampled_from(sorted(TIERS)), target=st.just(1.0))
ANSWERS = st.builds(SourceFacts, tokens=st.integers(1, 2_000), kind=st.just("qa"), tier=st.sampled_from(sorted(TIERS)))
SOURCES = st.builds(lambda text, answers: {**{f"t{i}": one for i, one in enumerate(text)},
                                           **{f"q{i}": one for i, one in enumerate(answers)}},
                    st.lists(TEXT, min_size=1, max_size=5), st.lists(ANSWERS, min_size=1, max_size=2))


def weights(blend):
    return {name: one.weight for name, one in blend.items()}


def trained(blends, name, phases=PHASES):
    """Tokens of a source over the run."""
    return sum(blend[name].weight * count for blend, count in zip(blends, phases, strict=True) if name in blend)


def feasible(sources, rule=None):
    """The blends; examples without any are left out."""
    try:
        return suggest(sources, PHASES, rule or Rule())
    except ValueError as error:
        assume("Lower token_horizon" not in str(error))
        raise


# The rule ------------------------------------------------------------------------------------------------


def test_the_rule_is_the_one_in_the_docs():
    sources = {"web": SourceFacts(tokens=FREE, share=0.6, tier="low"), "code": SourceFacts(
        tokens=FREE, share=0.4, tier="high", score=0.3, target=0.6), **QA}
    general, late = suggest(sources, PHASES, Rule())
    web, code = 0.6 * 0.5, 0.4 * 2 * (1 + 0.5)
    assert weights(general) == {"web": pytest.approx(0.5 * 0.6 + 0.5 * web / (web + code), abs=5e-5),
                                "code": pytest.approx(0.5 * 0.4 + 0.5 * code / (web + code), abs=5e-5)}
    code = 0.4 * 2 * (1 + 3 * 0.5)
    assert weights(late) == {"web": pytest.approx(0.25 * 0.6 + 0.6 * web / (web + code), abs=5e-5),
                             "code": pytest.approx(0.25 * 0.4 + 0.6 * code / (web + code), abs=5e-5), "qa": 0.15}
    assert (late["code"].tier, late["code"].weak, late["code"].capped) == ("high", 2.5, False)


def test_what_is_neither_weak_nor_of_a_tier_keeps_its_share():
    general, late = suggest({**PLAIN, **QA}, PHASES, Rule())
    assert weights(general) == {"web": 0.8, "code": 0.2}
    assert weights(late) == {"web": 0.68, "code": 0.17, "qa": 0.15}


def test_without_shares_the_mix_follows_the_sizes():
    general, _ = suggest({"web": SourceFacts(tokens="3M"), "code": SourceFacts(tokens="1M"), **QA}, PHASES, Rule())
    assert weights(general) == {"web": 0.75, "code": 0.25}


def test_question_answer_data_is_shared_out_by_size_and_tier():
    late = suggest({**PLAIN, "a": SourceFacts(tokens=FREE, kind="qa", tier="high"),
                    "b": SourceFacts(tokens=FREE, kind="qa")}, PHASES, Rule())[1]
    assert (late["a"].weight, late["b"].weight) == (0.1, 0.05)


def test_a_second_blend_may_do_without_question_answer_data():
    rule = Rule(qa=Emphasis(replay=0.25, weakness=3.0))
    assert weights(suggest(PLAIN, PHASES, rule)[1]) == {"web": 0.8, "code": 0.2}
    assert list(suggest({**PLAIN, **QA}, PHASES, rule)[1]) == ["web", "code"]


# Caps ------------------------------------------------------------------------------------------------------


def test_a_capped_source_is_seen_max_epochs_times_and_the_others_take_its_rest():
    sources = {"web": SourceFacts(tokens=FREE, share=0.4), "code": SourceFacts(tokens=FREE, share=0.2),
               "books": SourceFacts(tokens=500, share=0.4), **QA}
    blends = suggest(sources, PHASES, Rule())
    assert trained(blends, "books") == pytest.approx(2000, abs=2)
    assert [blend["books"].capped for blend in blends] == [True, True]
    assert all(blend["web"].weight == pytest.approx(2 * blend["code"].weight, abs=2e-4) for blend in blends)
    assert blends[0]["books"].weight / blends[1]["books"].weight == pytest.approx(0.4 / 0.34, rel=1e-3)
    assert sum(blend["books"].epochs for blend in blends) == pytest.approx(4, abs=0.01)


def test_text_makes_up_for_question_answer_data_that_is_too_small():
    sources = {**PLAIN, "qa": SourceFacts(tokens=50, kind="qa")}
    late = suggest(sources, PHASES, Rule())[1]
    assert late["qa"].weight == pytest.approx(200 / 2887, abs=1e-4)
    assert late["web"].weight == pytest.approx(4 * late["code"].weight, abs=3e-4)


def test_text_that_is_too_small_is_no_reason_for_more_question_answer_data():
    sources = {"web": SourceFacts(tokens=1500, share=0.9), "code": SourceFacts(tokens=FREE, share=0.1), **QA}
    assert suggest(sources, PHASES, Rule())[1]["qa"].weight == 0.15


def test_a_source_of_unknown_size_is_not_capped():
    one = suggest({"web": SourceFacts(share=1.0), **QA}, PHASES, Rule())[0]["web"]
    assert (one.weight, one.epochs, one.capped) == (1.0, None, False)


@quick
@given(SOURCES)
def test_the_cures_named_where_sources_are_too_small_do_cure(sources):
    sources = {name: replace(one, tokens=max(1, int(one.tokens) // 100)) for name, one in sources.items()}
    with pytest.raises(ValueError, match="10k tokens are .* more than the sources give in 4 epochs") as refused:
        suggest(sources, PHASES, Rule())
    horizon, epochs = re.search(r"token_horizon to (\S+), raise max_epochs to (\S+),", str(refused.value)).groups()
    share = parse_count(horizon) / 10_000
    assert suggest(sources, [count * share for count in PHASES], Rule())
    assert suggest(sources, PHASES, Rule(max_epochs=float(epochs)))


# What holds for any sources ----------------------------------------------------------------------------------


@quick
@given(SOURCES)
def test_weights_have_four_digits_and_sum_to_one(sources):
    for blend in feasible(sources):
        units = [one.weight * UNITS for one in blend.values()]
        assert sum(map(round, units)) == UNITS
        assert all(abs(unit - round(unit)) < 1e-8 for unit in units)


@quick
@given(SOURCES)
def test_no_source_is_repeated_more_often_than_allowed(sources):
    blends = feasible(sources)
    full = all(4 * int(one.tokens) - trained(blends, name) < 2e-3 * sum(PHASES) for name, one in sources.items())
    slack = 2e-3 * sum(PHASES) if full else 1e-9  # where every source is at its cap, rounding has no other place to go
    for name, one in sources.items():
        assert trained(blends, name) <= 4 * int(one.tokens) * (1 + 1e-9) + slack


@quick
@given(SOURCES)
def test_no_source_falls_below_its_replay_but_for_its_cap(sources):
    for blend, emphasis in zip(feasible(sources), (Rule().general, Rule().qa), strict=True):
        for name, one in blend.items():
            assert one.capped or sources[name].kind == "qa" or one.weight >= emphasis.replay * one.share - 1 / UNITS


@quick
@given(SOURCES, st.sampled_from([{"tier": "high"}, {"score": 0.0}]))
def test_better_or_weaker_sources_get_no_less(sources, change):
    before, after = feasible(sources), feasible({**sources, "t0": replace(sources["t0"], **change)})
    assert all(late["t0"].asked >= early["t0"].asked - 1e-12 for early, late in zip(before, after, strict=True))
    assert trained(after, "t0") >= trained(before, "t0") - 2e-3 * sum(PHASES)  # rounding


@quick
@given(SOURCES, st.randoms())
def test_the_order_of_sources_decides_nothing(sources, random):
    names = list(sources)
    random.shuffle(names)
    found = feasible({name: sources[name] for name in names})
    assert found == feasible(sources)
    assert [name for name in names if name in found[1]] == list(found[1])


# Mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "share"), [
    (Rule(), 0.15), (Rule(general=Emphasis(qa_share=0.02), qa=Emphasis()), 0.02)])
def test_a_share_for_question_answer_data_that_is_not_there_is_refused(rule, share):
    with pytest.raises(ValueError, match=f"no source is of kind qa, but qa_share={share} .*or give --qa.qa_share 0"):
        suggest(PLAIN, PHASES, rule)


def test_a_phase_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a phase trains 0 tokens: give a token_horizon"):
        suggest({**PLAIN, **QA}, (0, 0), Rule())


@pytest.mark.parametrize(("build", "says"), [
    (lambda: Emphasis(replay=1.5), "replay=1.5 must lie in"),
    (lambda: Emphasis(weakness=-1), "weakness=-1 must be a finite factor"),
    (lambda: Emphasis(replay=0.9, qa_share=0.2), "qa_share=0.2 must lie in .* replay=0.9"),
    (lambda: Emphasis(replay=0, qa_share=1), "qa_share=1 must lie in"),
    (lambda: Rule(max_epochs=0), "max_epochs=0 must be positive")])
def test_settings_out_of_range_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()
