"""Checkpoints that other runs go on from."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
from test_run_checkpoint import run, steps

from lit_cpt.callbacks import BranchPointCallback, RunCheckpointCallback
from lit_cpt.checkpoints import damage, save_now, step_path


class AsksToo(pl.Callback):
    """Asks for a checkpoint before an evaluation, at every step."""

    def on_train_batch_end(self, trainer, *_):
        if not trainer.fit_loop._should_accumulate():
            save_now(trainer, "evaluation")


@pytest.mark.parametrize("also", [[], [AsksToo()]], ids=["alone", "asked-for-twice"])
def test_a_branch_point_is_saved_once_its_step_is_whole_and_stays(sources, tiny, tmp_path, also):
    run(sources, tiny, tmp_path, BranchPointCallback([3, 5, 99]), *also, RunCheckpointCallback(every_n_steps=4, keep=1))
    assert steps(tmp_path) == [3, 5, 7, 12]  # 7 is the switch, 12 the end
    assert damage(step_path(tmp_path / "checkpoints", 3)) is None


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match=r"steps=\[4, 0\]: 0 is below 1"):
        BranchPointCallback([4, 0])
