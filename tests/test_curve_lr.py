from __future__ import annotations

import json

import torch

from lit_cpt.blends import Blend
from lit_cpt.curve_lr import CurveLR
from lit_cpt.recipe import Phase, Recipe
from lit_cpt.schedules import Cosine

TOKENS = 32  # of a step
RECIPE = Recipe(10 * TOKENS, Cosine(1e-2), (Phase("only", Blend({"a": 1.0})),))


def test_the_scheduler_saves_its_clock_and_no_copy_of_the_recipe():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    schedule = CurveLR(optimizer, RECIPE, TOKENS)
    assert (schedule.tokens_seen, optimizer.param_groups[0]["lr"]) == (0, 1e-2)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert json.loads(json.dumps(schedule.state_dict())) == {"tokens_seen": 3 * TOKENS, "last_epoch": 3}
    again = CurveLR(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1.0), RECIPE, TOKENS)
    again.load_state_dict(schedule.state_dict())
    again.optimizer.step()
    again.step()
    assert again.tokens_seen == 4 * TOKENS
    assert again.optimizer.param_groups[0]["lr"] == RECIPE.eta_at(4 * TOKENS)
