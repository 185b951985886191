"""A project that trains lit_cpt's module sharded over the ranks, in the ways that its arguments tell.

Start it with torchrun: ``sharded.py SETTINGS.json``. Rank 0 writes losses, gradient norms and weights, gathered, to
``RUN/result.pt``; every rank its peak of private memory to ``RUN/rank-N.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning.pytorch as pl
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

from lit_cpt import losses
from lit_cpt.blends import Blend
from lit_cpt.callbacks import RunCheckpointCallback
from lit_cpt.callbacks.eval import sharing
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.parallel import ShardedStrategy, leave
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

GIVEN = json.loads(Path(sys.argv[1]).read_text())
LENGTH, GLOBAL, STEPS = 8, 4, 10


class SlowDisk(FileSystemWriter):
    """Writes late enough for training to have gone on."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        time.sleep(GIVEN["disk_seconds"])
        return super().write_data(plan, planner)


class Strategy(ShardedStrategy):
    """With a slow disk, if asked for."""

    def storage_writer(self, folder: Path) -> Any:
        return SlowDisk(folder) if GIVEN.get("disk_seconds") else super().storage_writer(folder)


class Diary(pl.Callback):
    """Loss and gradient norm of every step; a run may be cut short after one."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.moments: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict, *_: object) -> None:
        loss = torch.as_tensor(outputs["loss"]).detach() * trainer.accumulate_grad_batches
        self.losses.append(float(trainer.strategy.reduce(loss)))
        if not trainer.fit_loop._should_accumulate():
            self.norms.append(float(module.gradient_norm))
        if trainer.global_step == GIVEN.get("stop"):
            trainer.should_stop = True
        if trainer.global_step == GIVEN.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self.weights = get_model_state_dict(module.model, options=options)
        state = get_optimizer_state_dict(module.model, trainer.optimizers[0], options=options).get("state", {})
        self.moments = {f"{name}.{key}": value for name, one in state.items() for key, value in one.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    losses.SMALL = GIVEN.get("small_logits", losses.SMALL)
    run = Path(GIVEN["run"])
    phases = [Phase("first", Blend({"a": 0.6, "b": 0.4})), Phase("late", Blend({"c": 1.0}), Trigger(fraction=0.7))]
    recipe = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), phases)
    data = BlendDataModule(recipe, GIVEN["sources"], sequence_length=LENGTH, global_batch=GLOBAL, workers=0,
                           micro_batch=GIVEN.get("micro_batch", 1), validation_blocks=0)
    module, diary = ContinuedPretraining(recipe, **GIVEN["model"]), Diary()
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    trainer = pl.Trainer(accelerator="cpu", devices=ranks, strategy=Strategy(**GIVEN.get("strategy", {})),
                         default_root_dir=str(run), max_epochs=1, logger=False, log_every_n_steps=4,
                         enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                         callbacks=[diary, RunCheckpointCallback(**GIVEN.get("checkpoints", {}))])
    trainer.fit(module, datamodule=data, ckpt_path=GIVEN.get("resume"))
    run.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        group = sharing(trainer.strategy)
        torch.save({"losses": diary.losses, "norms": diary.norms, "weights": diary.weights, "moments": diary.moments,
                    "published": module.published, "asking": torch.distributed.get_world_size(group),
                    "lr": trainer.optimizers[0].param_groups[0]["lr"]}, run / "result.pt")


if __name__ == "__main__":
    main()
    leave()
    os._exit(0)  # all is written; an interpreter that ends under gloo's threads may abort (see `leave`)
