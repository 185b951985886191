from __future__ import annotations

import io
import logging
import re
from contextlib import redirect_stderr
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, make_trainer
from torch.utils.data import DataLoader
from tqdm import tqdm

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, RunProgressBar, ThroughputCallback
from lit_cpt.callbacks.run_progress import CLEAR, MARGIN
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.pauses import paused
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
    assert re.fullmatch(r"step 10 of 20, loss \d\.\d{3}, [\d.]+s left, LR 0\.\d+, 320 tokens", said[1])
    assert re.search(r", 0s left, LR \S+, 640 tokens$", said[-1])


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
    assert re.fullmatch(r"step 10 of 20, general, loss .+ left, qa in 2 steps, [\d.]+k? tokens/s, LR .+, 320 tokens",
                        said[1])
    assert re.fullmatch(r"step 15 of 20, qa, loss [^q]+ tokens", said[2])


class Looks(pl.Callback):
    """Stands for an evaluation: foretells itself, and pauses the run."""

    def coming(self, trainer):
        return ("evaluation", 15)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 15:
            with paused(trainer, "evaluating"):
                pass


def shown(terminal):
    """Each state of the line, without what clears it."""
    return [line.replace(CLEAR, "").rstrip() for line in terminal.getvalue().split("\r")]


def test_a_terminal_is_told_what_comes_next_and_what_training_waits_for(sources, tiny, tmp_path):
    module, data = ContinuedPretraining(RECIPE, architecture=tiny), BlendDataModule(
        RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=2)
    with redirect_stderr(Terminal()) as terminal:
        fit(module, data, tmp_path, Looks(), RunProgressBar(refresh_steps=5), enable_progress_bar=True,
            log_every_n_steps=5, val_check_interval=10)
    lines = shown(terminal)
    assert any(re.match(r" 50%.* 10/20, validating, loss .*, evaluation in 5 steps", line) for line in lines)
    assert any(re.match(r" 75%.* 15/20, evaluating, loss ", line) for line in lines)
    assert re.match(r"100%.* 20/20, loss [^v]*$", lines[-1])


def test_a_line_of_the_log_passes_above_the_bar(sources, tiny, tmp_path, monkeypatch):
    class Speaks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7:
                logging.getLogger("lit_cpt").warning("heard")

    with redirect_stderr(Terminal()) as terminal:
        monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
        before = list(logging.root.handlers)
        run(sources, tiny, tmp_path, RunProgressBar(refresh_steps=5), Speaks())
        assert logging.root.handlers == before
    assert "\rheard\n\r" in terminal.getvalue()


@pytest.mark.parametrize(("columns", "graph", "last"), [
    (60, False, "1h 20m left"), (80, False, "evaluation in 120 steps"), (120, True, "59.3k tokens/s"),
    (200, True, "12.4M tokens")])
def test_a_line_fits_the_terminal_and_leaves_out_what_matters_least(monkeypatch, columns, graph, last):
    parts = ["general", "loss 2.314", "1h 20m left", "evaluation in 120 steps", "59.3k tokens/s", "LR 4.5e-05",
             "12.4M tokens"]
    bar, trainer = RunProgressBar(), SimpleNamespace(max_steps=120_000, global_step=1_234)
    monkeypatch.setattr(bar, "state", lambda trainer: parts)
    with redirect_stderr(Terminal()) as terminal:
        bar.bar = tqdm(total=trainer.max_steps, ncols=columns, bar_format="{postfix}", file=terminal)
        bar.draw(trainer)
        line = shown(terminal)[-1]
        bar.bar.close()
    assert len(line) <= columns - MARGIN
    assert re.fullmatch(rf"{r'  1%[|].{10}[|] ' if graph else ''}1,234/120,000, general, loss 2\.314, .*{last}", line)
