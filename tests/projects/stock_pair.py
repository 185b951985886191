"""A project on litdata's own loader: two folders of tokens, a falling rate, nothing of lit_cpt but the switch.

Usage: python stock_pair.py DATA_A DATA_B --run RUN [--workers N] [--ckpt_path FILE]
"""

import argparse
import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.callbacks import PhaseSwitchCallback

LENGTH, VOCABULARY = 8, 64


class Bigrams(pl.LightningModule):
    """Predicts a token from the one before; keeps a diary of the tokens it trained on."""

    def __init__(self, run):
        super().__init__()
        self.diary = Path(run) / "seen.jsonl"
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def training_step(self, batch, batch_idx):
        with open(self.diary, "a") as file:
            file.write(json.dumps(batch[:, :4].tolist()) + "\n")
        tokens = batch.long()
        return torch.nn.functional.cross_entropy(self.table(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 6, gamma=0.4)  # a fifth is passed when 12 steps are made
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs=2)
    parser.add_argument("--run", required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ckpt_path")
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)

    sources = [StreamingDataset(folder, item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
               for folder in args.data]
    dataset = CombinedStreamingDataset(sources, seed=7, weights=[0.6, 0.4], iterate_over_all=False)
    loader = StreamingDataLoader(dataset, batch_size=4, num_workers=args.workers)

    saving = ModelCheckpoint(Path(args.run) / "ckpt", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = pl.Trainer(max_steps=20, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
                         default_root_dir=args.run, enable_progress_bar=False,
                         callbacks=[PhaseSwitchCallback(weights=[0.1, 0.9], eta_over_eta_max=0.2), saving])
    module = Bigrams(args.run)
    trainer.fit(module, loader, ckpt_path=args.ckpt_path, weights_only=False)
    torch.save(module.state_dict(), Path(args.run) / "final.pt")


if __name__ == "__main__":
    main()
