from __future__ import annotations

import logging
import math
import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import LENGTH, SaveAt, fit, ideal_stream, make_trainer, name_of, named_block, same_weights
from torch.utils.data import DataLoader

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, RunCheckpointCallback, StabilityCallback, TokenLedgerCallback
from lit_cpt.checkpoints import newest_whole
from lit_cpt.consolidation import consolidate
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.ledger import read_ledger
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.rollback import RolledBack, Unstable, persevere
from lit_cpt.schedules import Cosine

BLEND, LATER = {"a": 0.6, "b": 0.4}, {"a": 0.2, "b": 0.8}
GLOBAL, STEPS = 4, 40
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-3), (
    Phase("general", Blend(BLEND)), Phase("qa", Blend(LATER), Trigger(step=30))))


STREAM = ideal_stream([(0, BLEND), (30 * GLOBAL, LATER)], 60 * GLOBAL, ("a", "b"))


class Poisoned(ContinuedPretraining):
    """Its loss is multiplied where a batch begins with one of given blocks."""

    poison: dict[tuple[int, int], float] = {}  # noqa: RUF012

    def loss(self, blocks):
        return super().loss(blocks) * self.poison.get(name_of(blocks[0]), 1.0)


def poisoned(tiny, kind=Poisoned, **at):
    """Poisoned at the batch that is trained in a step where nothing is passed over."""
    torch.manual_seed(0)
    module = kind(RECIPE, architecture=tiny)
    module.poison = {STREAM[(step - 1) * GLOBAL]: factor for step, factor in at.get("at", {}).items()}
    return module


def data_of(sources, micro=GLOBAL, **settings):
    return BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=0, validation_blocks=0, **settings)


def run(module, sources, folder, guard, *callbacks, resume=None, micro=GLOBAL, **settings):
    return fit(module, data_of(sources, micro), folder, PhaseSwitchCallback(), *callbacks, guard, resume=resume,
               log_every_n_steps=5, **settings)


def told(folder):
    return [(event["at_step"], event["what"], event["skipped"]) for event in read_events(folder)
            if event["event"] == "spike"]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_touches_neither_weights_nor_moments(sources, tiny, tmp_path, wrong, fused):
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step in (20, 21, 22):
                state = [value.clone() for one in trainer.optimizers[0].state.values() for value in one.values()]
                seen[trainer.global_step] = [*(one.detach().clone() for one in module.parameters()), *state]

    class Module(Poisoned):
        def configure_optimizers(self):
            found = super().configure_optimizers()
            for group in found["optimizer"].param_groups:
                group["fused"] = fused
            return found

    module = poisoned(tiny, Module, at={21: wrong})
    run(module, sources, tmp_path, StabilityCallback(), Look())
    assert all(torch.equal(one, other) for one, other in zip(seen[20], seen[21], strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(seen[21], seen[22], strict=True))
    assert told(tmp_path) == [(21, "not finite", True)]
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_without_the_guard_the_weights_would_be_lost(sources, tiny, tmp_path):
    module = poisoned(tiny, at={21: math.nan})
    run(module, sources, tmp_path, pl.Callback())
    assert not all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_healthy_run_is_trained_as_without_the_guard(sources, tiny, tmp_path):
    guarded, free = poisoned(tiny), poisoned(tiny)
    run(guarded, sources, tmp_path / "guarded", StabilityCallback("skip"), micro=2)
    run(free, sources, tmp_path / "free", pl.Callback(), micro=2)
    assert same_weights(guarded, free)
    assert told(tmp_path / "guarded") == []


@pytest.mark.parametrize(("spike", "skipped"), [("log", False), ("skip", True)])
def test_a_spike_is_told_and_if_so_asked_skipped(sources, tiny, tmp_path, caplog, spike, skipped):
    caplog.set_level(logging.WARNING, "lit_cpt.callbacks.stability")
    module, free = poisoned(tiny, at={23: 50.0}), poisoned(tiny, at={23: 50.0})
    run(module, sources, tmp_path / "guarded", StabilityCallback(spike))
    run(free, sources, tmp_path / "free", pl.Callback())
    assert told(tmp_path / "guarded") == [(23, "spike", skipped)]
    assert caplog.records[0].getMessage().startswith("step 23: loss ")
    assert same_weights(module, free) is not skipped


def test_a_resumed_run_judges_as_an_undisturbed_one(sources, tiny, tmp_path):
    whole = poisoned(tiny, at={18: math.nan, 23: 50.0})
    run(whole, sources, tmp_path, StabilityCallback("skip"), SaveAt(tmp_path, 18))
    resumed = poisoned(tiny, at={18: math.nan, 23: 50.0})
    run(resumed, sources, tmp_path / "resumed", StabilityCallback("skip"), resume=tmp_path / "step-18.ckpt")
    assert same_weights(whole, resumed)
    assert told(tmp_path / "resumed") == told(tmp_path) == [(18, "not finite", True), (23, "spike", True)]


def test_a_phase_switch_begins_a_new_window(sources, tiny, tmp_path):
    guard = StabilityCallback()
    module = poisoned(tiny, at=dict.fromkeys(range(31, 41), 3.0))  # the new blend is another level of loss
    run(module, sources, tmp_path, guard)
    assert told(tmp_path) == []


def test_a_run_that_only_skips_is_given_up_with_the_checkpoint_from_before(sources, tiny, tmp_path):
    module = poisoned(tiny, at=dict.fromkeys(range(21, 41), math.nan))
    with pytest.raises(Unstable, match=r"training is unstable at step 26: 6 steps in a row were skipped. The newest "
                                       r"whole checkpoint from before is .*step-00000025.ckpt. Lower the learning"):
        run(module, sources, tmp_path, StabilityCallback(patience=6), RunCheckpointCallback(5))
    assert newest_whole(tmp_path / "checkpoints")[0].name == "step-00000025.ckpt"  # and none of the end


def go_on(module, data, guard, folder, *callbacks):
    """What `lit-cpt fit` does."""
    resume = [None]

    def start():
        fit(module, data, folder, PhaseSwitchCallback(), *callbacks, guard, RunCheckpointCallback(5, keep=3),
            TokenLedgerCallback(), resume=resume[0], log_every_n_steps=5)

    def back(checkpoint, stretch):
        data.pass_over.append(stretch)
        resume[0] = checkpoint

    persevere(start, back)


def test_a_rollback_ends_as_a_run_that_never_saw_the_batches_and_has_it_on_record(sources, tiny, tmp_path):
    module, guard = poisoned(tiny, at={23: 50.0, 24: 60.0}), StabilityCallback("rollback")
    go_on(module, data_of(sources), guard, tmp_path / "back")
    free = poisoned(tiny)
    data = data_of(sources, pass_over=[(22, 24)])
    fit(free, data, tmp_path / "free", PhaseSwitchCallback(), TokenLedgerCallback(), log_every_n_steps=5)
    assert same_weights(module, free)
    assert guard.rollbacks == 1
    event = next(event for event in read_events(tmp_path / "back") if event["event"] == "rollback")
    assert event["pass_over"] == [22, 24]
    assert event["checkpoint"].endswith("step-00000020.ckpt")
    mine, theirs = read_ledger(tmp_path / "back"), read_ledger(tmp_path / "free")
    assert mine[-1]["passed_over"] == [[88, 96]]
    assert [line["tokens"] for line in mine] == [line["tokens"] for line in theirs]


def test_a_checkpoint_that_holds_the_harm_is_passed_over_for_an_older_one(sources, tiny, tmp_path):
    class Leap(pl.Callback):
        """One update, whose weights are then saved, goes much too far; its batch alone is to blame."""

        def on_before_optimizer_step(self, trainer, module, optimizer):
            if module.trainer.train_dataloader.position == 20 * GLOBAL:
                optimizer.param_groups[0]["lr"] = 30.0

    module, guard = poisoned(tiny), StabilityCallback("rollback")
    go_on(module, data_of(sources), guard, tmp_path, Leap())
    done = [(event["checkpoint"][-13:], event["pass_over"][0]) for event in read_events(tmp_path)
            if event["event"] == "rollback"]
    assert done == [("00000020.ckpt", 20), ("00000015.ckpt", 19)]
    assert read_events(tmp_path)[-1]["event"] == "finish"


def test_without_a_checkpoint_from_before_a_rollback_is_given_up(sources, tiny, tmp_path):
    with pytest.raises(Unstable, match="at step 18: there is no checkpoint from before it to go back to"):
        run(poisoned(tiny, at={18: 50.0}), sources, tmp_path, StabilityCallback("rollback"))


def test_a_run_that_is_rolled_back_again_and_again_is_given_up(sources, tiny, tmp_path):
    guard = StabilityCallback("rollback", patience=1)
    with pytest.raises(Unstable, match="at step 27: the run was rolled back 1 times already"):
        go_on(poisoned(tiny, at={23: 50.0, 28: 60.0}), data_of(sources), guard, tmp_path)


class Plain(pl.LightningModule):
    """A module of somebody else's, that diverges at once."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean() * (math.nan if batch_idx == 2 else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_guards_a_module_that_knows_nothing_of_it(tmp_path):
    module = Plain()
    make_trainer(tmp_path, StabilityCallback(), max_epochs=1).fit(module, DataLoader(torch.ones(6, 4)))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_rollback_needs_a_loader_that_can_pass_over_batches(tmp_path):
    with pytest.raises(ValueError, match="spike='rollback' needs a BlendedDataLoader.* is DataLoader. Choose log or"):
        make_trainer(tmp_path, StabilityCallback("rollback"), max_epochs=1).fit(Plain(), DataLoader(torch.ones(6, 4)))


@pytest.mark.parametrize(("settings", "said"), [
    ({"spike": "ignore"}, "spike='ignore': choose log, skip, rollback"),
    ({"threshold": 0.5}, "threshold=0.5 must be at least 1"),
    ({"window": 3}, "window=3 must be at least 16"),
    ({"patience": 0}, "patience=0 must be at least 1"),
])
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        StabilityCallback(**settings)


def test_what_ends_a_run_says_what_comes_next():
    assert "go on from step-4.ckpt, and pass over global batches 5 to 6" in str(RolledBack("step-4.ckpt", (5, 6)))


# The command, on one rank and on two -----------------------------------------------------------------------------

POISON = '''
from lightning.pytorch import Callback

class Poison(Callback):
    """Multiplies the logits of the last rank at batches that hold given blocks."""
    def __init__(self, factors: dict[str, str]) -> None:
        self.factors, self.factor = {name: float(factor) for name, factor in factors.items()}, 1.0
    def on_train_start(self, trainer, module):
        module.model.register_forward_hook(self.spoil)
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        last = trainer.global_rank == trainer.world_size - 1
        names = ["-".join(map(str, block[:4].tolist())) for block in batch]
        self.factor = next((self.factors[name] for name in names if name in self.factors and last), 1.0)
    def spoil(self, model, given, found):
        found.logits = found.logits * self.factor
        return found
'''


def command(folder, sources, tiny, ranks, factors):
    """`lit-cpt fit` with a rollback policy on as many ranks, poisoned."""
    config = {"recipe": RECIPE.describe(), "model": {"architecture": tiny},
              "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "micro_batch": 2,
                       "workers": 0, "validation_blocks": 0},
              "trainer": {"log_every_n_steps": 5, "val_check_interval": None, "callbacks": [
                  {"class_path": "lit_cpt.callbacks.PhaseSwitchCallback"},
                  {"class_path": "lit_cpt.callbacks.StabilityCallback", "init_args": {"spike": "rollback"}},
                  {"class_path": "lit_cpt.callbacks.TokenLedgerCallback"},
                  {"class_path": "lit_cpt.callbacks.RunCheckpointCallback", "init_args": {"every_n_steps": 5}},
                  {"class_path": "poison.Poison", "init_args": {"factors": factors}}]}}
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "poison.py").write_text(POISON)
    words = [sys.executable, "-m", "lit_cpt", "fit", "--config", "base", "--config", "hardware/sharded", "--config",
             "run.yaml", "--run", "run", "--trainer.accelerator", "cpu", "--trainer.devices", str(ranks),
             "--trainer.strategy.init_args.compute_dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(
        [str(folder), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


@pytest.mark.slow
def test_two_ranks_skip_and_roll_back_together_and_end_as_one_rank_does(sources, tiny, tmp_path):
    """The poison is in a batch of the last rank alone: the other has to agree without having seen it."""
    blocks = {21: "nan", 28: "300"}
    factors = {"-".join(map(str, named_block(*STREAM[step * GLOBAL - 1])[:4].tolist())): factor
               for step, factor in blocks.items()}
    one, two = (command(tmp_path / f"{ranks}", sources, tiny, ranks, factors) for ranks in (1, 2))
    assert told(one) == told(two) == [(21, "not finite", True), (28, "spike", False)]
    assert read_ledger(one)[-1]["phases"] == read_ledger(two)[-1]["phases"]
    assert read_ledger(two)[-1]["passed_over"] == [[27 * GLOBAL, 28 * GLOBAL]]
    consolidate(newest_whole(two / "checkpoints")[0], tmp_path / "two.ckpt")
    consolidate(newest_whole(one / "checkpoints")[0], tmp_path / "one.ckpt")
    mine, theirs = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("one", "two"))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)
