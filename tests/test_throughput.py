from __future__ import annotations

import logging
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, fit, make_trainer
from torch.utils.data import DataLoader, Dataset

from lit_cpt import pauses
from lit_cpt.blends import Blend
from lit_cpt.callbacks import RunCheckpointCallback, ThroughputCallback, throughput
from lit_cpt.data import BlendDataModule
from lit_cpt.model_size import model_size
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe
from lit_cpt.report.runs import read_scalars
from lit_cpt.schedules import Cosine

READ, TRAIN, VALIDATE, SAVE = 0.25, 0.75, 10.0, 5.0  # seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    found = SimpleNamespace(now=100.0)
    for module in (throughput, pauses):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


class Rows(Dataset):
    """Twelve rows of three tokens, each a while to read."""

    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.clock.now += READ
        return torch.ones(3)


class Timed(pl.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.layer = clock, torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        self.clock.now += TRAIN
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.clock.now += VALIDATE

    def on_save_checkpoint(self, checkpoint):
        self.clock.now += SAVE

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(clock, folder, callback, *more, validate=True, **settings):
    callback = callback or ThroughputCallback()
    logger = pl.loggers.TensorBoardLogger(str(folder), name="", version="")
    trainer = make_trainer(folder, callback, *more, logger=logger, max_epochs=1, log_every_n_steps=4, **settings)
    validation = DataLoader(torch.ones(1, 3)) if validate else None
    trainer.fit(Timed(clock), DataLoader(Rows(clock)), validation)
    return {name: dict(points) for name, points in read_scalars(folder).items()}


def test_tokens_a_second_leave_out_what_is_no_training(clock, tmp_path):
    found = train(clock, tmp_path, None, RunCheckpointCallback(2), val_check_interval=3)
    speed = found["speed/tokens_per_second"]
    assert list(speed) == [4, 8, 12]
    assert speed[8] == pytest.approx(4 * 3 / (4 * (READ + TRAIN)))
    assert found["speed/data_wait"][8] == pytest.approx(READ / (READ + TRAIN))
    paused = found["speed/paused"]
    # between the logs at 4 and 8: checkpoints of 4 and 6 (before the validation there), and that validation
    assert paused[8] == pytest.approx((2 * SAVE + VALIDATE) / (4 * (READ + TRAIN) + 2 * SAVE + VALIDATE))


def test_the_time_left_goes_by_the_clock(clock, tmp_path):
    found = train(clock, tmp_path, None, RunCheckpointCallback(2), validate=False, max_steps=12)
    passed = 8 * (READ + TRAIN) + 3 * SAVE  # the first batch was read before the run began; checkpoints of 2, 4, 6
    assert found["speed/hours_left"][8] == pytest.approx(4 * (passed / 8) / 3600, rel=0.05)
    assert found["speed/hours_left"][12] == 0


def test_the_share_of_the_peak_is_told_where_work_and_peak_are_known(clock, tmp_path):
    found = train(clock, tmp_path, ThroughputCallback(flops_per_token=1000.0, device_flops=6000.0), validate=False)
    assert found["speed/mfu"][8] == pytest.approx(1000 * found["speed/tokens_per_second"][8] / 6000)


def test_without_a_peak_no_share_of_it_is_told(clock, tmp_path):
    found = train(clock, tmp_path, ThroughputCallback(flops_per_token=1000.0), validate=False)
    assert "speed/mfu" not in found
    assert found["speed/memory_gib"][8] > 0


def test_the_work_of_a_model_of_transformers_is_counted_and_accumulation_changes_no_token(sources, tiny, tmp_path):
    recipe = Recipe(8 * 4 * LENGTH, Cosine(1e-3), (Phase("only", Blend({"a": 1.0})),))
    guard = ThroughputCallback(device_flops=1e12)
    data = BlendDataModule(recipe, sources, LENGTH, 4, 2, workers=0, validation_blocks=0)
    fit(ContinuedPretraining(recipe, architecture=tiny), data, tmp_path, guard, log_every_n_steps=2)
    assert guard.flops_per_token == model_size(tiny, LENGTH, torch.bfloat16).flops
    assert guard.tokens == 0
    assert throughput.trained_shape(ContinuedPretraining(recipe, architecture=tiny), torch.ones(2, LENGTH + 1)) == (
        2, LENGTH)


def test_waiting_for_data_is_told_once_until_it_has_halved(clock, caplog):
    caplog.set_level(logging.WARNING, "lit_cpt.callbacks.throughput")
    guard, module = ThroughputCallback(), pl.LightningModule()
    for share, waited in ((0.3, 0.5), (0.3, 2.0), (0.5, 2.0), (0.15, 2.0), (0.3, 2.0), (0.05, 2.0), (0.25, 2.0)):
        guard.waited = waited
        guard.warn(module, share)
    assert [record.getMessage()[:4] for record in caplog.records] == ["30 %", "25 %"]
    assert "give data.workers more, or the sources a faster disk" in caplog.records[0].getMessage()


@pytest.mark.parametrize("name", ["flops_per_token", "device_flops"])
def test_a_number_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be above 0; leave it out"):
        ThroughputCallback(**{name: 0})
