"""In what a run differs from the paper's recipe."""

from __future__ import annotations

import pytest

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.departures import departures
from lit_cpt.plan import plan
from lit_cpt.recipe import AdamW, Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Cosine, Warmup

SECOND = Phase("qa", Blend({"qa": 1.0}), Trigger(eta_over_eta_max=0.2))
WARM = {"pretrained": "x", "optimizer_state": "y"}


def differs(curve=None, *later, optimizer=None, tokens="10B", model=WARM):
    recipe = Recipe(tokens, curve or Cosine(3e-5), [Phase("general", Blend({"web": 1.0})), *(later or [SECOND])],
                    optimizer or AdamW())
    return departures(recipe, plan(recipe, Batch(4096, 256)), model)


@pytest.mark.parametrize("recipe", ["recipes/paper", "recipes/paper_tokens"])
def test_the_papers_recipe_as_it_is_shipped_differs_in_nothing(recipe, capsys):
    assert main(["plan", "--config", recipe]) == 0
    assert "as in the paper (arXiv 2407.07263): no warm-up" in capsys.readouterr().out.splitlines()[-1]


def test_neither_size_nor_rate_nor_another_word_for_the_same_switch_is_a_difference():
    assert differs() == []
    assert differs(Cosine(1e-3), Phase("qa", Blend({"qa": 1.0}), Trigger(eta=2e-4))) == []


@pytest.mark.parametrize(("given", "told"), [
    ({"curve": Cosine(3e-5, 3e-6)}, "ends at eta_max/10; the paper: eta_max/100"),
    ({"curve": Cosine(3e-5, 0.0)}, "ends at 0; the paper: eta_max/100"),
    ({"curve": WSD(3e-5)}, "curve WSD; the paper: Cosine"),
    ({"curve": Warmup(Cosine(3e-5), 0.02)}, "climbs over the first 0.02 of the horizon; the paper: no warm-up"),
    ({"optimizer": AdamW(betas=(0.9, 0.999))}, "betas (0.9, 0.999); the paper: (0.9, 0.95)"),
    ({"optimizer": AdamW(weight_decay=0.0)}, "weight_decay 0.0; the paper: 0.1"),
    ({"model": {"architecture": {"model_type": "llama"}}}, "begins with random weights; the paper: pretrained ones"),
    ({"model": {"pretrained": "x", "optimizer_state": None}},
     "AdamW starts cold; the paper: with pretraining's state (model.optimizer_state)")])
def test_a_difference_is_told_beside_what_the_paper_does(given, told):
    assert differs(**given) == [told]


@pytest.mark.parametrize(("when", "told"), [
    (Trigger(eta_over_eta_max=0.5), "switches at eta_max/2; the paper: at eta_max/5"),
    (Trigger(fraction=0.9), "switches at eta_max/29.3; the paper: at eta_max/5"),
    (Trigger(metric="val/qa/loss < 1"), "switches when val/qa/loss < 1; the paper: at eta_max/5")])
def test_another_switch_is_told_by_its_rate(when, told):
    assert differs(None, Phase("qa", Blend({"qa": 1.0}), when)) == [told]


def test_more_phases_or_one_alone_are_told():
    third = Phase("third", Blend({"web": 1.0}), Trigger(fraction=0.95))
    assert differs(None, SECOND, third) == ["3 phases; the paper: 2, a general and a QA blend"]
    recipe = Recipe("10B", Cosine(3e-5), [Phase("general", Blend({"web": 1.0}))])
    assert departures(recipe, plan(recipe, Batch(4096, 256)), {}) == ["1 phase; the paper: 2, a general and a QA blend"]
