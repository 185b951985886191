from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, make_trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, TokenLedgerCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.json_lines import append_line
from lit_cpt.ledger import LEDGER, read_ledger
from lit_cpt.module import ContinuedPretraining
from lit_cpt.plan import plan, source_blocks
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.report.runs import read_scalars
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
GLOBAL, STEPS = 4, 20
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), (
    Phase("general", Blend(FIRST)), Phase("qa", Blend(SECOND), Trigger(eta_over_eta_max=0.2))))


def run(sources, tiny, folder, *callbacks, micro=GLOBAL, resume=None, before=False, cap=4.0, **settings):
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=0, validation_blocks=0, **settings)
    torch.manual_seed(0)
    both = [PhaseSwitchCallback(), TokenLedgerCallback(cap)]
    module = ContinuedPretraining(RECIPE, architecture=tiny)
    fit(module, data, folder, *(reversed(both) if before else both), *callbacks, resume=resume, log_every_n_steps=3,
        logger=pl.loggers.TensorBoardLogger(str(folder), name="", version=""))
    return read_ledger(folder)


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """A run, with a checkpoint in each phase."""
    folder = tmp_path_factory.mktemp("whole")
    run(sources, tiny, folder, SaveAt(folder, 10, 17))
    return folder


def test_what_was_trained_is_what_was_planned_source_by_source_and_phase_by_phase(whole, sources):
    foretold = plan(RECIPE, RECIPE_BATCH := BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL).batch,
                    source_blocks(sources, LENGTH))
    last = read_ledger(whole)[-1]
    assert last["phases"] == {phase.name: {source.name: source.tokens for source in phase.sources}
                              for phase in foretold.phases}
    assert last["tokens"] == {source.name: source.tokens for source in foretold.sources}
    assert last["epochs"] == {source.name: source.epochs for source in foretold.sources}
    assert sum(last["tokens"].values()) == STEPS * RECIPE_BATCH.tokens_per_step


def test_a_line_is_written_where_the_trainer_logs_and_at_the_end(whole):
    lines = read_ledger(whole)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    switch = next(event["step"] for event in read_events(whole) if event["event"] == "phase")
    assert [line["phase"] for line in lines] == ["general" if line["step"] <= switch else "qa" for line in lines]
    assert all(abs(sum(line["share"].values()) - 1) < 1e-9 for line in lines)
    assert lines[0]["loss"] > 0
    assert lines[-1]["eta"] == pytest.approx(1e-4)


def test_the_loggers_get_the_same(whole):
    scalars = read_scalars(whole)
    lines = read_ledger(whole)
    for source in "abc":
        assert scalars[f"tokens/{source}"] == [(line["step"], line["tokens"].get(source, 0)) for line in lines
                                               if source in line["tokens"]]
        assert scalars[f"epochs/{source}"][-1][1] == pytest.approx(lines[-1]["epochs"][source])
        assert scalars[f"share/{source}"][0][1] == pytest.approx(lines[0]["share"][source])


@pytest.mark.parametrize("step", [10, 17])
def test_a_resumed_run_has_the_ledger_of_an_undisturbed_one(whole, sources, tiny, tmp_path, step):
    for line in read_ledger(whole):
        if line["step"] <= step + 3:  # the run went on past its checkpoint before it was killed
            append_line(tmp_path / LEDGER, line)
    assert run(sources, tiny, tmp_path, resume=whole / f"step-{step}.ckpt") == read_ledger(whole)


def test_neither_accumulation_nor_the_order_of_callbacks_changes_the_ledger(whole, sources, tiny, tmp_path):
    assert [line["phases"] for line in run(sources, tiny, tmp_path, micro=2, before=True)] == [
        line["phases"] for line in read_ledger(whole)]


def test_what_is_passed_over_is_not_counted(whole, sources, tiny, tmp_path):
    lines = run(sources, tiny, tmp_path, pass_over=[(4, 6), (15, 17)])
    assert sum(lines[-1]["tokens"].values()) == STEPS * GLOBAL * LENGTH
    assert lines[-1]["passed_over"] == [[16, 24], [60, 68]]
    assert lines[0]["tokens"] == read_ledger(whole)[0]["tokens"]
    assert lines[-1]["tokens"] != read_ledger(whole)[-1]["tokens"]


def test_a_source_that_repeats_too_often_is_told_once_in_log_and_diary(sources, tiny, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lit_cpt.callbacks.token_ledger")
    run(sources, tiny, tmp_path, cap=0.3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("c has been seen 0.")
    assert said[0].endswith("repeats beyond 0.3 are worth little: give it less weight, or more data")
    assert [event["source"] for event in read_events(tmp_path) if event["event"] == "repeats"] == ["c"]


def test_a_cap_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="max_epochs=0 must be above 0"):
        TokenLedgerCallback(0)


class Plain(pl.LightningModule):
    """A module of somebody else's."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["x"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Pairs(Plain):
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()


def test_of_another_loader_all_tokens_are_counted_under_one_name(tmp_path):
    loader = DataLoader([{"x": torch.ones(4)}] * 12, batch_size=2)
    make_trainer(tmp_path, TokenLedgerCallback(), max_epochs=2, log_every_n_steps=5).fit(Plain(), loader)
    lines = read_ledger(tmp_path)
    assert [(line["step"], line["tokens"]["all"]) for line in lines] == [(5, 40), (10, 80), (12, 96)]
    assert lines[-1]["phases"] == {"all": {"all": 96}}
    assert lines[-1]["epochs"] == {}


def test_several_loaders_are_refused(tmp_path):
    loaders = CombinedLoader([DataLoader([torch.ones(4)] * 4)] * 2)
    with pytest.raises(ValueError, match="found the train loaders DataLoader, DataLoader; lit_cpt.s callbacks"):
        make_trainer(tmp_path, TokenLedgerCallback(), max_epochs=1).fit(Pairs(), loaders)
