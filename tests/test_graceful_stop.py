from __future__ import annotations

import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, fit, ideal_stream, make_trainer, same_weights

from lit_cpt.blends import Blend
from lit_cpt.callbacks import GracefulStopCallback, PhaseSwitchCallback, RunCheckpointCallback
from lit_cpt.callbacks.graceful_stop import Stopped
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
GLOBAL, STEPS = 4, 16
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2),
                [Phase("first", Blend(FIRST)), Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])
SWITCH = RECIPE.start_steps(GLOBAL * LENGTH)[1]
IDEAL = ideal_stream([(0, FIRST), (SWITCH * GLOBAL, SECOND)], STEPS * GLOBAL)


class SignalAt(pl.Callback):
    """Sends itself signals while the batch of an optimizer step is being trained, as a user or a scheduler would."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.numbers = ()


def run(sources, tiny, folder, *callbacks, micro=GLOBAL, workers=0, resume=None):
    torch.manual_seed(0)
    module = ContinuedPretraining(RECIPE, architecture=tiny)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=workers, validation_blocks=0)
    return module, fit(module, data, folder, *callbacks, resume=resume)


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """The weights of an uninterrupted run."""
    return run(sources, tiny, tmp_path_factory.mktemp("whole"), PhaseSwitchCallback())[0]


@pytest.fixture(autouse=True)
def handlers():
    """The signals' handlers, which every test has to leave as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize(("number", "sent_at"), [(signal.SIGINT, 6), (signal.SIGTERM, 4), (signal.SIGINT, SWITCH - 1),
                                                 (signal.SIGINT, SWITCH)])
def test_a_signal_saves_at_the_end_of_the_step_and_the_resumed_run_ends_bit_identical(
        whole, sources, tiny, tmp_path, number, sent_at):
    path = tmp_path / "checkpoints" / f"step-{sent_at + 1:08d}.ckpt"
    with pytest.raises(Stopped, match=f"stopped at step {sent_at + 1}; saved {path}"):
        run(sources, tiny, tmp_path, GracefulStopCallback(), PhaseSwitchCallback(), SignalAt(sent_at, number),
            workers=2)
    stop = read_events(tmp_path)[-1]
    assert (stop["event"], stop["step"], stop["reason"]) == ("stop", sent_at + 1, "signal")
    resumed, rest = run(sources, tiny, tmp_path, GracefulStopCallback(), PhaseSwitchCallback(), resume=path)
    assert rest.names == IDEAL[(sent_at + 1) * GLOBAL :]
    assert same_weights(resumed, whole)


def test_with_a_checkpoint_callback_the_step_is_saved_once_and_by_it(sources, tiny, tmp_path):
    keeper = RunCheckpointCallback(every_n_steps=5)
    with pytest.raises(Stopped, match="stopped at step 5; saved .*step-00000005.ckpt"):
        run(sources, tiny, tmp_path, GracefulStopCallback(), keeper, PhaseSwitchCallback(), SignalAt(4, signal.SIGINT))
    assert keeper.steps == [5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "step-00000005.ckpt"]


def test_an_accumulation_is_finished_before_it_is_saved(sources, tiny, tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(Stopped, match="stopped at step 6;"):
        run(sources, tiny, tmp_path, GracefulStopCallback(), PhaseSwitchCallback(), SignalAt(5, signal.SIGINT), micro=1)
    saved = torch.load(path, weights_only=False)
    assert saved["global_step"] == 6
    assert saved["lit_cpt"]["tokens_seen"] == 6 * GLOBAL * LENGTH
    _, rest = run(sources, tiny, tmp_path, PhaseSwitchCallback(), micro=1, resume=path)
    assert rest.names == IDEAL[6 * GLOBAL :]


def test_a_run_that_nobody_stops_ends_whole_and_saved(sources, tiny, tmp_path, whole):
    module, diary = run(sources, tiny, tmp_path, GracefulStopCallback(), PhaseSwitchCallback())
    assert diary.names == IDEAL
    assert same_weights(module, whole)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == STEPS


def test_a_second_interrupt_is_not_waited_for():
    callback = GracefulStopCallback()
    callback.ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        callback.ask(signal.SIGINT, None)


def test_a_second_sigterm_is_waited_for():
    callback = GracefulStopCallback()
    callback.ask(signal.SIGTERM, None)
    callback.ask(signal.SIGTERM, None)
    assert callback.asked_by == signal.SIGTERM


def test_the_same_callback_serves_the_run_that_goes_on(sources, tiny, tmp_path):
    callback = GracefulStopCallback()
    with pytest.raises(Stopped, match="stopped at step 3"):
        run(sources, tiny, tmp_path, callback, PhaseSwitchCallback(), SignalAt(2, signal.SIGINT))
    _, rest = run(sources, tiny, tmp_path, callback, PhaseSwitchCallback(),
                  resume=tmp_path / "checkpoints" / "last.ckpt")
    assert rest.names == IDEAL[3 * GLOBAL :]


def test_the_callback_works_alone_in_a_foreign_project(tmp_path):
    class Foreign(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = make_trainer(tmp_path, GracefulStopCallback(), SignalAt(2, signal.SIGINT), max_steps=9)
    with pytest.raises(Stopped, match="stopped at step 3"):
        trainer.fit(Foreign(), torch.utils.data.DataLoader(torch.ones(20, 2)))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 3
