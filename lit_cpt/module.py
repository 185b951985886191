"""The LightningModule: a Hugging Face causal language model, its loss, its optimizer and the clock."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lit_cpt.events import append_event
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.stream import rewind_untrained
from lit_cpt.weights import build_model, load_moments, parameter_groups, read_moments

log = logging.getLogger(__name__)


class CurveLR(torch.optim.lr_scheduler.LRScheduler):
    """A recipe's curve as a torch scheduler; it counts the tokens seen and is the run's only clock.

    Args:
        optimizer: Every group gets the same rate.
        recipe: Curve and horizon.
        tokens_per_step: What one step adds to the clock.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, tokens_per_step: int) -> None:
        self.recipe, self.tokens_per_step = recipe, tokens_per_step
        self.tokens_seen = -tokens_per_step  # torch's constructor makes the step that brings it to 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch also allows tensors
        """The rate of the next step, one per group; torch calls it once for each step."""
        self.tokens_seen += self.tokens_per_step
        return [self.recipe.eta_at(self.tokens_seen)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The clock; curve and geometry come from the recipe that resumes."""
        return {"tokens_seen": self.tokens_seen, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the clock."""
        self.tokens_seen, self.last_epoch = state_dict["tokens_seen"], state_dict["last_epoch"]


class ContinuedPretraining(pl.LightningModule):
    """Continues (or starts) the pretraining of a causal language model by a recipe.

    Batches are int64 tensors of shape (B, T + 1): every position predicts the next. Give the Trainer
    ``max_epochs=1``; horizon, accumulation and learning rate come from the recipe and the data module.

    Args:
        recipe: Horizon, curve, phases, optimizer.
        pretrained: Folder or hub name of the model to continue.
        architecture: Instead of it, a folder, hub name or config values to initialise at random.
        optimizer_state: Checkpoint whose AdamW moments the run starts with (`weights.read_moments`).
    """

    def __init__(self, recipe: Recipe, pretrained: str | None = None,
                 architecture: str | dict[str, Any] | None = None, optimizer_state: str | None = None) -> None:
        super().__init__()
        if (pretrained is None) == (architecture is None):
            raise ValueError(f"model.pretrained={pretrained!r} and model.architecture={architecture!r}: give exactly "
                             "one, a model to continue or a config to initialise at random.")
        self.recipe, self.pretrained, self.architecture = recipe, pretrained, architecture
        self.optimizer_state = optimizer_state
        self.model: nn.Module | None = None
        self.validation_losses: dict[str, MeanMetric] = {}
        self.summed_loss: torch.Tensor | float = 0.0
        self.summed_batches = 0
        self.gradient_norm: torch.Tensor | float = 0.0

    # The model -------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model once; Lightning calls this for every entry point."""
        if self.model is None:
            self.model = build_model(self.pretrained, self.architecture)
            self.model.train()  # from_pretrained returns it in eval mode, and Lightning keeps what it finds

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, T, V) for tokens of shape (B, T)."""
        assert self.model is not None
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def loss(self, blocks: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross-entropy (nats) over every position of ``blocks``, shape (B, T + 1)."""
        logits = self(blocks[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())

    # Training --------------------------------------------------------------------------------------

    @property
    def batch_geometry(self) -> Batch:
        """The data module's batch: it ties steps to tokens."""
        batch = getattr(getattr(self.trainer, "datamodule", None), "batch", None)
        if not isinstance(batch, Batch):
            raise ValueError("ContinuedPretraining needs a data module with a `batch` (lit_cpt.recipe.Batch), such as "
                             "BlendDataModule: pass it as trainer.fit(module, datamodule=...).")
        return batch

    @property
    def tokens_seen(self) -> int:
        """The clock: tokens trained so far."""
        scheduler = self.lr_schedulers()
        return scheduler.tokens_seen if isinstance(scheduler, CurveLR) else 0

    def configure_optimizers(self) -> Any:
        """AdamW (fused where torch has it) under the recipe's curve."""
        assert self.model is not None
        settings = self.recipe.optimizer
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay), lr=self.recipe.eta_at(0), betas=settings.betas,
            eps=settings.eps, fused=self.device.type in ("cpu", "cuda"),
        )
        scheduler = CurveLR(optimizer, self.recipe, self.batch_geometry.tokens_per_step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Say what is trained; warm the optimizer up from `optimizer_state` (a resumed run brings its own)."""
        kind = type(self.model).__name__
        log.info("%s with %s parameters", kind, f"{sum(parameter.numel() for parameter in self.parameters()):,}")
        if self.optimizer_state is not None and not self.trainer.ckpt_path:
            assert self.model is not None
            optimizer = self.optimizers(use_pl_optimizer=False)
            load_moments(self.model, optimizer, read_moments(self.optimizer_state, self.model))  # type: ignore[arg-type]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Loss of one micro-batch."""
        loss = self.loss(batch)
        self.summed_loss += loss.detach()
        self.summed_batches += 1
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by the recipe's norm and keep the norm for the log."""
        clip = self.recipe.optimizer.clip or float("inf")
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), clip)

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the mean since the last log; nothing leaves the device on other steps."""
        trainer: Any = self.trainer
        if trainer.global_step % trainer.log_every_n_steps or trainer.fit_loop._should_accumulate():
            return
        loss = trainer.strategy.reduce(self.summed_loss / self.summed_batches, reduce_op="mean")  # over the ranks
        self.publish({"train/loss": loss, "train/gradient_norm": self.gradient_norm,
                      "train/eta": trainer.optimizers[0].param_groups[0]["lr"], "train/tokens_seen": self.tokens_seen})
        self.summed_loss, self.summed_batches = 0.0, 0

    def publish(self, metrics: dict[str, Any]) -> None:
        """Log ``metrics`` at the number of steps made; Lightning's own count is one behind."""
        values = {name: float(value) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)
        self.log_dict(values, logger=False)

    def record(self, kind: str, **fields: Any) -> None:
        """Write an event into the run's diary, with step and tokens; once, whatever the number of ranks."""
        if self.trainer.is_global_zero:
            append_event(self.trainer.default_root_dir, kind, step=self.trainer.global_step,
                         tokens_seen=self.tokens_seen, **fields)

    def on_train_start(self) -> None:
        """Record where training begins or goes on."""
        self.record("resume" if self.trainer.ckpt_path else "start", world_size=self.trainer.world_size)

    def on_train_end(self) -> None:
        """Record a whole end."""
        if self.tokens_seen >= self.recipe.horizon:
            self.record("finish")

    # Validation ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """One running mean per source."""
        names = self.trainer.datamodule.validation_names  # type: ignore[attr-defined]
        self.validation_losses = {name: MeanMetric().to(self.device) for name in names}

    def validation_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss of one batch of one source."""
        name = list(self.validation_losses)[dataloader_idx]
        self.validation_losses[name].update(self.loss(batch), weight=len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log ``val/<source>/loss``, over all ranks."""
        self.publish({f"val/{name}/loss": metric.compute() for name, metric in self.validation_losses.items()})

    # Checkpoints -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resume must agree with, and give back batches that were read but not trained."""
        batch = self.batch_geometry
        checkpoint["lit_cpt"] = {"recipe": self.recipe.describe(), "tokens_seen": self.tokens_seen,
                                 "sequence_length": batch.sequence_length, "global_batch": batch.global_batch}
        rewind_untrained(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another batch geometry; count batches of this world size.

        Raises:
            ValueError: The checkpoint was made with another global batch or sequence length.
        """
        saved = checkpoint.get("lit_cpt")
        if saved is None or self._trainer is None or not self.trainer.training:
            return
        batch = self.batch_geometry
        for name in ("sequence_length", "global_batch"):
            if saved[name] != getattr(batch, name):
                raise ValueError(f"the checkpoint was trained with {name}={saved[name]}, this run has "
                                 f"{getattr(batch, name)}: steps would no longer mean the same tokens. Resume with "
                                 f"--data.{name} {saved[name]}.")
        set_progress(checkpoint, batch.accumulation(self.trainer.world_size))


def set_progress(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Let Lightning go on after the last optimizer step that ``checkpoint`` holds, at this run's accumulation.

    Its counters are of micro-batches, whose number depends on the world size; and where a batch was cut short they
    count it, though its gradient is lost. They are set as Lightning has them at the end of a step's last batch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    trained = checkpoint["global_step"] * accumulation
    for counters in (loop["epoch_loop.batch_progress"]["total"], loop["epoch_loop.batch_progress"]["current"]):
        counters.update(ready=trained, started=trained, processed=trained, completed=max(0, trained - 1))
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = max(0, checkpoint["global_step"] - 1)
