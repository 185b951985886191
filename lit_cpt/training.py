"""`lit-cpt fit` and `lit-cpt validate`: LightningCLI over the module, the data module and a recipe."""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import shlex
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tabulate import tabulate
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from transformers.utils.logging import disable_progress_bar

from lit_cpt.arguments import HelpFormatter, advised, help_of, known_keys
from lit_cpt.checkpoints import folder_of, found_checkpoint, newest_whole, saving_callbacks
from lit_cpt.data import BlendDataModule
from lit_cpt.forecast import Forecast, Setup, forecast, render_forecast
from lit_cpt.mirror import Mirror, opened_index, restore
from lit_cpt.module import ContinuedPretraining
from lit_cpt.outlook import outlook_here
from lit_cpt.parallel import data_rank, leave
from lit_cpt.plan import source_blocks
from lit_cpt.publishing import taken_back
from lit_cpt.recipe import Recipe
from lit_cpt.restarts import asked_for, check_agreement, lost_rank, warn_of_stale_addresses
from lit_cpt.rollback import Unstable, persevere
from lit_cpt.settings import expand_configs
from lit_cpt.weights import moments_file

log = logging.getLogger(__name__)

LAUNCHER = "lightning.fabric.strategies.launchers.subprocess_script"
ABOUT = {"fit": ("Trains by a recipe. What a run is stands in config files, which are found by path or by the name of "
                 "one that lit_cpt ships; each option below is a key of them. `lit-cpt plan` foretells what happens.",
                 "fit --config base --config hardware/gpu --config run.yaml --run runs/first",
                 "fit --config base --config hardware/gpu --config run.yaml --run runs/first --ckpt_path last"),
         "validate": ("Tells the loss of a model, or of a run's checkpoint, on each source.",
                      "validate --config base --config run.yaml --run runs/first --ckpt_path last")}
LOGGED = ("events.out.tfevents.*", "hparams.yaml")  # what Lightning's logger writes before anything is looked at
QUIET = (".*args parameter is intended to run from within Python.*", ".*does not have many workers.*", ".*LeafSpec.*",
         ".*treespec.*", ".*Checkpoint directory .* exists.*", ".*srun.*",
         ".*`IterableDataset` has `__len__` defined.*", ".*sync_dist=True.*")  # what is logged is reduced already


class RunFolderCallback(SaveConfigCallback):
    """Writes config, recipe and plan into the run folder when training begins.

    Not sooner: a run that is refused, such as a resume with another batch, must leave the folder as it was.
    """

    begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet; see that all ranks go on from the same checkpoint."""
        check_agreement(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything has been accepted: write."""
        self.begun = True
        if not trainer.is_global_zero:
            return
        run, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
        recipe: Any = pl_module.recipe
        run.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config["allow_change"], config["ckpt_path"] = [], None  # of this start; the checkpoints to come need neither
        # One file: for several, jsonargparse changes the working directory under those who write in the background.
        self.parser.save(config, str(run / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
        (run / "recipe.yaml").write_text(yaml.safe_dump({"recipe": recipe.describe()}, sort_keys=False))
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        told = forecast_of(trainer, recipe, data, config.as_dict(), parameters).describe()
        (run / "plan.json").write_text(json.dumps({**told, **scale_here(trainer, data, config.as_dict())}, indent=1))


class TrainingCLI(LightningCLI):
    """LightningCLI with a recipe that model and data share, and a run folder.

    ``--run DIR`` holds everything of a run: configs, plan, events, TensorBoard files, checkpoints.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.asked = arguments[0]
        super().__init__(
            ContinuedPretraining, BlendDataModule, args=arguments, seed_everything_default=42,
            save_config_callback=RunFolderCallback, auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "lit-cpt",
                           "formatter_class": HelpFormatter,
                           self.asked: {"exit_on_error": False, "prog": f"lit-cpt {self.asked}",
                                        **help_of(self.asked, *ABOUT[self.asked])}},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one asked for; the parser of another would take a tenth of a second."""
        return {self.asked: LightningCLI.subcommands()[self.asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the recipe and the run folder, and share them out."""
        parser.add_argument("--run", type=str, default="runs/default", help="The run's folder.")
        parser.add_argument("--mirror", type=str | Mirror | None, default=None, metavar="URL",
                            help="A folder of a store, such as s3://bucket/run1: checkpoints are copied there, and "
                            "--ckpt_path auto|last finds them there.")
        parser.add_argument("--allow_change", type=list[str], default=[], metavar="FIELD",
                            help="What a resumed run may change, such as data.seed; repeat it for each.")
        parser.add_class_arguments(Recipe, "recipe", sub_configs=True)
        parser.link_arguments("allow_change", "data.allow_change")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("recipe", "model.recipe", apply_on="instantiate")
        parser.link_arguments("recipe", "data.recipe", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake is answered with the key and the nearest right one."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, argparse.ArgumentError) as error:
            command = args[0]
            keys = known_keys(self._subcommand_parsers[command])
            raise ValueError(advised(str(error), keys, f"lit-cpt {command}")) from None

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint's hyperparameters must not override the command line."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer; fit logs into the run folder unless another logger was asked for, validate only prints.

        Raises:
            ValueError: The Trainer refuses a setting, such as an accelerator that this machine lacks.
        """
        settings = self._get(self.config_init, "trainer")
        if settings.get("logger") in (None, True):
            kwargs["logger"] = self.subcommand == "fit" and TensorBoardLogger(
                settings["default_root_dir"], name="", version="", default_hp_metric=False)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            raise refusal(error) from error
        return mirrored(trainer, self._get(self.config_init, "mirror"))

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; an error in training that leaves a whole checkpoint tells the newest.

        Raises:
            ValueError: Lightning refuses a setting.
        """
        run = partial(super()._run_subcommand, subcommand)
        try:
            with taken_back(Path(self.trainer.default_root_dir), LOGGED, self.begun):
                persevere(run, self.go_back)
        except BaseException as error:
            if not self.begun() and is_lightnings(error):
                raise refusal(error) from error
            newest = newest_whole(folder_of(self.trainer))[0] if subcommand == "fit" else None
            newest = getattr(error, "checkpoint", newest)
            if newest is not None:
                error.newest = str(newest)  # type: ignore[attr-defined]
            raise

    def begun(self) -> bool:
        """Whether training was accepted and the run folder is written."""
        return any(isinstance(one, RunFolderCallback) and one.begun for one in self.trainer.callbacks)  # type: ignore[attr-defined]

    def go_back(self, checkpoint: Path, stretch: tuple[int, int]) -> None:
        """Let the next fit go on from ``checkpoint`` without a ``stretch`` of the stream."""
        self.datamodule.pass_over.append(stretch)
        self.config_init[self.subcommand]["ckpt_path"] = str(checkpoint)
        self.model.model = self.model.loss_of = None  # built anew: a strategy may have taken it to the CPU

    @property
    def settings(self) -> dict[str, Any]:
        """The config, as plain values."""
        found: dict[str, Any] = self.config[self.subcommand].as_dict()
        return found

    def before_fit(self) -> None:
        """Refuse what would be lost or confusing; print the plan."""
        if not self.trainer.is_global_zero:  # one rank tells what all of them do
            logging.getLogger("lit_cpt").setLevel(logging.WARNING)
        checkpoint = self.resolve_checkpoint()
        self.datamodule.batch.accumulation(data_rank(self.trainer)[1])
        check_model(self.model)
        if self.model.optimizer_state is not None and checkpoint is None:
            moments_file(self.model.optimizer_state)
        if self.trainer.is_global_zero:
            warn_of_stale_addresses()
            told = forecast_of(self.trainer, self.model.recipe, self.datamodule, self.settings)
            print(render_forecast(told), flush=True)

    def resolve_checkpoint(self) -> str | None:
        """The file that ``--ckpt_path`` means, also for the Trainer: it knows no ``last`` of ours."""
        given, run = self.config_init[self.subcommand], Path(self.trainer.default_root_dir)
        asked = asked_for(given["ckpt_path"])
        if (mirror := mirror_of(self.trainer)) is not None:
            if self.subcommand == "fit" and self.trainer.is_global_zero:
                opened_index(mirror.objects)
            restore(mirror, folder_of(self.trainer), asked)
        given["ckpt_path"] = found_checkpoint(run, asked, self.skipped)
        return given["ckpt_path"]

    def skipped(self, broken: Path, what: str, instead: Path) -> None:
        """Say that a damaged checkpoint was passed over, and have it recorded when training begins."""
        if self.trainer.is_global_zero:
            log.warning("%s is damaged (%s): going on from %s", broken, what, instead)
        self.model.notes.append(("damaged", {"checkpoint": str(broken), "what": what, "instead": str(instead)}))

    def after_fit(self) -> None:
        """Say where it ended and what to do with it."""
        run, seen = self.trainer.default_root_dir, self.model.tokens_seen
        if self.trainer.is_global_zero:
            print(f"{run}: {self.trainer.global_step:,} steps, {seen:,} tokens. To read it: lit-cpt report {run}",
                  flush=True)

    def before_validate(self) -> None:
        """Find the checkpoint that ``last`` means."""
        check_model(self.model)
        if self.config_init[self.subcommand]["ckpt_path"]:
            self.resolve_checkpoint()

    def after_validate(self) -> None:
        """Print the loss of each source."""
        losses = {name.split("/")[1]: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.trainer.is_global_zero:
            print(tabulate(losses.items(), ["source", "validation loss"], floatfmt=".4f"), flush=True)


class ReadingCLI(TrainingCLI):
    """Reads a run's config as fit does, and does nothing with it."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def is_lightnings(error: BaseException) -> bool:
    """Whether Lightning refused a setting by this error, and not a mistake in somebody's code."""
    told = traceback.extract_tb(error.__traceback__)
    return isinstance(error, MisconfigurationException) or (
        isinstance(error, ValueError) and bool(told) and "lightning" in Path(told[-1].filename).parts)


def refusal(error: BaseException) -> ValueError:
    """What to say of a setting that Lightning refused."""
    return ValueError(f"trainer: {' '.join(str(error).split())} Change the --trainer options or --config "
                      "hardware/....")


def forecast_of(trainer: Trainer, recipe: Recipe, data: BlendDataModule, config: dict[str, Any],
                parameters: int | None = None) -> Forecast:
    """What training by ``recipe`` on ``data`` will do, as far as it can be told.

    Args:
        trainer: Knows the ranks and the run's folder.
        recipe: What to train.
        data: The sources.
        config: Of the run, as plain values.
        parameters: Of the model, once it is there.
    """
    blocks = source_blocks(data.used, data.batch.sequence_length)
    return forecast(Setup(recipe, data.batch, data.seed, tuple(data.sources), blocks, bool(data.validation_names),
                          config["trainer"], config["model"], trainer.world_size, parameters,
                          trainer.default_root_dir))


def scale_here(trainer: Trainer, data: BlendDataModule, config: dict[str, Any]) -> dict[str, Any]:
    """Memory and hours on the GPUs that train, for ``plan.json``; empty where they are not known."""
    if not torch.cuda.is_available():
        return {}
    try:
        found = outlook_here(config, data.batch, data.recipe.horizon, torch.cuda.get_device_name(),
                             trainer.world_size)
    except Exception as error:  # a model whose size cannot be told can be trained nevertheless
        log.warning("the plan does without memory and hours: %s", error)
        return {}
    return {"scale": found.describe()} if found else {}


def mirrored(trainer: Trainer, mirror: str | Mirror | None) -> Trainer:
    """``trainer``, whose checkpoints are copied to ``mirror`` if one is given.

    Raises:
        ValueError: It has no callback that could.
    """
    for callback in saving_callbacks(trainer) if mirror is not None else ():
        callback.mirror = Mirror(mirror) if isinstance(mirror, str) else mirror
        return trainer
    if mirror is not None:
        raise ValueError(f"mirror={mirror!r} needs lit_cpt.callbacks.RunCheckpointCallback among the callbacks.")
    return trainer


def mirror_of(trainer: Trainer) -> Mirror | None:
    """Where the checkpoints of a run are copied to."""
    return next((getattr(callback, "mirror", None) for callback in saving_callbacks(trainer)), None)


def check_model(module: ContinuedPretraining) -> None:
    """Refuse a model that is spelled as a path and is not there, before the hub is asked for it again and again.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    for name in ("pretrained", "architecture"):
        given = getattr(module, name)
        if isinstance(given, str) and (given.startswith((".", "/", "~")) or given.count("/") > 1) and not Path(
                given).is_dir():
            raise FileNotFoundError(f"--model.{name} {given}: there is no such folder. Give one with config.json (and "
                                    "weights), as `save_pretrained` writes it, or the name of a hub model.")


def gathered(arguments: list[str]) -> list[str]:
    """``arguments`` with every ``--allow-change FIELD`` in one list, as the parser wants them."""
    rest: list[str] = []
    fields: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--allow-change", "--allow_change"):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise ValueError("--allow-change names no FIELD, such as data.seed.")
        fields += yaml.safe_load(value) if value.startswith("[") else [value]
    return [*rest, f"--allow_change={json.dumps(fields)}"] if fields else rest


def resume_command(arguments: list[str], checkpoint: str = "last") -> str:
    """The command that goes on from ``checkpoint`` where the one with these arguments ended."""
    again = [word for word, before in zip(arguments, ["", *arguments], strict=False)
             if before != "--ckpt_path" and word.partition("=")[0] != "--ckpt_path"]
    return f"lit-cpt {shlex.join(again)} --ckpt_path {shlex.quote(checkpoint)}"


def quieten() -> None:
    """Pass over what libraries warn of in every run."""
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao, where it is installed, sets it off


def training_command(arguments: list[str]) -> None:
    """`lit-cpt fit` and `lit-cpt validate`; the first argument is the command."""
    quieten()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(LAUNCHER).setLevel(logging.INFO)  # it tells that a rank died, before it kills the others
    atexit.register(leave)  # also where the strategy is none of ours
    disable_progress_bar()  # of transformers: a bar for each weights file, between our own lines
    recorder = get_error_handler()  # for torchrun, which tells which rank failed first, and why
    recorder.initialize()
    try:
        TrainingCLI(expand_configs(gathered(arguments)))
    except BaseException as error:
        lost = lost_rank(error)
        if lost is None and isinstance(error, Exception):  # a rank that lost another is no reason
            recorder.record_exception(error)
        told = lost or error
        if (newest := getattr(error, "newest", None)) is not None:
            place = newest if isinstance(error, Unstable) else "last"  # later ones may hold the harm
            told.newest, told.resume_with = newest, resume_command(arguments, place)  # type: ignore[attr-defined]
        raise told  # noqa: B904  # from the error, which stays its context
