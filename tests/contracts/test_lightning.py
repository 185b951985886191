"""What Lightning does where lit_cpt counts on it or works around it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_trainer
from contract import relied_on, worked_around
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, IterableDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*val_dataloader.*", "ignore:.*args parameter.*", "ignore:No seed")
LOADER, FETCHING = (f"lit_cpt/stream/{name}.py" for name in ("loader", "fetching"))
MODULE, DATA, COUNTERS, TRAINING = (f"lit_cpt/{name}.py" for name in ("module", "data", "counters", "training"))
CHECKPOINTS, STOP, SWITCH = "lit_cpt/checkpoints.py", "callbacks/graceful_stop.py", "callbacks/phase_switch.py"


class Numbers:
    """A loader that hands out 1, 2, 3 ...; its state is how many it has handed out."""

    def __init__(self, total: int = 1000) -> None:
        self.total, self.handed = total, 0
        self.calls: list[str] = []

    def __iter__(self):
        self.calls.append("iter")
        while self.handed < self.total:
            self.handed += 1
            yield torch.tensor([float(self.handed)])

    def state_dict(self) -> dict[str, int]:
        return {"handed": self.handed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls.append("load")
        self.handed = state["handed"]


class CountedNumbers(Numbers):
    """The same, with a length."""

    def __len__(self) -> int:
        return self.total


class Line(pl.LightningModule):
    """A model of two parameters that notes what it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[int] = []
        self.heard: list[Any] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.trained.append(int(batch))
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        super().lr_scheduler_step(scheduler, metric)
        self.heard.append("scheduler")

    def on_train_batch_end(self, *_: Any) -> None:
        self.heard.append("module")


class AtBatchEnd(Callback):
    """Asks ``question(trainer)`` at the end of every batch."""

    def __init__(self, question: Any) -> None:
        self.question = question
        self.answers: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.answers.append(self.question(trainer))


def run(folder: Path, loader: Any, *callbacks: Callback, module: pl.LightningModule | None = None,
        resume: Path | None = None, steps: int = 4, validation: Any = None, **settings: Any) -> Any:
    """Train for some steps; the module that was trained."""
    module = module or Line()
    trainer = make_trainer(folder, *callbacks, max_steps=steps, **settings)
    trainer.fit(module, loader, validation, ckpt_path=resume and str(resume), weights_only=False)
    return module


def saved_at(folder: Path, step: int, loader: Any, *callbacks: Callback, **settings: Any) -> Path:
    """A checkpoint of a run, saved at the end of the batch that made ``step``."""
    path = folder / "saved.ckpt"
    save = AtBatchEnd(lambda trainer: trainer.global_step < step or path.exists() or trainer.save_checkpoint(path))
    run(folder, loader, *callbacks, save, **settings)
    return path


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# Fetching ---------------------------------------------------------------------------------------------


def test_a_loader_with_a_length_is_not_read_ahead(tmp_path):
    loader = CountedNumbers()
    with relied_on(LOADER, "it has a length, so that its position is that of the last trained batch"):
        ahead = AtBatchEnd(lambda trainer: loader.handed - trainer.global_step)
        run(tmp_path, loader, ahead)
        assert ahead.answers == [0, 0, 0, 0]


def test_a_loader_without_a_length_is_read_one_batch_ahead(tmp_path):
    loader = Numbers()
    with worked_around(LOADER, "its __len__; and lit_cpt/stream/switching.py keeps a state for each batch"):
        ahead = AtBatchEnd(lambda trainer: loader.handed - trainer.global_step)
        run(tmp_path, loader, ahead)
        assert ahead.answers == [1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "first"), [(CountedNumbers, 4), (Numbers, 5)])
def test_a_run_goes_on_where_its_loader_was_saved_less_what_was_read_ahead(tmp_path, kind, first):
    path = saved_at(tmp_path, 3, kind())
    with relied_on(LOADER, "the state of the loader lies in loops.fit_loop.state_dict.combined_loader, and is loaded "
                           "before the loader is iterated over; a batch read ahead is lost"):
        assert read(path)["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"handed": first - 1}]
        loader = kind()
        assert run(tmp_path, loader, resume=path, steps=6).trained == [first, first + 1, first + 2]
        assert loader.calls == ["load", "iter"]


def test_a_state_saved_while_a_batch_fails_counts_that_batch(tmp_path):
    class Failing(Line):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if batch_idx == 2:
                raise ArithmeticError
            return super().training_step(batch, batch_idx)

    class SaveOnException(Callback):
        def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "failed.ckpt")

    with pytest.raises(ArithmeticError):
        run(tmp_path, CountedNumbers(), SaveOnException(), module=Failing())
    with worked_around(LOADER, "rewind_untrained gives back the batch that was read but not trained"):
        loop = read(tmp_path / "failed.ckpt")["loops"]["fit_loop"]
        assert loop["state_dict"]["combined_loader"] == [{"handed": 3}]
        progress = loop["epoch_loop.batch_progress"]["current"]
        assert (progress["ready"], progress["processed"]) == (3, 2)


def test_the_fit_loop_holds_the_very_loaders_that_it_was_given(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            yield from CountedNumbers()

    loader = DataLoader(Endless(), batch_size=None)
    with relied_on(FETCHING, "it finds the loaders in trainer.fit_loop._combined_loader.flattened; so do others"):
        found = AtBatchEnd(lambda trainer: trainer.fit_loop._combined_loader.flattened)
        run(tmp_path, loader, found, steps=1)
        assert len(found.answers[0]) == 1
        assert found.answers[0][0] is loader
        assert make_trainer(tmp_path).fit_loop._combined_loader is None


@pytest.mark.parametrize(("kind", "held"), [(CountedNumbers, 0), (Numbers, 1)])
def test_iterating_over_the_data_fetcher_again_fetches_from_the_loader_as_it_is_then(tmp_path, kind, held):
    loader = kind()

    def fetch_anew(trainer: pl.Trainer) -> Any:
        fetcher = trainer.fit_loop._data_fetcher
        told = [len(getattr(fetcher, "batches", ())), fetcher.fetched]
        if trainer.global_step == 2:
            loader.handed = 100
            iter(fetcher)
        return [*told, fetcher.fetched, len(trainer.fit_loop._combined_loader._iterator.iterators)]

    with relied_on(FETCHING, "fetch_anew iterates over _data_fetcher again and mends its count of batches"):
        told = AtBatchEnd(fetch_anew)
        assert run(tmp_path, loader, told, steps=3).trained == [1, 2, 101]
        assert loader.calls == ["iter", "iter"]
        assert told.answers[:2] == [[held, 1 + held, 1 + held, 1], [held, 2 + held, held, 1]]


def test_the_last_batch_is_known_at_its_end(tmp_path):
    with relied_on(FETCHING, "epoch_goes_on asks _num_ready_batches_reached()"):
        last = AtBatchEnd(lambda trainer: trainer.fit_loop.epoch_loop._num_ready_batches_reached())
        run(tmp_path, CountedNumbers(3), last, steps=3)
        assert last.answers == [False, False, True]


# Hooks ------------------------------------------------------------------------------------------------


def test_the_scheduler_steps_before_callbacks_hear_of_the_step_and_checkpoints_come_last_of_these(tmp_path):
    module = Line()

    class Saving(Checkpoint):
        def on_train_batch_end(self, *_: Any) -> None:
            module.heard.append("checkpoint")

    with relied_on(SWITCH, "it reads the rate of the next step, and what it decides is in the checkpoint of this one; "
                           "so does lit_cpt/module.py, which logs in lr_scheduler_step"):
        run(tmp_path, CountedNumbers(), Saving(), AtBatchEnd(lambda _: module.heard.append("callback")), module=module,
            steps=1)
        assert module.heard == ["scheduler", "callback", "checkpoint", "module"]


def test_the_step_is_counted_when_the_scheduler_steps(tmp_path):
    class Counting(Line):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            super().lr_scheduler_step(scheduler, metric)
            self.heard.append((self.trainer.global_step, self.trainer.fit_loop._should_accumulate(),
                               self.trainer.optimizers[0].param_groups[0]["lr"]))

    with relied_on(MODULE, "close_step logs global_step and the rate of the next step"):
        module = run(tmp_path, CountedNumbers(), module=Counting(), steps=2, accumulate_grad_batches=2)
        assert [heard for heard in module.heard if isinstance(heard, tuple)] == [
            (1, False, 1e-3 / 2), (2, False, 1e-3 / 3)]


def test_should_accumulate_is_true_at_the_end_of_every_batch_but_a_steps_last(tmp_path):
    with relied_on(SWITCH, "it waits for whole steps by fit_loop._should_accumulate(); so do others"):
        asked = AtBatchEnd(lambda trainer: trainer.fit_loop._should_accumulate())
        run(tmp_path, CountedNumbers(), asked, steps=2, accumulate_grad_batches=3)
        assert asked.answers == [True, True, False, True, True, False]


def test_a_data_module_may_set_accumulation_and_steps_in_its_setup(tmp_path):
    class Data(pl.LightningDataModule):
        def setup(self, stage: str) -> None:
            self.trainer.accumulate_grad_batches = 3
            self.trainer.fit_loop.epoch_loop.max_steps = 2

        def train_dataloader(self) -> CountedNumbers:
            return CountedNumbers()

    with relied_on(DATA, "setup derives both from the recipe"):
        assert run(tmp_path, Data(), steps=-1).trained == [1, 2, 3, 4, 5, 6]


def test_moments_are_loaded_between_on_fit_start_and_on_train_start_and_callbacks_before(tmp_path):
    heard: list[Any] = []

    class Watching(Callback):
        def state_dict(self) -> dict[str, int]:
            return {"kept": 1}

        def load_state_dict(self, state_dict: dict[str, int]) -> None:
            heard.append(state_dict)

        def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Any) -> None:
            heard.append("checkpoint")

        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            heard.append(("train start", len(trainer.optimizers[0].state), trainer.global_step))

    class Heard(Line):
        def on_fit_start(self) -> None:
            heard.append(("fit start", len(self.trainer.optimizers[0].state)))

    path = saved_at(tmp_path, 2, CountedNumbers(), Watching())
    heard.clear()
    with relied_on(SWITCH, "its state is there at on_train_start; and lit_cpt/module.py loads moments in on_fit_start, "
                           "which a resume overrides"):
        run(tmp_path, CountedNumbers(), Watching(), module=Heard(), resume=path)
        assert heard == ["checkpoint", {"kept": 1}, ("fit start", 0), ("train start", 2, 2)]


def test_a_module_is_without_a_trainer_until_it_is_fitted():
    with relied_on(MODULE, "on_load_checkpoint asks self._trainer, where self.trainer would raise"):
        assert Line()._trainer is None


# Counters ---------------------------------------------------------------------------------------------

PROGRESS = "epoch_loop.batch_progress"


def test_the_counters_of_a_checkpoint_are_those_that_set_progress_writes(tmp_path):
    path = saved_at(tmp_path, 2, CountedNumbers(), accumulate_grad_batches=3)
    with relied_on(COUNTERS, "set_progress writes the counters as Lightning has them at a step's last batch"):
        loop, trained = read(path)["loops"]["fit_loop"], {"ready": 6, "started": 6, "processed": 6, "completed": 5}
        assert loop[PROGRESS] == {"total": trained, "current": trained, "is_last_batch": False}
        assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 1
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        assert loop["epoch_progress"] == {"total": begun, "current": begun}
        validation = loop["epoch_loop.val_loop.batch_progress"]
        assert validation.keys() == {"total", "current", "is_last_batch"}
        assert validation["total"].keys() == trained.keys()


def test_what_a_module_changes_in_a_loaded_checkpoint_is_what_the_loops_take(tmp_path):
    class Changing(Line):
        def on_load_checkpoint(self, checkpoint: Any) -> None:
            for counters in checkpoint["loops"]["fit_loop"][PROGRESS].values():
                isinstance(counters, dict) and counters.update(ready=7, started=7, processed=7, completed=6)

    path = saved_at(tmp_path, 2, CountedNumbers())
    with relied_on(MODULE, "on_load_checkpoint counts the batches of this world size"):
        count = AtBatchEnd(lambda trainer: trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        run(tmp_path, CountedNumbers(), count, module=Changing(), resume=path, steps=3)
        assert count.answers == [8]


def test_a_batch_is_processed_at_its_end_and_completed_later(tmp_path):
    def counted(trainer: pl.Trainer) -> tuple[int, int, int]:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready, progress.processed, progress.completed

    with relied_on(FETCHING, "trained_batches counts the processed; lit_cpt/counters.py knows a batch's end by it"):
        told = AtBatchEnd(counted)
        run(tmp_path, CountedNumbers(), told, steps=2)
        assert told.answers == [(1, 1, 0), (2, 2, 1)]


def test_lightnings_own_count_of_steps_is_one_behind_in_the_log(tmp_path):
    class Logging(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.steps += [step] if "one" in metrics else []

    class Logged(Line):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("one", 1.0)

    logger = Logging()
    with worked_around(MODULE, "publish hands its metrics to the loggers itself, with the number of steps made"):
        run(tmp_path, CountedNumbers(), module=Logged(), logger=logger, log_every_n_steps=1, steps=3)
        assert logger.steps == [0, 1, 2]


def test_whether_a_validation_follows_can_be_asked_at_the_end_of_a_batch(tmp_path):
    def due(trainer: pl.Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        return (loop._should_check_val_epoch() and not loop.val_loop.skip
                and loop._should_check_val_fx(trainer.fit_loop._data_fetcher))

    class Noting(Callback):
        def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            told.answers.append(f"validating {trainer.validating}")

    told = AtBatchEnd(due)
    with relied_on(COUNTERS, "validation_due asks _should_check_val_epoch and _should_check_val_fx"):
        run(tmp_path, CountedNumbers(), told, Noting(), validation=CountedNumbers(2), val_check_interval=2,
            check_val_every_n_epoch=None)
        assert told.answers == [False, True, "validating True"] * 2


class Validations(Callback):
    """Notes the step of each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_validation_that_was_still_to_come_is_not_made_by_a_resume(tmp_path, steps):
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    path = saved_at(tmp_path, 2, CountedNumbers(), steps=2, validation=CountedNumbers(2), **settings)
    with worked_around(COUNTERS, "set_progress(pending=True) makes Lightning validate first, and go_on in "
                                 "lit_cpt/module.py holds the end of the run back"):
        validations = Validations()
        run(tmp_path, CountedNumbers(), validations, resume=path, steps=steps, validation=CountedNumbers(2), **settings)
        assert 2 not in validations.steps


def test_estimated_stepping_batches_make_a_resume_forget_where_its_loader_was(tmp_path):
    class Asking(Line):
        def configure_optimizers(self) -> Any:
            self.heard.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    path = saved_at(tmp_path, 3, CountedNumbers(), max_epochs=1)
    with worked_around("lit_cpt/stream/switching.py", "the callback loads the saved state again if Lightning's issue "
                       "20550 lost it; and lit_cpt/module.py never asks for estimated_stepping_batches"):
        assert run(tmp_path, CountedNumbers(), module=Asking(), resume=path, max_epochs=1).trained == [1]
        assert run(tmp_path, CountedNumbers(), resume=path, max_epochs=1).trained == [4]


# Checkpoints and signals ------------------------------------------------------------------------------


class Told(SingleDeviceStrategy):
    """A strategy that notes what it does."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.calls: list[Any] = []

    def barrier(self, name: str | None = None) -> None:
        self.calls.append(name)


class Noting(TorchCheckpointIO):
    """Writes, or fails to, and notes it."""

    def __init__(self, calls: list[Any], fails: bool = False) -> None:
        self.calls, self.fails = calls, fails

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.calls.append(("write", Path(path).name, storage_options))
        if self.fails:
            raise OSError(28, "No space left on device")


def test_save_checkpoint_goes_through_the_strategys_checkpoint_io_and_then_the_barrier(tmp_path):
    told: dict[bool, list[Any]] = {}

    def save(trainer: pl.Trainer) -> None:
        strategy = trainer.strategy
        assert type(strategy.checkpoint_io) is TorchCheckpointIO
        for fails in (False, True):
            strategy.calls.clear()
            strategy.checkpoint_io = Noting(strategy.calls, fails)
            try:
                trainer.save_checkpoint(tmp_path / "x.ckpt")
            except OSError:
                strategy.calls.append("error")
            told[fails] = list(strategy.calls)

    with relied_on(CHECKPOINTS, "it replaces strategy.checkpoint_io, and where a rank could not write it goes to the "
                                "barrier at which the others wait"):
        run(tmp_path, CountedNumbers(), AtBatchEnd(save), strategy=Told(), steps=1)
        assert told[False] == [("write", "x.ckpt", None), "Trainer.save_checkpoint"]
        assert told[True] == [("write", "x.ckpt", None), "error"]


def test_dump_checkpoint_is_what_save_checkpoint_writes(tmp_path):
    path = tmp_path / "saved.ckpt"

    def dump(trainer: pl.Trainer) -> Any:
        trainer.save_checkpoint(path)
        return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)

    with relied_on("callbacks/run_checkpoint.py", "save_alone dumps and writes without the barrier that others miss"):
        dumped = AtBatchEnd(dump)
        run(tmp_path, CountedNumbers(), dumped, steps=1)
        assert dumped.answers[0].keys() == read(path).keys()
        assert dumped.answers[0]["loops"]["fit_loop"] == read(path)["loops"]["fit_loop"]


def test_a_scheduler_that_steps_with_the_optimizer_is_as_far_as_the_count_of_steps(tmp_path):
    def leads(trainer: pl.Trainer) -> list[Any]:
        return [(config.interval, config.frequency, config.scheduler.last_epoch - trainer.global_step)
                for config in trainer.lr_scheduler_configs]

    with relied_on("callbacks/run_checkpoint.py", "leads() tells whether an exception came between the two"):
        told = AtBatchEnd(leads)
        run(tmp_path, CountedNumbers(), told, steps=2, accumulate_grad_batches=2)
        assert told.answers == [[("step", 1, 0)]] * 4


def test_lightning_takes_sigterm_before_training_starts_and_gives_it_back_at_the_end(tmp_path):
    class Taking(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.found = signal.getsignal(signal.SIGTERM)

    before, taking = signal.getsignal(signal.SIGTERM), Taking()
    with relied_on(STOP, "its handlers, set at on_train_start, are above Lightning's"):
        run(tmp_path, CountedNumbers(), taking, steps=1)
        assert taking.found is not before
        assert signal.getsignal(signal.SIGTERM) is before


def test_any_exception_reaches_the_callbacks_and_then_leaves_fit(tmp_path):
    class Stop(BaseException):
        pass

    class Stopping(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise Stop

        def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
            self.heard = (type(exception), trainer.interrupted)

    stopping = Stopping()
    with relied_on(STOP, "it ends a run by raising Stopped, a BaseException; lit_cpt/module.py asks for interrupted"):
        with pytest.raises(Stop):
            run(tmp_path, CountedNumbers(), stopping)
        assert stopping.heard == (Stop, True)


# The command line -------------------------------------------------------------------------------------


class Rated(Line):
    """A model with a hyperparameter, saved with its checkpoints."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate

    def train_dataloader(self) -> CountedNumbers:
        return CountedNumbers()


QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
         "enable_progress_bar": False, "enable_model_summary": False}


def command_line(kind: type[LightningCLI], *arguments: str) -> Any:
    return kind(Rated, args=["fit", *arguments], trainer_defaults=QUIET, auto_configure_optimizers=False,
                save_config_callback=None)


def test_a_checkpoints_hyperparameters_override_the_command_line(tmp_path):
    class Ours(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            pass

    path = saved_at(tmp_path, 1, CountedNumbers(), steps=1, module=Rated(rate=7.0))
    arguments = ["--ckpt_path", str(path), "--model.rate", "2", "--trainer.max_steps", "1"]
    with worked_around(TRAINING, "TrainingCLI._parse_ckpt_path does nothing"):
        assert command_line(LightningCLI, *arguments).model.rate == 7.0
    with relied_on(TRAINING, "TrainingCLI overrides _parse_ckpt_path"):
        assert command_line(Ours, *arguments).model.rate == 2.0


def test_the_command_line_knows_its_subcommands_parsers_and_its_config():
    found: dict[str, Any] = {}

    class Ours(LightningCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            found["parsers"] = self._subcommand_parsers

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            found["settings"] = self._get(self.config_init, "trainer")
            return super().instantiate_trainer(**kwargs)

    with relied_on(TRAINING, "it reads _subcommand_parsers, whose actions are the known keys, and _get(config_init)"):
        command_line(Ours, "--trainer.max_steps", "0")
        assert "model.rate" in [action.dest for action in found["parsers"]["fit"]._actions]
        assert found["settings"]["max_steps"] == 0


def test_what_before_fit_writes_into_the_built_config_is_what_fit_is_called_with(tmp_path):
    class Ours(LightningCLI):
        def before_fit(self) -> None:
            self.config_init["fit"]["ckpt_path"] = str(path)

    path = saved_at(tmp_path, 3, CountedNumbers(), steps=3, module=Rated())
    with relied_on(TRAINING, "before_fit puts the file that --ckpt_path means into self.config_init"):
        assert command_line(Ours, "--trainer.max_steps", "5").model.trained == [4, 5]


def test_a_subcommand_runs_between_its_before_and_its_after():
    heard: list[str] = []

    class Ours(LightningCLI):
        def before_fit(self) -> None:
            heard.append("before")

        def after_fit(self) -> None:
            heard.append("after")

        def _run_subcommand(self, subcommand: str) -> None:
            heard.append(subcommand)
            super()._run_subcommand(subcommand)

    with relied_on(TRAINING, "TrainingCLI marks errors in _run_subcommand, around before_fit, fit and after_fit"):
        command_line(Ours, "--trainer.max_steps", "1")
        assert heard == ["fit", "before", "after"]
