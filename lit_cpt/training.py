"""`lit-cpt fit` and `lit-cpt validate`: LightningCLI over the module, the data module and a recipe."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tabulate import tabulate
from transformers.utils.logging import disable_progress_bar

from lit_cpt.arguments import advised, known_keys
from lit_cpt.callbacks.graceful_stop import Stopped
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.plan import Plan, plan, render, source_blocks
from lit_cpt.recipe import Recipe
from lit_cpt.settings import expand_configs
from lit_cpt.weights import moments_file

QUIET = (".*args parameter is intended to run from within Python.*", ".*does not have many workers.*", ".*LeafSpec.*",
         ".*treespec.*", ".*Checkpoint directory .* exists.*", ".*srun.*",
         ".*`IterableDataset` has `__len__` defined.*")


class RunFolderCallback(SaveConfigCallback):
    """Writes config, recipe and plan into the run folder when training begins.

    Not sooner: a run that is refused, such as a resume with another batch, must leave the folder as it was.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything has been accepted: write."""
        if not trainer.is_global_zero:
            return
        run, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
        recipe: Any = pl_module.recipe
        run.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(run / "config.yaml"), skip_none=False, overwrite=True)
        (run / "recipe.yaml").write_text(yaml.safe_dump({"recipe": recipe.describe()}, sort_keys=False))
        (run / "plan.json").write_text(json.dumps(plan_of(recipe, data).describe(), indent=1))


class TrainingCLI(LightningCLI):
    """LightningCLI with a recipe that model and data share, and a run folder.

    ``--run DIR`` holds everything of a run: configs, plan, events, TensorBoard files, checkpoints.
    """

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            ContinuedPretraining, BlendDataModule, args=arguments, seed_everything_default=42,
            save_config_callback=RunFolderCallback, auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "prog": "lit-cpt", **{
                name: {"exit_on_error": False, "prog": f"lit-cpt {name}"} for name in self.subcommands()}},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The two that lit_cpt offers."""
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the recipe and the run folder, and share them out."""
        parser.add_argument("--run", type=str, default="runs/default", help="The run's folder.")
        parser.add_class_arguments(Recipe, "recipe", sub_configs=True)
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
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ValueError(f"trainer: {' '.join(str(error).split())} Change the --trainer options or --config "
                             "hardware/....") from error

    def before_fit(self) -> None:
        """Refuse what would be lost or confusing; print the plan."""
        run = Path(self.trainer.default_root_dir)
        settings = self.config[self.subcommand]
        settings["ckpt_path"] = found_checkpoint(run, settings["ckpt_path"])
        self.datamodule.batch.accumulation(self.trainer.world_size)
        check_model(self.model)
        if self.model.optimizer_state is not None and settings["ckpt_path"] is None:
            moments_file(self.model.optimizer_state)
        if self.trainer.is_global_zero:
            print(render(plan_of(self.model.recipe, self.datamodule)), flush=True)

    def after_fit(self) -> None:
        """Say where it ended and what to do with it."""
        run, seen = self.trainer.default_root_dir, self.model.tokens_seen
        if self.trainer.is_global_zero:
            print(f"{run}: {self.trainer.global_step:,} steps, {seen:,} tokens. To read it: lit-cpt report {run}",
                  flush=True)

    def before_validate(self) -> None:
        """Find the checkpoint that ``last`` means."""
        check_model(self.model)
        settings = self.config[self.subcommand]
        if settings["ckpt_path"]:
            settings["ckpt_path"] = found_checkpoint(Path(self.trainer.default_root_dir), settings["ckpt_path"])

    def after_validate(self) -> None:
        """Print the loss of each source."""
        losses = {name.split("/")[1]: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.trainer.is_global_zero:
            print(tabulate(losses.items(), ["source", "validation loss"], floatfmt=".4f"), flush=True)


def plan_of(recipe: Recipe, data: BlendDataModule) -> Plan:
    """What training by ``recipe`` on ``data`` will do."""
    return plan(recipe, data.batch, source_blocks(data.used, data.batch.sequence_length), data.seed)


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


def found_checkpoint(run: Path, asked: str | None) -> str | None:
    """The checkpoint file that ``--ckpt_path`` means, ``last`` being the newest; None to start anew.

    Raises:
        FileNotFoundError: It is not there.
        FileExistsError: A new run would mix with the one that ``run`` holds.
    """
    if run.exists() and not run.is_dir():
        raise FileExistsError(f"--run {run} is a file; name a folder, such as --run runs/{run.stem}.")
    folder = run / "checkpoints"
    saved = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if asked is None:
        if saved:
            raise FileExistsError(f"{run} holds a run already. Resume it with --ckpt_path last, or start another with "
                                  "--run DIR.")
        return None
    if asked == "last":
        if not saved:
            raise FileNotFoundError(f"--ckpt_path last: there is no checkpoint in {folder}. Leave --ckpt_path out to "
                                    "start, or name the run's folder with --run DIR.")
        return str(saved[-1])
    if not Path(asked).exists():
        raise FileNotFoundError(f"--ckpt_path {asked}: no such file. Give `last` or a file of {folder}.")
    return asked


def training_command(arguments: list[str]) -> None:
    """`lit-cpt fit` and `lit-cpt validate`; the first argument is the command."""
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # of transformers: a bar for each weights file, between our own lines
    try:
        TrainingCLI(expand_configs(arguments))
    except Stopped as stop:
        again = [word for word, before in zip(arguments, ["", *arguments], strict=False)
                 if before != "--ckpt_path" and word.partition("=")[0] != "--ckpt_path"]
        raise Stopped(f"{stop}\nresume with: lit-cpt {shlex.join(again)} --ckpt_path last") from None


