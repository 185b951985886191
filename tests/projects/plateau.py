"""A project with epochs, validations and ReduceLROnPlateau, over a dataset that draws for itself.

Usage: python plateau.py --run RUN [--workers N]
"""

import argparse
import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from lit_cpt.callbacks import PhaseSwitchCallback


class Coins(IterableDataset):
    """Heads or tails, by weights with names."""

    def __init__(self, weights):
        self.weights = dict(weights)

    def set_weights(self, weights):
        self.weights = dict(weights)

    def __iter__(self):
        generator = torch.Generator().manual_seed(torch.initial_seed())
        while True:
            yield (torch.rand(1, generator=generator) < self.weights["heads"]).float()


class CoinsData(pl.LightningDataModule):
    def __init__(self, workers):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(Coins({"heads": 0.0, "tails": 1.0}), batch_size=4, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(torch.ones(8, 1), batch_size=4)


class Guess(pl.LightningModule):
    """Guesses the coin; its validation never improves, so the rate falls after the third epoch."""

    def __init__(self, run):
        super().__init__()
        self.diary = Path(run) / "seen.jsonl"
        self.guess = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        with open(self.diary, "a") as file:
            file.write(json.dumps(batch[:, 0].int().tolist()) + "\n")
        return (self.guess - batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)
    switch = PhaseSwitchCallback(weights={"heads": 1.0, "tails": 0.0}, eta_over_eta_max=0.2)
    trainer = pl.Trainer(max_epochs=5, limit_train_batches=6, accelerator="cpu", devices=1, logger=False,
                         default_root_dir=args.run, enable_progress_bar=False, callbacks=[switch])
    trainer.fit(Guess(args.run), datamodule=CoinsData(args.workers))


if __name__ == "__main__":
    main()
