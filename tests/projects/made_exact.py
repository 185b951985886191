"""The stock project made exact by one call, with two workers and three batches to a step.

Usage: python made_exact.py DATA_A DATA_B --run RUN [--resume]
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

LENGTH, VOCABULARY, STEPS, ACCUMULATE = 8, 64, 60, 3


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
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs=2)
    parser.add_argument("--run", required=True)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    Path(args.run).mkdir(parents=True, exist_ok=True)
    pl.seed_everything(1)

    sources = [StreamingDataset(folder, item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
               for folder in args.data]
    dataset = CombinedStreamingDataset(sources, seed=7, weights=[0.6, 0.4], iterate_over_all=False)
    stock = StreamingDataLoader(dataset, batch_size=4, num_workers=2)
    loader = blended(stock, names=["web", "code"], total_batches=STEPS * ACCUMULATE)

    saving = ModelCheckpoint(Path(args.run) / "ckpt", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    switch = PhaseSwitchCallback(weights={"web": 0.1, "code": 0.9}, eta_over_eta_max=0.2)
    trainer = pl.Trainer(max_steps=STEPS, max_epochs=-1, accumulate_grad_batches=ACCUMULATE, accelerator="cpu",
                         devices=1, logger=False, default_root_dir=args.run, enable_progress_bar=False,
                         callbacks=[switch, saving])
    saved = sorted((Path(args.run) / "ckpt").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    module = Bigrams(args.run)
    # The newest may have been cut short by the kill, so go on from the one before it.
    trainer.fit(module, loader, ckpt_path=saved[-2] if args.resume else None, weights_only=False)
    torch.save(module.state_dict(), Path(args.run) / "final.pt")


if __name__ == "__main__":
    main()
