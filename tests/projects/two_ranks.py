"""A project on two ranks, whose metric only the last rank logs.

Usage: python two_ranks.py DATA_A DATA_B --run RUN [--exact] [--ckpt_path FILE]
"""

import argparse
import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.callbacks import PhaseSwitchCallback
from lit_cpt.stream import blended

LENGTH, VOCABULARY, STEPS = 8, 64, 16


class Bigrams(pl.LightningModule):
    """Predicts a token from the one before; each rank keeps a diary of the tokens it trained on."""

    def __init__(self, run):
        super().__init__()
        self.run = Path(run)
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def training_step(self, batch, batch_idx):
        with open(self.run / f"seen{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(batch[:, :4].tolist()) + "\n")
        if self.global_rank == 1 and self.trainer.global_step == 7:
            self.log("told", 0.5)  # of the eighth step
        tokens = batch.long()
        return torch.nn.functional.cross_entropy(self.table(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Tokens(pl.LightningDataModule):
    """Two folders of tokens; the datasets are built once the ranks are known, as litdata needs it."""

    def __init__(self, folders, exact):
        super().__init__()
        self.folders, self.exact = folders, exact

    def train_dataloader(self):
        sources = [StreamingDataset(folder, item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
                   for folder in self.folders]
        dataset = CombinedStreamingDataset(sources, seed=7, weights=[1.0, 0.0], iterate_over_all=False)
        loader = StreamingDataLoader(dataset, batch_size=2, num_workers=1)
        return blended(loader, ["a", "b"], total_batches=STEPS) if self.exact else loader


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs=2)
    parser.add_argument("--run", required=True)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--ckpt_path")
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)
    weights = {"a": 0.25, "b": 0.75} if args.exact else [0.25, 0.75]
    saving = ModelCheckpoint(Path(args.run) / "ckpt", filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer = pl.Trainer(max_steps=STEPS, max_epochs=-1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
                         log_every_n_steps=4, default_root_dir=args.run, enable_progress_bar=False,
                         callbacks=[PhaseSwitchCallback(weights=weights, metric="told < 1"), saving])
    trainer.fit(Bigrams(args.run), datamodule=Tokens(args.data, args.exact), ckpt_path=args.ckpt_path,
                weights_only=False)


if __name__ == "__main__":
    main()
