from __future__ import annotations

import errno
import logging
import math
import multiprocessing
import os
import shutil
import signal

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, fit, ideal_stream, make_trainer, same_weights
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from object_store import Fault, object_store_fixture  # noqa: F401
from test_mirror import mirror_of

from lit_cpt.blends import Blend
from lit_cpt.callbacks import GracefulStopCallback, PhaseSwitchCallback, RunCheckpointCallback
from lit_cpt.checkpoints import WholeCheckpointIO, damage, found_checkpoint, save_now
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.mirror import read_index, restore
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
GLOBAL, STEPS = 4, 12
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2),
                [Phase("first", Blend(FIRST)), Phase("late", Blend(SECOND), Trigger(step=7))])
IDEAL = ideal_stream([(0, FIRST), (7 * GLOBAL, SECOND)], STEPS * GLOBAL)
VALIDATED = {"validation_blocks": 3, "val_check_interval": 3 * 2}  # every third step: two micro-batches make one


class Killed(BaseException):
    """Ends a run where it stands, as a power cut would: nothing is saved any more."""


class Die(pl.Callback):
    """Raises in the hook of that name once so many steps are made."""

    def __init__(self, hook, step, error=None):
        setattr(self, hook, lambda trainer, *_: self.die(trainer, step, error or Killed()))

    def die(self, trainer, step, error):
        if trainer.global_step == step and not trainer.ckpt_path:
            raise error


class Values(CSVLogger):
    """Keeps what was logged: (name, step) -> value, in the order of logging."""

    def __init__(self, folder):
        super().__init__(folder)
        self.values = {}

    def log_metrics(self, metrics, step=None):
        self.values.update({(name, step): value for name, value in metrics.items()})


def run(sources, tiny, folder, *callbacks, resume=None, micro=2, validation_blocks=0, module=None, **settings):
    torch.manual_seed(0)
    module = module or ContinuedPretraining(RECIPE, architecture=tiny)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, micro, workers=0, validation_blocks=validation_blocks)
    return module, fit(module, data, folder, PhaseSwitchCallback(), *callbacks, resume=resume, **settings)


def names(folder):
    """What lies in the folder of checkpoints; a link with what it names."""
    return sorted(f"{path.name} -> {os.readlink(path)}" if path.is_symlink() else path.name
                  for path in (folder / "checkpoints").iterdir())


def steps(folder):
    return [int(name[5:13]) for name in names(folder) if name.startswith("step-")]


def newest(folder):
    return folder / "checkpoints" / os.readlink(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """An uninterrupted run that validates every third step and logs every fifth: module, values, folder."""
    folder = tmp_path_factory.mktemp("whole")
    values = Values(folder)
    module, diary = run(sources, tiny, folder, RunCheckpointCallback(every_n_steps=100), logger=values,
                        log_every_n_steps=5, **VALIDATED)
    assert diary.names == IDEAL
    return module, values.values, folder


# Regular checkpoints, pointer, retention -----------------------------------------------------------------------


def test_the_newest_are_kept_and_last_names_the_newest_at_any_moment(sources, tiny, tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            last = tmp_path / "checkpoints" / "last.ckpt"
            if last.is_symlink():
                seen.append((trainer.global_step, torch.load(last, weights_only=False)["global_step"]))

    run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=2, keep=2), Watch(), micro=4)
    assert seen == [(step, step - step % 2 if step != 7 else 7) for step in range(2, STEPS)]
    assert names(tmp_path) == ["last.ckpt -> step-00000012.ckpt", "step-00000007.ckpt", "step-00000010.ckpt",
                               "step-00000012.ckpt"]  # 7: the switch


def test_multiples_of_keep_every_are_saved_and_stay(sources, tiny, tmp_path):
    run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=100, keep=1, keep_every=4))
    assert steps(tmp_path) == [4, 7, 8, 12]


def test_a_step_is_written_once_however_many_ask(sources, tiny, tmp_path):
    class Ask(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                for reason in ("evaluation", "switch", "signal"):
                    assert save_now(trainer, reason) == tmp_path / "checkpoints" / "step-00000006.ckpt"

    written = []

    class Count(WholeCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            written.append(checkpoint["global_step"])
            super().save_checkpoint(checkpoint, path, storage_options)

    run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=3), Ask(), GracefulStopCallback(), plugins=Count(),
        **VALIDATED)
    assert written == [3, 6, 7, 9, 12]


def test_a_switch_is_saved_when_every_callback_has_seen_the_batch(sources, tiny, tmp_path):
    class Counts(pl.Callback):
        seen = 0

        def on_train_batch_end(self, *_):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

    run(sources, tiny, tmp_path, Counts(), RunCheckpointCallback(every_n_steps=100), micro=4)  # behind PhaseSwitch
    saved = torch.load(tmp_path / "checkpoints" / "step-00000007.ckpt", weights_only=False)
    assert {"seen": 7} in saved["callbacks"].values()
    assert saved["callbacks"]["PhaseSwitchCallback"]["switches"][0]["step"] == 7


def test_a_resumed_run_goes_on_keeping_and_deleting_and_touches_nothing_of_another_future(sources, tiny, tmp_path):
    keeper = {"every_n_steps": 2, "keep": 2}
    run(sources, tiny, tmp_path, RunCheckpointCallback(**keeper), max_steps=6)
    assert steps(tmp_path) == [4, 6]
    run(sources, tiny, tmp_path, RunCheckpointCallback(**keeper), max_steps=5,
        resume=tmp_path / "checkpoints" / "step-00000004.ckpt")
    assert names(tmp_path)[0] == "last.ckpt -> step-00000005.ckpt"
    assert steps(tmp_path) == [4, 5, 6]
    run(sources, tiny, tmp_path, RunCheckpointCallback(**keeper), resume=newest(tmp_path), max_steps=8)
    assert steps(tmp_path) == [7, 8]  # 6 was made anew, and has had its time


def test_what_a_killed_run_left_half_written_is_cleared_at_the_start(sources, tiny, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000004.ckpt.writing").write_bytes(b"half")
    run(sources, tiny, tmp_path, RunCheckpointCallback(), max_steps=1)
    assert names(tmp_path) == ["last.ckpt -> step-00000001.ckpt", "step-00000001.ckpt"]


@pytest.mark.parametrize("better", ["min", "max"])
def test_best_names_the_checkpoint_of_the_step_that_was_validated(sources, tiny, tmp_path, better):
    values = Values(tmp_path)
    run(sources, tiny, tmp_path, RunCheckpointCallback(100, 1, monitor="val/a/loss", mode=better), logger=values,
        **VALIDATED)
    losses = {step: value for (name, step), value in values.values.items() if name == "val/a/loss"}
    assert list(losses) == [3, 6, 9, 12]
    best = (min if better == "min" else max)(losses, key=losses.get)
    assert names(tmp_path)[0] == f"best.ckpt -> step-{best:08d}.ckpt"
    assert damage(tmp_path / "checkpoints" / "best.ckpt") is None
    assert set(steps(tmp_path)) == {best, 7, 12}


def test_a_metric_that_is_nan_is_never_the_best(tmp_path):
    keeper = RunCheckpointCallback(monitor="x")
    trainer = make_trainer(tmp_path)
    keeper.steps = [0]
    for value, best in ((math.nan, None), (2.0, (2.0, 0)), (math.nan, (2.0, 0)), (3.0, (2.0, 0)), (1.0, (1.0, 0))):
        trainer.callback_metrics["x"] = torch.tensor(value)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        keeper.judge(trainer)
        assert keeper.best == best


def test_a_monitored_metric_that_never_comes_is_told(sources, tiny, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lit_cpt")
    run(sources, tiny, tmp_path, RunCheckpointCallback(monitor="val/x/loss"), max_steps=2)
    assert "val/x/loss was never logged by a validation: there is no best.ckpt" in caplog.text


@pytest.mark.parametrize(("given", "says"), [
    ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"), ({"keep": 0}, "keep=0 must be"),
    ({"keep_every": -1}, "keep_every=-1 must be"), ({"mode": "least"}, "mode='least' must be 'min' or 'max'")])
def test_numbers_below_one_and_other_modes_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        RunCheckpointCallback(**given)


def test_the_callback_works_alone_in_a_foreign_project_and_leaves_a_users_own_io(tmp_path):
    class Foreign(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Own(WholeCheckpointIO):
        pass

    for folder, plugins in ((tmp_path / "a", []), (tmp_path / "b", [Own()])):
        trainer = make_trainer(folder, RunCheckpointCallback(every_n_steps=4), max_steps=9, plugins=plugins)
        trainer.fit(Foreign(), torch.utils.data.DataLoader(torch.ones(20, 2)))
        assert names(folder) == ["last.ckpt -> step-00000009.ckpt", "step-00000008.ckpt", "step-00000009.ckpt"]
        assert type(trainer.strategy.checkpoint_io) is (Own if plugins else WholeCheckpointIO)


# Before a validation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hook", "step"), [
    ("on_validation_start", 3), ("on_validation_batch_start", 6), ("on_validation_end", 9), ("on_validation_start", 12),
    ("on_train_batch_start", 6), ("on_validation_epoch_end", 12)])
def test_a_run_killed_in_or_after_a_validation_loses_nothing_and_makes_it_again(
        whole, sources, tiny, tmp_path, hook, step):
    before = Values(tmp_path / "logs")
    with pytest.raises(Killed):
        run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=100), Die(hook, step), logger=before,
            log_every_n_steps=5, **VALIDATED)
    assert newest(tmp_path).name == f"step-{step:08d}.ckpt"
    after = Values(tmp_path / "logs")
    resumed, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=100), resume=newest(tmp_path),
                         logger=after, log_every_n_steps=5, **VALIDATED)
    module, values, folder = whole
    assert diary.names == IDEAL[step * GLOBAL :]
    assert same_weights(resumed, module)
    assert {**before.values, **after.values} == values
    assert min(logged for _, logged in after.values) == step  # this validation was made again
    assert [event["event"] for event in read_events(tmp_path)].count("finish") == 1
    assert newest(tmp_path).name == newest(folder).name


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_killed_between_validations_makes_none_twice_and_logs_the_same_means(
        whole, sources, tiny, tmp_path, step):
    before, after = Values(tmp_path / "logs"), Values(tmp_path / "logs")
    with pytest.raises(Killed):
        run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=step), Die("on_train_batch_start", step),
            logger=before, log_every_n_steps=5, **VALIDATED)
    resumed, _ = run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=100), resume=newest(tmp_path),
                     logger=after, log_every_n_steps=5, **VALIDATED)
    assert same_weights(resumed, whole[0])
    assert {**before.values, **after.values} == whole[1]
    assert min(logged for _, logged in after.values) > step


def test_a_validation_within_an_accumulation_saves_the_last_whole_step(sources, tiny, tmp_path):
    with pytest.raises(Killed):
        run(sources, tiny, tmp_path, RunCheckpointCallback(), Die("on_validation_start", 2), micro=1,
            validation_blocks=3, val_check_interval=10)
    assert newest(tmp_path).name == "step-00000002.ckpt"
    values = Values(tmp_path / "logs")
    _, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(), micro=1, resume=newest(tmp_path), logger=values,
                   validation_blocks=3, val_check_interval=10)
    assert diary.names == IDEAL[2 * GLOBAL :]
    assert min(step for name, step in values.values if name == "val/a/loss") == 2


def test_a_finished_run_is_not_validated_again(whole, sources, tiny):
    _, _, folder = whole
    logged = Values(folder)
    _, diary = run(sources, tiny, folder, RunCheckpointCallback(), resume=newest(folder), logger=logged, **VALIDATED)
    assert (diary.names, logged.values) == ([], {})


def test_a_run_whose_last_validation_was_taken_away_ends_where_it_should(sources, tiny, tmp_path):
    with pytest.raises(Killed):
        run(sources, tiny, tmp_path, RunCheckpointCallback(), Die("on_validation_start", STEPS), **VALIDATED)
    resumed, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(), resume=newest(tmp_path))
    assert (diary.names, resumed.trainer.global_step, resumed.trainer.max_steps) == ([], STEPS, STEPS)


# On an exception -----------------------------------------------------------------------------------------------


class Breaks(ContinuedPretraining):
    """Fails in its fifth step, where it is told to."""

    where = ""
    calls = 0

    def fails(self, where):
        if where == self.where and self.trainer.global_step == 4 and not self.trainer.ckpt_path:
            self.calls += 1
            if self.calls == (2 if where == "training_step" else 1):  # in the middle of the accumulation
                raise ArithmeticError(f"in {where}")

    def training_step(self, batch, batch_idx):
        self.fails("training_step")
        return super().training_step(batch, batch_idx)

    def configure_gradient_clipping(self, *rest, **more):
        super().configure_gradient_clipping(*rest, **more)
        self.fails("clipping")

    def configure_optimizers(self):
        configured = super().configure_optimizers()
        update = configured["optimizer"].step

        def step(closure=None):
            loss = closure()
            if self.where == "update" and self.trainer.global_step == 4 and not self.trainer.ckpt_path:
                with torch.no_grad():
                    next(self.parameters()).add_(1.0)  # half of it is done
                raise ArithmeticError("in update")
            update()
            return loss

        configured["optimizer"].step = step
        return configured

    def lr_scheduler_step(self, scheduler, metric):
        if self.where == "scheduler" and self.trainer.global_step == 5 and not self.trainer.ckpt_path:
            raise ArithmeticError("in scheduler")
        super().lr_scheduler_step(scheduler, metric)


@pytest.mark.parametrize(("where", "saved"), [
    ("training_step", 4), ("clipping", 4), ("update", None), ("scheduler", None)])
def test_an_exception_saves_the_last_whole_step_unless_the_update_was_under_way(
        sources, tiny, tmp_path, caplog, where, saved):
    caplog.set_level(logging.INFO, "lit_cpt")
    module = Breaks(RECIPE, architecture=tiny)
    module.where = where
    with pytest.raises(ArithmeticError, match=f"in {where}"):
        run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=3), module=module)
    if saved is None:
        assert steps(tmp_path) == [3]
        assert f"no checkpoint of step {4 if where == 'update' else 5}: the exception came " in caplog.text
        assert f"the newest whole one is {tmp_path / 'checkpoints' / 'step-00000003.ckpt'}" in caplog.text
    else:
        assert steps(tmp_path) == [3, 4]
        assert f"checkpoint {newest(tmp_path)} (exception" in caplog.text
    at = saved or 3
    _, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(), resume=newest(tmp_path))
    assert diary.names == IDEAL[at * GLOBAL :]


def test_an_exception_in_a_callback_saves_the_step_it_came_after(whole, sources, tiny, tmp_path):
    with pytest.raises(ArithmeticError):
        run(sources, tiny, tmp_path, Die("on_train_batch_end", 5, ArithmeticError()), RunCheckpointCallback())
    assert steps(tmp_path) == [5]
    resumed, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(), resume=newest(tmp_path))
    assert diary.names == IDEAL[5 * GLOBAL :]
    assert same_weights(resumed, whole[0])


@pytest.mark.parametrize("step", [0, 4])
def test_an_exception_before_anything_new_was_trained_saves_nothing(sources, tiny, tmp_path, step):
    with pytest.raises(ArithmeticError):
        run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=4), Die(
            "on_train_batch_start", step, ArithmeticError()))
    assert (steps(tmp_path) if step else (tmp_path / "checkpoints").exists()) == ([4] if step else False)


def test_a_second_interrupt_stops_at_once_without_saving(sources, tiny, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run(sources, tiny, tmp_path, RunCheckpointCallback(), Die("on_train_batch_start", 3, KeyboardInterrupt()))
    signal.signal(signal.SIGINT, before)  # Lightning lets it be ignored
    assert not (tmp_path / "checkpoints").exists()


def test_an_exception_is_not_masked_by_a_save_that_fails(sources, tiny, tmp_path, caplog):
    class Full(WholeCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(ArithmeticError):
        run(sources, tiny, tmp_path, RunCheckpointCallback(), Die("on_train_batch_start", 3, ArithmeticError()),
            plugins=Full())
    assert "no checkpoint of step 3: it could not be written ([Errno 28] No space left" in caplog.text
    assert "the newest whole one is none" in caplog.text


def test_a_save_that_fails_is_not_tried_twice(sources, tiny, tmp_path):
    tried = []

    class Full(WholeCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            tried.append(checkpoint["global_step"])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=3), plugins=Full())
    assert tried == [3]


def test_a_rank_that_holds_a_part_of_the_state_does_not_save_alone():
    class Trainer:
        world_size, strategy = 2, FSDPStrategy()

    with pytest.raises(ValueError, match="under FSDPStrategy a rank holds only a part of the state"):
        RunCheckpointCallback().save_alone(Trainer())


# The mirror ----------------------------------------------------------------------------------------------------


def test_a_run_whose_folder_is_gone_goes_on_from_its_mirror_and_keeps_there_what_it_keeps_here(
        whole, sources, tiny, tmp_path, object_store, caplog):
    mirror = mirror_of(object_store, "run")

    def callback():
        return RunCheckpointCallback(every_n_steps=2, keep=1, keep_every=4, mirror=mirror, monitor="val/a/loss")

    with pytest.raises(ArithmeticError):  # unlike a kill it waits for the mirror
        run(sources, tiny, tmp_path, callback(), Die("on_train_batch_start", 8, ArithmeticError()), **VALIDATED)
    kept = read_index(mirror.objects)
    assert sorted(kept.checkpoints) == sorted({*map("step-{:08d}.ckpt".format, (4, 7, 8)), kept.best})
    assert kept.best == os.readlink(tmp_path / "checkpoints" / "best.ckpt")
    shutil.rmtree(tmp_path / "checkpoints")
    restore(mirror, tmp_path / "checkpoints", "auto")
    resumed, diary = run(sources, tiny, tmp_path, callback(), resume=found_checkpoint(tmp_path, "auto"), **VALIDATED)
    assert diary.names == IDEAL[8 * GLOBAL :]
    assert same_weights(resumed, whole[0])
    best = os.readlink(tmp_path / "checkpoints" / "best.ckpt")
    assert {*read_index(mirror.objects).checkpoints} == {
        *map("step-{:08d}.ckpt".format, (4, 7, 8, 12)), best}


@pytest.mark.slow
def test_a_run_does_not_end_because_its_mirror_fails_and_makes_up_for_it_when_resumed(
        sources, tiny, tmp_path, object_store, caplog):
    mirror = mirror_of(object_store, "failing", retry_seconds=0.2)
    object_store.fail(Fault("error", match="step-", method="PUT", status=403, code="AccessDenied"))
    run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=4, mirror=mirror), max_steps=5)
    assert f"not in {mirror.url}: step-00000004.ckpt, step-00000005.ckpt" in caplog.text
    assert steps(tmp_path) == [4, 5]
    object_store.heal()
    run(sources, tiny, tmp_path, RunCheckpointCallback(every_n_steps=4, mirror=mirror), resume=newest(tmp_path),
        max_steps=6)
    assert sorted(read_index(mirror.objects).checkpoints) == ["step-00000005.ckpt", "step-00000006.ckpt"]


# A kill from outside -------------------------------------------------------------------------------------------


def run_to_its_death(sources, tiny, folder, renamed, times):
    """A run that is killed just before it gives a file or link that name for so many times."""
    rename, count = os.replace, 0

    def kill(source, target):
        nonlocal count
        count += str(target).endswith(f"{renamed}.ckpt")
        if count == times:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = kill
    run(sources, tiny, folder, RunCheckpointCallback(every_n_steps=2, keep=1))


@pytest.mark.parametrize(("renamed", "times", "last", "left"), [
    ("step-00000006", 1, 4, [4]), ("last", 3, 4, [4, 6])])
def test_a_kill_between_writing_and_renaming_leaves_the_checkpoint_before(
        sources, tiny, tmp_path, renamed, times, last, left):
    process = multiprocessing.get_context("fork").Process(
        target=run_to_its_death, args=(sources, tiny, tmp_path, renamed, times))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert steps(tmp_path) == left
    assert newest(tmp_path).name == f"step-{last:08d}.ckpt"
    assert all(damage(tmp_path / "checkpoints" / f"step-{step:08d}.ckpt") is None for step in left)
    assert [name for name in names(tmp_path) if name.startswith(".")]  # half a file, or a link not yet in its place
    asked = found_checkpoint(tmp_path, "last")
    _, diary = run(sources, tiny, tmp_path, RunCheckpointCallback(), resume=asked, max_steps=8)
    assert diary.names == IDEAL[max(left) * GLOBAL if renamed == "last" else last * GLOBAL : 8 * GLOBAL]
    assert not [name for name in names(tmp_path) if name.startswith(".")]
