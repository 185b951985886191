"""A LightningCLI project: `python main.py fit --config config.yaml --data.folders '{web: ..., qa: ...}'`."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.stream import BlendedDataLoader, blended


class Bigrams(pl.LightningModule):
    """Predicts a token from the one before; validates on one fixed batch."""

    def __init__(self, vocabulary: int = 64, eta: float = 0.05) -> None:
        super().__init__()
        self.eta = eta
        self.table = torch.nn.Embedding(vocabulary, vocabulary)

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.table(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        with open(Path(self.trainer.default_root_dir) / "seen.jsonl", "a") as file:
            file.write(json.dumps(batch[:, :4].tolist()) + "\n")
        return self.loss(batch.long())

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch.long()))
        self.log("val/step", float(self.trainer.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.eta)


class Tokens(pl.LightningDataModule):
    """Folders of tokens by name, blended."""

    def __init__(self, folders: dict[str, str], weights: dict[str, float], length: int = 8, batch_size: int = 4,
                 batches: int = 24, workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def dataset(self, name: str) -> StreamingDataset:
        return StreamingDataset(self.hparams["folders"][name], shuffle=True,
                                item_loader=TokensLoader(block_size=self.hparams["length"] + 1))

    def train_dataloader(self) -> BlendedDataLoader:
        h = self.hparams
        stock = CombinedStreamingDataset([self.dataset(name) for name in h["folders"]], iterate_over_all=False,
                                         weights=[h["weights"].get(name, 0.0) for name in h["folders"]])
        loader = StreamingDataLoader(stock, batch_size=h["batch_size"], num_workers=h["workers"])
        return blended(loader, list(h["folders"]), total_batches=h["batches"])

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        first = self.dataset(next(iter(self.hparams["folders"])))
        return torch.utils.data.DataLoader([first[row] for row in range(16)], batch_size=16)


if __name__ == "__main__":
    LightningCLI(Bigrams, Tokens, save_config_callback=None)
