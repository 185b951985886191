"""A project on torch's own DataLoader: a map-style dataset and a weighted sampler with `set_weights`.

Usage: python weighted_sampler.py --run RUN [--workers N] [--ckpt_path FILE]
"""

import argparse
import json
import random
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_cpt.callbacks import PhaseSwitchCallback


class Points(Dataset):
    """Points of two kinds: even numbers and odd ones."""

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        return torch.tensor([float(index), float(index % 2)])


class KindSampler(Sampler):
    """The next unseen even or odd number, drawn by weight; it can be switched and put back."""

    def __init__(self, weights, total):
        self.weights, self.total = list(weights), total
        self.random, self.upcoming = random.Random(3), [0, 1]

    def set_weights(self, weights):
        self.weights = list(weights)

    def state_dict(self):
        return {"random": self.random.getstate(), "upcoming": list(self.upcoming)}

    def load_state_dict(self, state):
        self.random.setstate(state["random"])
        self.upcoming = list(state["upcoming"])

    def __len__(self):
        return self.total

    def __iter__(self):
        for _ in range(self.total):
            [kind] = self.random.choices([0, 1], self.weights)
            self.upcoming[kind] += 2
            yield self.upcoming[kind] - 2


class PointsData(pl.LightningDataModule):
    def __init__(self, workers):
        super().__init__()
        self.workers = workers

    def setup(self, stage):
        self.sampler = KindSampler([0.8, 0.2], 20 * 4)

    def train_dataloader(self):
        return DataLoader(Points(), batch_size=4, sampler=self.sampler, num_workers=self.workers)


class Regression(pl.LightningModule):
    """A line through the points; keeps a diary of those it trained on."""

    def __init__(self, run):
        super().__init__()
        self.diary = Path(run) / "seen.jsonl"
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        with open(self.diary, "a") as file:
            file.write(json.dumps(batch[:, 0].int().tolist()) + "\n")
        return (self.line(batch[:, :1] / 1e4)[:, 0] - batch[:, 1]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ckpt_path")
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)
    saving = ModelCheckpoint(Path(args.run) / "ckpt", filename="{step}", every_n_train_steps=8, save_top_k=-1)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, default_root_dir=args.run,
                         enable_progress_bar=False,
                         callbacks=[PhaseSwitchCallback(weights=[0.1, 0.9], eta_over_eta_max=0.2), saving])
    module = Regression(args.run)
    trainer.fit(module, datamodule=PointsData(args.workers), ckpt_path=args.ckpt_path, weights_only=False)
    torch.save(module.state_dict(), Path(args.run) / "final.pt")


if __name__ == "__main__":
    main()
