from __future__ import annotations

import io
import logging
import re
from contextlib import redirect_stderr

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, make_trainer
from torch.utils.data import DataLoader

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, RunProgressBar, ThroughputCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

GLOBAL, STEPS = 4, 20
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), [Phase("only", Blend({"a": 0.6, "b": 0.4}))])


class Terminal(io.StringIO):
    """A stderr that a person watches."""

    def isatty(self):
        return True


class Broken(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 7:
            raise RuntimeError("broken at step 7")


def run(sources, tiny, folder, *callbacks, micro=GLOBAL, resume=None):
    module = ContinuedPretraining(RECIPE, architecture=tiny)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=0, validation_blocks=0)
    return fit(module, data, folder, *callbacks, resume=resume, enable_progress_bar=True, log_every_n_steps=5)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "lit_cpt.callbacks.run_progress"]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "lit_cpt.callbacks.run_progress")
    return caplog


def test_a_log_gets_a_line_now_and_then_with_step_loss_rate_tokens_and_time_left(sources, tiny, tmp_path, log):
    run(sources, tiny, tmp_path, RunProgressBar(refresh_steps=5, log_seconds=0))
    said = lines(log)
    assert [line.split(",")[0] for line in said] == [f"step {step} of 20" for step in (5, 10, 15, 20)]
    assert re.fullmatch(r"step 10 of 20, loss \d\.\d{3}, eta 0\.\d+, 320 tokens, [\d.]+s left", said[1])
    assert said[-1].endswith("640 tokens, 0s left")


def test_a_log_is_left_in_peace_until_it_is_time(sources, tiny, tmp_path, log, capsys):
    run(sources, tiny, tmp_path, RunProgressBar(refresh_steps=1, log_seconds=3600))
    assert lines(log) == []
    assert "step" not in capsys.readouterr().err


def test_other_ranks_say_nothing(sources, tiny, tmp_path, log):
    bar = RunProgressBar(refresh_steps=1, log_seconds=0)
    bar.disable()
    run(sources, tiny, tmp_path, bar)
    assert lines(log) == []


def test_a_terminal_gets_one_bar_that_ends_full(sources, tiny, tmp_path, log):
    with redirect_stderr(Terminal()) as terminal:
        run(sources, tiny, tmp_path, RunProgressBar(refresh_steps=5, log_seconds=0), micro=1)
    last = terminal.getvalue().split("\r")[-1]
    assert "20/20" in last
    assert "640 tokens" in last
    assert lines(log) == []


def test_a_bar_opens_where_a_resumed_run_stands(sources, tiny, tmp_path):
    run(sources, tiny, tmp_path, RunProgressBar(), SaveAt(tmp_path, 12))
    bar = RunProgressBar(refresh_steps=1)
    with redirect_stderr(Terminal()) as terminal:
        run(sources, tiny, tmp_path, bar, resume=tmp_path / "step-12.ckpt")
    assert re.search(r"\r? *60%.*12/20", terminal.getvalue())
    assert "0/20" not in terminal.getvalue().replace("20/20", "")
    assert bar.first_step == 12


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(sources, tiny, tmp_path, log):
    run(sources, tiny, tmp_path, RunProgressBar(), SaveAt(tmp_path, 12))
    run(sources, tiny, tmp_path, RunProgressBar(refresh_steps=1, log_seconds=0), resume=tmp_path / "step-12.ckpt")
    assert [line.split(",")[0] for line in lines(log)] == [f"step {step} of 20" for step in range(13, 21)]


def test_a_bar_stays_where_the_run_broke(sources, tiny, tmp_path):
    bar = RunProgressBar(refresh_steps=1)
    with redirect_stderr(Terminal()) as terminal, pytest.raises(RuntimeError, match="broken at step 7"):
        run(sources, tiny, tmp_path, bar, Broken())
    assert "7/20" in terminal.getvalue().split("\r")[-1]
    assert bar.bar is None


def test_the_bar_works_alone_in_a_foreign_project(tmp_path, log):
    class Foreign(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = make_trainer(tmp_path, RunProgressBar(refresh_steps=3, log_seconds=0), max_steps=6,
                           enable_progress_bar=True)
    trainer.fit(Foreign(), DataLoader(torch.ones(20, 2)))
    assert [re.sub(r"[\d.]+s", "_", line) for line in lines(log)] == ["step 3 of 6, _ left", "step 6 of 6, _ left"]


def test_a_run_of_two_phases_tells_which_it_is_in_what_comes_and_how_fast_it_is(sources, tiny, tmp_path, log):
    recipe = Recipe(RECIPE.horizon, RECIPE.curve, (
        Phase("general", Blend({"a": 1.0})), Phase("qa", Blend({"b": 1.0}), Trigger(step=12))))
    data = BlendDataModule(recipe, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=0)
    fit(ContinuedPretraining(recipe, architecture=tiny), data, tmp_path, PhaseSwitchCallback(), ThroughputCallback(),
        RunProgressBar(refresh_steps=5, log_seconds=0), enable_progress_bar=True, log_every_n_steps=5)
    said = lines(log)
    assert re.fullmatch(r"step 10 of 20, general, loss .+, 320 tokens, [\d.]+k? tokens/s, qa in 2 steps, .+ left",
                        said[1])
    assert re.fullmatch(r"step 15 of 20, qa, loss [^q]+ left", said[2])
