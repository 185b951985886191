"""Lightning's counters after a resume are those of a run never cut; what then happens is in test_run_checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_trainer
from test_checkpoints import Foreign

from lit_cpt.counters import set_progress, validation_due, validation_pending


class Watch(Foreign):
    """Notes at each batch's end whether a validation comes next, and the loops' state."""

    def __init__(self):
        super().__init__()
        self.due, self.pending, self.made, self.states = [], [], [], {}

    def validation_step(self, batch, index):
        """Something to validate."""

    def on_train_batch_end(self, *_):
        trainer = self.trainer
        self.due += [trainer.global_step] * validation_due(trainer)
        self.pending += [trainer.global_step] * validation_pending(trainer, False)
        self.states[trainer.global_step] = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_validation_start(self):
        self.made.append(self.trainer.global_step)
        assert validation_pending(self.trainer, False) == (self.trainer.accumulate_grad_batches == 1)
        assert not validation_pending(self.trainer, True)


def watched(folder, **settings):
    module = Watch()
    loader = torch.utils.data.DataLoader(torch.ones(12, 2))
    make_trainer(folder, **{"max_epochs": 1, "val_check_interval": 4, **settings}).fit(module, loader, loader)
    return module


def test_a_validation_is_foreseen_at_the_end_of_the_batch_before_it(tmp_path):
    module = watched(tmp_path)
    assert module.due == module.pending == module.made == [4, 8, 12]
    assert watched(tmp_path, limit_val_batches=0).due == []


def test_a_validation_within_a_step_is_due_but_not_pending_at_the_step_before(tmp_path):
    module = watched(tmp_path, accumulate_grad_batches=3, val_check_interval=5)
    assert (module.due, module.pending) == ([1, 3], [])


@pytest.mark.parametrize("step", [0, 3, 4])
@pytest.mark.parametrize("pending", [False, True])
def test_the_counters_are_those_at_the_end_of_the_steps_last_batch(tmp_path, step, pending):
    checkpoint = {"global_step": step, "loops": {"fit_loop": copy.deepcopy(watched(tmp_path).states[5])}}
    set_progress(checkpoint, 2, pending)
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    assert batches["total"] == batches["current"] == {
        "ready": 2 * step, "started": 2 * step, "processed": 2 * step, "completed": 2 * step - 1}
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == step - 1 - pending
    assert loop["epoch_progress"]["total"]["processed"] == 0
    assert loop["epoch_loop.val_loop.batch_progress"]["total"]["started"] == pending


def test_what_is_set_is_what_lightning_has(tmp_path):
    states = watched(tmp_path, val_check_interval=12).states
    for step in (1, 5, 11):
        checkpoint = {"global_step": step, "loops": {"fit_loop": copy.deepcopy(states[12])}}
        set_progress(checkpoint, 1, False)
        mine, lightnings = checkpoint["loops"]["fit_loop"], states[step]
        for name in ("epoch_progress", "epoch_loop.state_dict", "epoch_loop.batch_progress"):
            assert mine[name] == lightnings[name]
