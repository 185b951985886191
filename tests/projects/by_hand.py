"""A project that optimizes by hand: two parameter groups, three batches to a step, OneCycleLR, litdata's own loader.

Usage: python by_hand.py DATA_A DATA_B --run RUN [--ckpt_path FILE]
"""

import argparse
import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.callbacks import PhaseSwitchCallback

LENGTH, VOCABULARY, STEPS, ACCUMULATE = 8, 64, 12, 3


class TwoGroups(pl.LightningModule):
    """Bigrams whose bias learns more slowly than its table."""

    def __init__(self, run):
        super().__init__()
        self.automatic_optimization = False
        self.diary = Path(run) / "seen.jsonl"
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)
        self.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))

    def training_step(self, batch, batch_idx):
        with open(self.diary, "a") as file:
            file.write(json.dumps(batch[:, :4].tolist()) + "\n")
        tokens = batch.long()
        logits = self.table(tokens[:, :-1]) + self.bias
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.manual_backward(loss / ACCUMULATE)
        if (batch_idx + 1) % ACCUMULATE == 0:
            self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)
            self.optimizers().step()
            self.optimizers().zero_grad()
            self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([{"params": self.table.parameters()}, {"params": [self.bias]}], lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-3], total_steps=STEPS + 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs=2)
    parser.add_argument("--run", required=True)
    parser.add_argument("--ckpt_path")
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)
    sources = [StreamingDataset(folder, item_loader=TokensLoader(block_size=LENGTH + 1)) for folder in args.data]
    dataset = CombinedStreamingDataset(sources, weights=[1.0, 0.0], iterate_over_all=False)
    saving = ModelCheckpoint(Path(args.run) / "ckpt", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = pl.Trainer(max_steps=STEPS, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
                         default_root_dir=args.run, enable_progress_bar=False,
                         callbacks=[PhaseSwitchCallback(weights=[0.0, 1.0], eta_over_eta_max=0.2), saving])
    module = TwoGroups(args.run)
    trainer.fit(module, StreamingDataLoader(dataset, batch_size=4), ckpt_path=args.ckpt_path, weights_only=False)
    torch.save(module.state_dict(), Path(args.run) / "final.pt")


if __name__ == "__main__":
    main()
