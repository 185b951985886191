"""Somebody's project on several ranks, replicated or sharded, that asks its model questions while it trains.

Start it with torchrun: ``evaluated.py WORLD CASE MODE``. Every rank writes its losses to ``WORLD/CASE-MODE-RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning.pytorch as pl
import torch
from harness_world import SUBJECTS, build_model
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lit_cpt.callbacks import EvalCallback
from lit_cpt.harness import Effort, Suite
from lit_cpt.occasions import Occasions
from lit_cpt.parallel import leave

WORLD, CASE, MODE = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
RANK, SIZE, STEPS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 200
SIZES = (1, SIZE) if MODE == "tensor" else (SIZE, 1)  # of the mesh: data parallel, tensor parallel


class Project(pl.LightningModule):
    """A Hugging Face model, dropout and AdamW; nothing of lit_cpt."""

    def __init__(self) -> None:
        super().__init__()
        self.model: torch.nn.Module | None = None
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if self.model is None:
            self.model = build_model(attention_dropout=0.1).train()
            if MODE != "ddp":
                mesh = self.device_mesh["data_parallel"]
                for layer in self.model.model.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(self.model, mesh=mesh)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if CASE.endswith("broken") and index == STEPS // 2:
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight.fill_(float("nan"))
        loss = self.model(input_ids=batch, labels=batch, use_cache=False).loss
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def asking() -> EvalCallback:
    """Four times in the run; one rank may lack the data, or its time may be over."""
    data = WORLD / ("nothing" if CASE == "missing" and RANK == 1 else "mirror")
    suite = Suite(["hellaswag", f"mmlu_{SUBJECTS[0]}", "mgsm"], data=str(data), limit=3, max_gen_toks={"mgsm": 6})
    effort = Effort(seconds=1e-6 if CASE == "late" and RANK == 1 else 600.0, token_budget=1024,
                    gather_weights=MODE == "gathered")
    return EvalCallback(suite, Occasions(every_steps=STEPS // 4), effort, tokenizer=str(WORLD / "tokenizer"))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7 + RANK)
    blocks = torch.randint(3, 512, (2 * STEPS, 16))
    strategy = "ddp" if MODE == "ddp" else ModelParallelStrategy(*SIZES)
    root = WORLD / f"{CASE}-{MODE}"
    trainer = pl.Trainer(accelerator="cpu", devices=SIZE, strategy=strategy, max_steps=STEPS, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         use_distributed_sampler=False, default_root_dir=str(root), num_sanity_val_steps=0,
                         callbacks=[] if CASE.startswith("plain") else [asking()])
    module = Project()
    trainer.fit(module, DataLoader(blocks, batch_size=2))
    (WORLD / f"{CASE}-{MODE}-{RANK}.json").write_text(json.dumps(module.losses))


if __name__ == "__main__":
    main()
    leave()
    os._exit(0)  # all is written; an interpreter that ends under gloo's threads may abort (see `leave`)
