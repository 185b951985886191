"""The LightningModule: a Hugging Face language model, its loss, its optimizer and the clock."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_
from torchmetrics import MeanMetric

from lit_cpt.blends import mixed
from lit_cpt.counters import set_progress, validation_due, validation_pending
from lit_cpt.curve_lr import CurveLR
from lit_cpt.encoder_decoder import EncoderDecoderLoss, suited_objective
from lit_cpt.events import append_event, finished_at
from lit_cpt.gradients import gradient_norm
from lit_cpt.identity import Identity, accepted_changes, identity_of
from lit_cpt.losses import NextTokenLoss
from lit_cpt.objectives import Draw, Objective
from lit_cpt.parallel import ShardedStrategy, data_rank, reduce_gradients
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.routing import router_metrics
from lit_cpt.sharded_loading import build_sharded
from lit_cpt.source_losses import source_metrics, source_sums
from lit_cpt.stream import BlendedDataLoader, rewind_untrained
from lit_cpt.tally import Tally
from lit_cpt.telling import log_due, publish, show
from lit_cpt.weights import (
    build_model,
    check_same_model,
    check_vocabulary,
    in_short,
    load_moments,
    origin_of,
    parameter_groups,
    read_moments,
)

log = logging.getLogger(__name__)


class ContinuedPretraining(pl.LightningModule):
    """Continues (or starts) the pretraining of a language model by a recipe.

    Batches are int64 tensors of shape (B, T + 1): in a causal model every position predicts the next, for an
    encoder–decoder model `objective` says what is read and what is predicted. Give the Trainer
    ``max_epochs=1``; horizon, accumulation and learning rate come from the recipe and the data module.

    Args:
        recipe: Horizon, curve, phases, optimizer.
        pretrained: Folder or hub name of the model to continue.
        architecture: Instead of it, a folder, hub name or config values to initialise at random.
        optimizer_state: Checkpoint whose AdamW moments the run starts with (`weights.read_moments`).
        z_loss: Weight of the squared logarithm of the softmax's normaliser (`losses.linear_cross_entropy`); the
            paper's runs have none.
        mask_documents: Whether tokens attend to their own document only, positions counting from its beginning. Off
            as in the paper's runs.
        router_loss: Weight of the loss that evens out the load of a mixture of experts (`routing.balance_loss`).
        attention: How attention is computed, by transformers' names: ``sdpa``, ``eager``, ``flex_attention``,
            ``flash_attention_2`` ...; transformers' choice if None.
        objective: What an encoder–decoder model is asked; left out, `PrefixLM`. A causal model has none.
    """

    def __init__(self, recipe: Recipe, pretrained: str | None = None,
                 architecture: str | dict[str, Any] | None = None, optimizer_state: str | None = None,
                 z_loss: float = 0.0, mask_documents: bool = False, router_loss: float = 0.0,
                 attention: str | None = None, objective: Objective | None = None) -> None:
        super().__init__()
        if (pretrained is None) == (architecture is None):
            raise ValueError(f"model.pretrained={pretrained!r} and model.architecture={in_short(architecture)}: give "
                             "exactly one, a model to continue or a config to initialise at random.")
        self.recipe, self.pretrained, self.architecture = recipe, pretrained, architecture
        self.optimizer_state, self.z_loss, self.mask_documents = optimizer_state, z_loss, mask_documents
        self.router_loss, self.attention, self.objective = router_loss, attention, objective
        self.loss_of: NextTokenLoss | None = None
        self.model: nn.Module | None = None
        self.validation_losses: dict[str, MeanMetric] = {}
        self.tally = Tally()  # since the last log
        self.gradient_norm: torch.Tensor | None = None  # of the step at hand; None until it is measured
        self.published: dict[str, float] = {}
        self.validated = self.batch_checked = False
        self.held_max_steps: int | None = None
        self.identity: Identity | None = None
        self.notes: list[tuple[str, dict[str, Any]]] = []  # events to record when training begins

    def setup(self, stage: str) -> None:
        """Forget what an earlier fit left.

        Raises:
            ValueError: ``attention`` cannot be trained on this device, or the Trainer is to clip.
        """
        if stage == "fit" and (clip := self.trainer.gradient_clip_val) is not None:
            raise ValueError(f"trainer.gradient_clip_val={clip}: gradients are clipped at the recipe's norm, "
                             f"{self.recipe.optimizer.clip}. Leave it out, or set recipe.optimizer.clip.")
        if stage == "fit" and self.attention == "flex_attention" and self.trainer.strategy.root_device.type == "cpu":
            raise ValueError("model.attention=flex_attention: on a CPU torch has no backward pass for it. Leave "
                             "model.attention out, or train on a GPU.")
        self.identity, self.tally, self.batch_checked = None, Tally(), False

    # The model -------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model once; Lightning calls this for every entry point."""
        if self.model is None:
            if isinstance(strategy := self._trainer and self._trainer.strategy, ShardedStrategy):
                self.model = build_sharded(strategy, self.pretrained, self.architecture, not self.trainer.ckpt_path,
                                           self.attention)
            else:
                self.model = build_model(self.pretrained, self.architecture, attention=self.attention)
            self.model.train()  # from_pretrained returns it in eval mode, and Lightning keeps what it finds
            self.objective = suited_objective(self.model, self.objective, mask_documents=self.mask_documents,
                                              router_loss=self.router_loss)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of a causal model, shape (B, T, V), for tokens of shape (B, T)."""
        assert self.model is not None
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def loss(self, blocks: torch.Tensor, draw: Draw | None = None) -> torch.Tensor:
        """Mean cross-entropy (nats) over all that is predicted in ``blocks``, shape (B, T + 1).

        Args:
            blocks: A causal model predicts every position but the first, an encoder–decoder by its objective.
            draw: For the objective; None splits as a validation does.
        """
        loss_of = self.criterion()
        return loss_of(blocks, draw) if isinstance(loss_of, EncoderDecoderLoss) else loss_of(blocks)

    def criterion(self) -> NextTokenLoss:
        """What tells the loss of this model, made once; ``ValueError`` if the model has not what a setting asks for."""
        assert self.model is not None
        if self.loss_of is None or self.loss_of.model is not self.model:
            eos = self.eos if self.mask_documents else None
            self.loss_of = NextTokenLoss(
                self.model, self.z_loss, eos, self.router_loss, joined="flash" in (self.attention or ""),
            ) if self.objective is None else EncoderDecoderLoss(self.model, self.objective, self.eos, self.z_loss)
        return self.loss_of

    @property
    def eos(self) -> int:
        """The token that ends each document of the data."""
        eos = getattr(getattr(self.trainer, "datamodule", None), "eos_token_id", None)
        if eos is None:
            asks = "mask_documents=True" if self.objective is None else f"objective={self.objective}"
            raise ValueError(f"{asks} needs a data module with an `eos_token_id`, such as BlendDataModule: pass it as "
                             "trainer.fit(module, datamodule=...).")
        return int(eos)

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
        assert self.model is not None
        check_vocabulary(self.model, getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None))
        self.criterion()  # what it refuses is refused before anything is written
        kind = type(self.model).__name__.removeprefix("FSDP")  # which fully_shard puts before it
        log.info("%s with %s parameters", kind, f"{sum(parameter.numel() for parameter in self.parameters()):,}")
        show(self.trainer, self.published)  # what callbacks read goes on where the checkpoint was made
        if self.optimizer_state is not None and not self.trainer.ckpt_path:
            optimizer = self.optimizers(use_pl_optimizer=False)
            load_moments(self.model, optimizer, read_moments(self.optimizer_state, self.model))  # type: ignore[arg-type]
            if self.trainer.is_global_zero:
                log.info("AdamW begins with the moments of %s", self.optimizer_state)

    def on_train_start(self) -> None:
        """Record where training begins or goes on."""
        self.record("resume" if self.trainer.ckpt_path else "start", world_size=self.trainer.world_size)
        for kind, fields in self.notes:
            self.record(kind, **fields)
        self.notes = []
        if self.held_max_steps is not None and not validation_due(self.trainer):
            self.give_back_max_steps()

    def on_train_batch_start(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Let dropout draw by the batch's number, so that a resumed run draws alike."""
        self.validated = False  # the validation before this batch, if there was one, is behind us
        if not self.batch_checked and isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.check_shared(batch)
            self.batch_checked = True
        seed = getattr(self.trainer.datamodule, "seed", 0)  # type: ignore[attr-defined]
        torch.manual_seed(mixed(seed, batch_idx, data_rank(self.trainer)[0]))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Loss of one micro-batch."""
        if not getattr(self.trainer.strategy, "reduce_every_micro_batch", True):
            reduce_gradients(self.model, not self.trainer.fit_loop._should_accumulate())
        loss = self.loss(batch) if self.objective is None else self.loss(batch, self.draw_of(batch, batch_idx))
        self.tally.add({"loss": loss.detach(), "micro_batches": 1.0, **self.parts()})
        return loss

    def parts(self) -> dict[str, torch.Tensor]:
        """What is known of the loss that was just computed: by source, and of the routers."""
        if self.loss_of is None or self.loss_of.of_samples is None:
            return {}
        losses, routing, loader = self.loss_of.of_samples, self.loss_of.routing, self.trainer.train_dataloader
        noted = routing.noted if routing is not None else {}
        if not isinstance(loader, BlendedDataLoader) or len(loader.sources) != len(losses):
            return noted
        return {**source_sums(losses, loader.sources, loader.dataset.names), **noted}

    def draw_of(self, batch: torch.Tensor, batch_idx: int) -> Draw:
        """What decides how an objective splits a batch: of one run's blocks, whatever ranks and micro-batches."""
        trainer: Any = self.trainer
        rank, ranks = data_rank(trainer)
        first = (batch_idx * ranks + rank) * len(batch)
        return Draw(getattr(trainer.datamodule, "seed", 0), trainer.global_step, first)

    def on_after_backward(self) -> None:
        """The gradient is another one."""
        self.gradient_norm = None

    def measured_norm(self) -> torch.Tensor:
        """Norm of the step's gradient before it is clipped, measured for whoever asks first."""
        if self.gradient_norm is None:
            self.gradient_norm = gradient_norm(self.parameters())
        return self.gradient_norm

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by the recipe's norm."""
        norm, clip = self.measured_norm(), self.recipe.optimizer.clip
        if clip:
            clip_grads_with_norm_(self.parameters(), clip, norm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step, then log: sooner than any callback hears of the step, so that what it saves is as of after the log."""
        super().lr_scheduler_step(scheduler, metric)
        self.close_step()

    def on_train_batch_end(self, *_: Any) -> None:
        """Log here where a subclass has no scheduler."""
        self.close_step()

    def close_step(self) -> None:
        """Once a step is whole, log the mean since the last log; nothing leaves the device on other steps."""
        trainer: Any = self.trainer
        if trainer.fit_loop._should_accumulate() or not self.tally.step:
            return
        self.tally.close_step()
        if not log_due(trainer):
            return
        totals = self.tally.totals(self.over_ranks, self.device)
        self.publish({"train/loss": totals["loss"] / totals["micro_batches"], **source_metrics(totals),
                      "train/gradient_norm": self.measured_norm(), "train/tokens_seen": self.tokens_seen,
                      "train/eta": trainer.optimizers[0].param_groups[0]["lr"],
                      **router_metrics(totals, totals["micro_batches"])})
        self.tally.clear()

    def over_ranks(self, vector: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks; after an exception, when others may be gone, this rank's own."""
        trainer: Any = self.trainer
        total: torch.Tensor = vector if trainer.interrupted else trainer.strategy.reduce(vector, reduce_op="sum")
        return total

    def publish(self, metrics: dict[str, Any]) -> None:
        """Log ``metrics`` at the number of steps made; Lightning's own count is one behind."""
        values = {name: float(value) for name, value in metrics.items()}
        self.published.update(values)
        publish(self.trainer, values)

    def record(self, kind: str, **fields: Any) -> None:
        """Write an event into the run's diary, with step and tokens; once, whatever the number of ranks."""
        if self.trainer.is_global_zero:
            append_event(self.trainer.default_root_dir, kind, step=self.trainer.global_step,
                         tokens_seen=self.tokens_seen, **fields)

    def on_train_end(self) -> None:
        """Record a whole end."""
        if self.tokens_seen >= self.recipe.horizon:
            self.record("finish")

    # Validation ------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """The validation that was waited for begins: the run may end after it."""
        self.give_back_max_steps()

    def give_back_max_steps(self) -> None:
        """Undo what `on_load_checkpoint` did to let a last validation be made."""
        if self.held_max_steps is not None:
            self.trainer.fit_loop.epoch_loop.max_steps = self.held_max_steps
            self.held_max_steps = None

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
        losses = {f"val/{name}/loss": float(metric.compute()) for name, metric in self.validation_losses.items()}
        self.publish(losses)
        self.log_dict(losses, logger=False)  # also into what ``trainer.validate`` returns
        self.validated = True

    # Checkpoints -----------------------------------------------------------------------------------

    @property
    def origin(self) -> dict[str, Any]:
        """What tells how to build the model anew, and whose tokenizer it has."""
        return origin_of(self.model, self.pretrained or self.architecture)

    @property
    def own_identity(self) -> Identity:
        """What a resume must agree with, read once."""
        if self.identity is None:
            trainer: Any = self.trainer
            self.identity = {**identity_of(self.recipe, trainer.datamodule),
                             "model.z_loss": self.z_loss, "model.mask_documents": self.mask_documents,
                             "model.router_loss": self.router_loss, "model.objective": str(self.objective)}
        return self.identity

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resume must agree with and go on with, and give back batches that were read but not trained."""
        batch, trainer = self.batch_geometry, self.trainer
        checkpoint["lit_cpt"] = {
            "recipe": self.recipe.describe(), "identity": self.own_identity, "tokens_seen": self.tokens_seen,
            "sequence_length": batch.sequence_length, "global_batch": batch.global_batch, **self.origin}
        checkpoint["lit_cpt_state"] = {
            "sums": self.tally.totals(self.over_ranks, self.device), "published": dict(self.published),
            "validation_pending": validation_pending(trainer, self.validated)}
        rewind_untrained(trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on as another run; count batches of this world size.

        Raises:
            ValueError: The checkpoint was made with another global batch or sequence length, or in a run that
                differs in a field that ``data.allow_change`` does not name.
        """
        check_same_model(self, checkpoint.get("state_dict", {}))
        saved = checkpoint.get("lit_cpt")
        if saved is None or self._trainer is None or not self.trainer.training:
            return
        batch = self.batch_geometry
        for name in ("sequence_length", "global_batch"):
            if saved[name] != getattr(batch, name):
                raise ValueError(f"the checkpoint was trained with {name}={saved[name]}, this run has "
                                 f"{getattr(batch, name)}: steps would no longer mean the same tokens. Resume with "
                                 f"--data.{name} {saved[name]}.")
        if "identity" in saved:
            self.accept_changes(saved)
        state = checkpoint.get("lit_cpt_state", {})  # older checkpoints have none, or no sums
        self.tally.restore(state.get("sums", {}), self.global_rank, self.trainer.strategy.root_device)
        self.published = dict(state.get("published", {}))
        accumulation = batch.accumulation(data_rank(self.trainer)[1])
        self.go_on(checkpoint, accumulation, state.get("validation_pending", False))

    def accept_changes(self, saved: dict[str, Any]) -> None:
        """Refuse what may not differ from the saved run; note what may."""
        allowed = getattr(self.trainer.datamodule, "allow_change", ())  # type: ignore[attr-defined]
        for change in accepted_changes(saved["identity"], self.own_identity, saved["tokens_seen"], allowed):
            log.info("changed since the checkpoint: %s", change)
            self.notes.append(("change", change._asdict()))

    def go_on(self, checkpoint: dict[str, Any], accumulation: int, pending: bool) -> None:
        """Let Lightning go on where the checkpoint was made, and first make a validation that is ``pending``.

        Lightning ends a run that has made all its steps at once: there seems to be one more until it has validated.
        """
        step, loop = checkpoint["global_step"], self.trainer.fit_loop.epoch_loop
        finished = finished_at(self.trainer.default_root_dir, step)  # with its last validation
        pending = pending and not self.trainer.strategy.broadcast(finished)
        set_progress(checkpoint, accumulation, pending)
        if pending and 0 <= loop.max_steps <= step:
            self.held_max_steps, loop.max_steps = loop.max_steps, step + 1
