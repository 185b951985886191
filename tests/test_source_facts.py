from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lit_cpt.source_facts import SourceFacts, check_sources

PLAIN = {"web": SourceFacts(tokens="2T", share=0.8), "code": SourceFacts(tokens="1B", share=0.2)}
QA = {"qa": SourceFacts(tokens="3M", kind="qa")}


def test_a_score_and_a_loss_tell_weakness_on_one_scale():
    assert SourceFacts(score=0.25, target=0.5).weakness == 0.5
    assert SourceFacts(loss=2.0 + math.log(2), target=2.0).weakness == pytest.approx(0.5)
    assert SourceFacts(score=0.9, target=0.5).weakness == SourceFacts(loss=0.0, target=5000).weakness == 0.0
    assert SourceFacts().weakness == 0.0


def test_a_source_of_unknown_size_has_no_end():
    assert SourceFacts(tokens="3M").size == 3e6
    assert SourceFacts(share=0.2).size == math.inf


def test_what_is_enough_is_not_refused():
    check_sources({**PLAIN, **QA})
    check_sources({name: replace(one, share=None) for name, one in {**PLAIN, **QA}.items()})
    check_sources({name: replace(one, tokens=None) for name, one in PLAIN.items()})


@pytest.mark.parametrize(("changes", "says"), [
    ({"tier": "hihg"}, "source 'code': tier='hihg' is not known; choose low, medium, high"),
    ({"kind": "QA"}, "source 'code': kind='QA' is not known; choose text, qa"),
    ({"tokens": -5}, "source 'code': tokens=-5 is not a count"),
    ({"tokens": 0}, "source 'code': tokens=0: a source holds at least one"),
    ({"share": -0.2}, "source 'code': share=-0.2 must be positive"),
    ({"share": math.nan}, "source 'code': share=nan must be positive"),
    ({"share": None}, "source 'code' has no share, but others have"),
    ({"kind": "qa"}, "source 'code': share=0.2, but kind qa has no share of pretraining"),
    ({"kind": "qa", "share": None, "tokens": None}, "source 'code' has no size: give tokens .* wrote.$"),
    ({"score": 0.3}, "source 'code': score=0.3 alone tells no weakness"),
    ({"target": 0.3}, "source 'code': target=0.3 alone tells no weakness"),
    ({"loss": 2.5}, "source 'code': loss=2.5 alone tells no weakness"),
    ({"loss": 2.5, "score": 0.3, "target": 2.0}, "source 'code': score=0.3 and loss=2.5: give one"),
    ({"score": -0.3, "target": 0.5}, "score=-0.3 with target=0.5: give a score of at least 0"),
    ({"loss": 2.0, "target": 0}, "loss=2.0 with target=0: give a loss of at least 0 and a positive target")])
def test_a_mistake_is_told_by_the_name_of_its_source(changes, says):
    with pytest.raises(ValueError, match=says):
        check_sources({**PLAIN, "code": replace(PLAIN["code"], **changes), **QA})


@pytest.mark.parametrize(("sources", "says"), [
    ({}, "there is no source of kind text"),
    (QA, "there is no source of kind text"),
    ({"web": SourceFacts(), **QA}, "source 'web' has no size: .*, or a `share` for every text source")])
def test_sources_from_which_no_blend_follows_are_refused(sources, says):
    with pytest.raises(ValueError, match=says):
        check_sources(sources)
