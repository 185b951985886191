"""Lays TensorBoard out for continued pretraining: charts, what was planned, and what tells runs apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.tensorboard.summary import hparams

from lit_cpt.phases import phase_of, phases_begun
from lit_cpt.plan import Plan, plan, render
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.stream.switching import only_loader
from lit_cpt.telling import log_due, rate

LOSS = re.compile(r"(train|val)/(.+)/loss")
CHARTS = {  # category -> chart -> patterns of tags, which TensorBoard matches from the beginning of a tag
    "loss": {"over all sources": ["train/loss$", "val/mean_loss$"]},
    "blend": {"share of each source": ["share/"], "passes over each source": ["epochs/"],
              "tokens of each source": ["tokens/"]},
    "learning rate": {"by phase": ["eta/"]},
    "scores": {"change since the start": ["eval/[^/]+/change$"], "average": ["eval/average$"],
               "bits per byte of the right answer": ["eval/[^/]+/bits_per_byte$"]},
    "health": {"gradient norm": ["train/gradient_norm$"], "load of experts": ["router/(busiest|idlest)$"],
               "tokens a second": ["speed/tokens_per_second$"],
               "share of the time": ["speed/(data_wait|paused|mfu)$"]},
}
OUTCOMES = ("val/mean_loss", "eval/average", "train/loss", "train/tokens_seen")  # of a run, beside its numbers

Layout = dict[str, dict[str, list[str]]]


class DashboardCallback(Callback):
    """Makes the tabs of TensorBoard readable, for Lightning's TensorBoardLogger; with other loggers it does nothing.

    CUSTOM SCALARS gets a chart of each source's losses (``train/<source>/loss``, ``val/<source>/loss``), and of blend,
    learning rate, scores and health, each as soon as there is something to draw. Of a module with a `Recipe` HPARAMS
    gets the few numbers that tell runs apart, beside how far each came, and TEXT gets recipe and plan; of others
    Lightning itself logs what `save_hyperparameters` keeps. Rank 0 writes it once: a resumed run that goes on in the
    same folder does not repeat it. Two scalars are its own: ``eta/<phase>``, the learning rate with a line for each
    phase, and ``val/mean_loss``.
    """

    def __init__(self) -> None:
        self.folder = ""  # of the logger that knows what follows
        self.drawn: Layout = {}
        self.tags: set[str] = set()  # that this callback logged
        self.known = 0  # tags, when they were looked at last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what the run is, unless the folder that is logged into knows."""
        self.tags, self.known = set(), 0
        recipe, batch = getattr(pl_module, "recipe", None), getattr(pl_module, "batch_geometry", None)
        for board in boards(trainer):
            if self.folder != board.log_dir:
                self.folder, self.drawn = board.log_dir, {}
                if isinstance(recipe, Recipe) and isinstance(batch, Batch):
                    self.describe(board.experiment, trainer, recipe, batch)

    def describe(self, writer: Any, trainer: Any, recipe: Recipe, batch: Batch) -> None:
        """Write recipe and plan, and the numbers that tell runs apart."""
        blocks = getattr(only_loader(trainer).dataset, "blocks", {})
        planned = plan(recipe, batch, blocks, getattr(trainer.datamodule, "seed", 42))
        for name, text in (("plan", render(planned)), ("recipe", yaml.safe_dump(recipe.describe(), sort_keys=False))):
            writer.add_text(name, f"```\n{text}\n```")
        begun, start, _ = hparams(numbers(recipe, planned), dict.fromkeys(OUTCOMES, 0.0))
        for summary in (begun, start):
            writer.file_writer.add_summary(summary)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the rate under the name of its phase where the Trainer logs, and draw what is new."""
        if log_due(trainer):
            phase = phase_of(phases_begun(trainer), trainer.global_step)
            self.tell(trainer, {f"eta/{phase}": rate(trainer)})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean over the sources."""
        losses = [float(value) for name, value in trainer.callback_metrics.items()
                  if (found := LOSS.fullmatch(name)) and found[1] == "val"]
        if losses and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.tell(trainer, {"val/mean_loss": fmean(losses)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what came last, and say that the run has ended."""
        self.tell(trainer, {})
        for board in boards(trainer) if isinstance(getattr(pl_module, "recipe", None), Recipe) else ():
            board.experiment.file_writer.add_summary(hparams({}, {})[2])

    def tell(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Log ``values``, and lay charts out anew where there are more to draw."""
        self.tags.update(values)
        for board in boards(trainer):
            board.log_metrics(values, step=trainer.global_step)
            if self.known != (known := len(trainer.callback_metrics) + len(self.tags)):
                self.known = known
                if (found := layout({*trainer.callback_metrics, *self.tags})) != self.drawn:
                    self.drawn = found
                    board.experiment.add_custom_scalars({category: {
                        chart: ["Multiline", patterns] for chart, patterns in charts.items()}
                        for category, charts in found.items()})

    def state_dict(self) -> dict[str, Any]:
        """What was written, and where."""
        return {"folder": self.folder, "drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do not write it again."""
        self.folder, self.drawn = state_dict["folder"], state_dict["drawn"]


def boards(trainer: Any) -> list[TensorBoardLogger]:
    """The loggers to lay out: the first of TensorBoard, on rank 0."""
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return found[:1] if trainer.is_global_zero else []


def layout(tags: Iterable[str]) -> Layout:
    """Categories of charts, each with the patterns of the tags that it draws; only charts that there are ``tags`` for.

    A chart is the same in every run, for TensorBoard joins the layouts of runs by what is alike.

    >>> layout(["val/web/loss", "share/web"])
    {'loss': {'web': ['train/web/loss$', 'val/web/loss$']}, 'blend': {'share of each source': ['share/']}}
    """
    tags = set(tags)
    sources = sorted({found[2] for tag in tags if (found := LOSS.fullmatch(tag))})
    by_source = {name: [f"{kind}/{re.escape(name)}/loss$" for kind in ("train", "val")] for name in sources}
    wanted = {**CHARTS, "loss": {**by_source, **CHARTS["loss"]}}
    drawn = {category: {chart: patterns for chart, patterns in charts.items()
                        if any(re.match(pattern, tag) for pattern in patterns for tag in tags)}
             for category, charts in wanted.items()}
    return {category: charts for category, charts in drawn.items() if charts}


def numbers(recipe: Recipe, planned: Plan) -> dict[str, Any]:
    """What tells runs apart: the same few names for every recipe, for TensorBoard has one set of columns.

    ``switch`` is the share of the horizon after which the last blend is planned to begin, 1 if it never is.
    """
    weights = (f"{phase.name}: " + ", ".join(f"{name} {weight:g}" for name, weight in phase.blend.weights.items())
               for phase in recipe.phases)
    return {"curve": type(recipe.curve).__name__, "eta_max": recipe.curve.eta_max, "eta_end": recipe.curve.eta(1.0),
            "horizon": recipe.horizon, "tokens_per_step": planned.tokens_per_step, "weights": "; ".join(weights),
            "switch": max((phase.start.fraction for phase in planned.phases[1:] if phase.start), default=1.0)}
