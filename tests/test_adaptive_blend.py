"""A blend that follows training: exact through resumes, within its bounds, in ledger and diary."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, make_trainer
from torch.utils.data import DataLoader

from lit_cpt.adaptive import Bandit, BlendRule, ExcessLoss
from lit_cpt.blends import Blend
from lit_cpt.callbacks import AdaptiveBlendCallback, PhaseSwitchCallback, TokenLedgerCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.ledger import read_ledger
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "c": 0.9}
GLOBAL, STEPS, SWITCH = 4, 24, 17
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), (
    Phase("general", Blend(FIRST)), Phase("qa", Blend(SECOND), Trigger(step=SWITCH))))


class Only(BlendRule):
    """Nothing but one source."""

    def __init__(self, name):
        self.name = name

    def propose(self, seen, memory):
        return {name: 1.0 if name == self.name else 1e-9 for name in seen.start}, {"turns": memory.get("turns", 0) + 1}


def run(sources, tiny, folder, rule, *callbacks, micro=GLOBAL, resume=None, last=False, **settings):
    """The diary's blends and the ledger of a run, and its final weights."""
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=0, validation_blocks=0)
    torch.manual_seed(0)
    adaptive = AdaptiveBlendCallback(rule, every_n_steps=3, **{"max_epochs": 100.0, **settings})
    several = [PhaseSwitchCallback(), adaptive, TokenLedgerCallback(100.0)]
    module = ContinuedPretraining(RECIPE, architecture=tiny)
    fit(module, data, folder, *(reversed(several) if last else several), *callbacks, resume=resume, log_every_n_steps=3)
    blends = [(event["step"], event["weights"]) for event in read_events(folder) if event["event"] == "blend"]
    return blends, read_ledger(folder), module.state_dict()


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """A run led by a bandit, with checkpoints at a decision, between two, and in the second phase."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(sources, tiny, folder, Bandit(0.5), SaveAt(folder, 8, 12, 18, 20))


def test_the_blend_changes_every_so_many_steps_within_its_phase(whole):
    blends, ledger, _ = whole[1]
    assert [step for step, _ in blends] == [3, 6, 9, 12, 15, 18, 21, 24]
    for step, weights in blends:
        start = FIRST if step <= SWITCH else SECOND
        assert weights.keys() == start.keys()
        assert sum(weights.values()) == pytest.approx(1)
        assert all(0.25 * start[name] - 1e-5 <= share <= 4 * start[name] + 1e-5 for name, share in weights.items())
    assert len({str(weights) for _, weights in blends}) > 4
    assert [event["step"] for event in read_events(whole[0]) if event["event"] == "phase"] == [SWITCH]
    assert set(ledger[-1]["phases"]["qa"]) <= {"a", "c"}


@pytest.mark.parametrize("step", [8, 12, 18, 20])
@pytest.mark.parametrize("last", [False, True], ids=["after the switch", "before it"])
def test_a_resumed_run_decides_as_an_undisturbed_one(whole, sources, tiny, tmp_path, step, last):
    folder, (blends, ledger, weights) = whole
    again, lines, mine = run(sources, tiny, tmp_path, Bandit(0.5), resume=folder / f"step-{step}.ckpt", last=last)
    assert again == [(made, shares) for made, shares in blends if made >= again[0][0]]
    assert again[0][0] <= step + 3
    assert lines == [line for line in ledger if line["step"] > step]
    assert all(torch.equal(mine[name], value) for name, value in weights.items())


def test_accumulation_changes_no_decision(whole, sources, tiny, tmp_path):
    blends, _, _ = run(sources, tiny, tmp_path, Bandit(0.5), micro=2)
    for (step, mine), (other, theirs) in zip(blends, whole[1][0], strict=True):
        assert (step, mine) == (other, pytest.approx(theirs, abs=1e-4))


def test_a_rule_that_wants_one_source_gets_it_within_the_bounds(sources, tiny, tmp_path):
    blends, ledger, _ = run(sources, tiny, tmp_path, Only("b"), at_least=0.5, at_most=1.5)
    assert blends[0][1]["b"] == pytest.approx(1.5 * 0.35, abs=1e-5)
    assert blends[-1][1] == pytest.approx({"a": 0.1, "c": 0.9}, abs=0.06)
    assert ledger[4]["share"]["b"] > 0.45  # of steps 12 to 15


def test_inertia_keeps_a_part_of_the_blend_at_work(sources, tiny, tmp_path):
    blends, _, _ = run(sources, tiny, tmp_path, Only("c"), at_least=0.0, at_most=100.0, inertia=0.75)
    assert blends[0][1]["c"] == pytest.approx(0.75 * 0.05 + 0.25, abs=1e-4)
    assert blends[1][1]["c"] == pytest.approx(0.75 * blends[0][1]["c"] + 0.25, abs=1e-4)


def test_a_source_that_was_repeated_often_enough_gets_no_more(sources, tiny, tmp_path):
    _, ledger, _ = run(sources, tiny, tmp_path, Only("c"), at_least=0.0, at_most=100.0, max_epochs=0.5)
    inside = [line for line in ledger if line["step"] <= SWITCH]
    assert inside[-1]["epochs"]["c"] <= 0.5 + 0.15
    assert inside[0]["epochs"]["c"] < 0.5


def test_what_is_logged_is_what_was_decided(sources, tiny, tmp_path):
    class Weights(pl.Callback):
        def on_train_end(self, trainer, module):
            self.found = {name: float(value) for name, value in trainer.callback_metrics.items()
                          if name.startswith("weight/")}

    weights = Weights()
    blends, _, _ = run(sources, tiny, tmp_path, ExcessLoss(), weights)
    assert weights.found.keys() == {"weight/a", "weight/b", "weight/c"}
    for name, share in blends[-1][1].items():
        assert weights.found[f"weight/{name}"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"), ({"max_epochs": 0.0}, "max_epochs=0.0 must be above"),
    ({"at_least": 1.5}, r"at_least=1.5 must be in \[0, 1\]"), ({"at_most": 0.5}, "at_most=0.5 must be at least 1"),
    ({"inertia": 1.0}, "inertia=1.0 must be at least 0 and below 1")])
def test_a_number_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBlendCallback(Bandit(), **settings)


def test_steps_at_which_no_losses_are_logged_are_refused(sources, tiny, tmp_path):
    module = ContinuedPretraining(RECIPE, architecture=tiny)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=0)
    with pytest.raises(ValueError, match="every_n_steps=10 is no multiple of trainer.log_every_n_steps=3"):
        fit(module, data, tmp_path, AdaptiveBlendCallback(Bandit(), 10), log_every_n_steps=3)


def test_a_loader_that_is_not_exact_is_refused(tmp_path):
    class Plain(pl.LightningModule):
        def configure_optimizers(self):
            return None

        def training_step(self, batch, index):
            return None

    loader = DataLoader(torch.zeros(4, 2), batch_size=2)
    with pytest.raises(ValueError, match="found a DataLoader; it needs a BlendedDataLoader"):
        make_trainer(tmp_path, AdaptiveBlendCallback(Bandit())).fit(Plain(), loader)
