"""The LightningDataModule: prepared sources by name, the blended stream, one validation set per source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from litdata import StreamingDataset, TokensLoader
from torch.utils.data import DataLoader, IterableDataset

from lit_cpt.manifest import VALIDATION, Manifest, TokenizerFacts, check_chunks
from lit_cpt.orders import SourceOrder
from lit_cpt.parallel import data_rank, ranks_alike
from lit_cpt.plan import blocks_in, validated
from lit_cpt.prepare.tokens import load_tokenizer, tokenizer_fingerprint
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.remote import is_remote
from lit_cpt.stream import (
    BlendedDataLoader,
    BlendedStreamingDataset,
    Remote,
    SourceReader,
    Staging,
    check_tokenizers,
    chunk_bounds,
    collate,
    detected_share,
    open_source,
    patient,
)

# A tokenizer lies beside the weights if one of these does.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
DEFAULTS = Remote()


class BlendDataModule(pl.LightningDataModule):
    """Blended training data and per-source validation data for `ContinuedPretraining`.

    It derives what must agree with the batch: the Trainer's accumulation and its number of steps.

    Args:
        recipe: Phases and horizon.
        sources: Source name to the folder that ``lit-cpt prepare`` wrote.
        sequence_length: Tokens trained in a sequence.
        global_batch: Sequences in an optimizer step, all ranks together.
        micro_batch: Sequences that one rank runs at once; accumulation follows from it.
        workers: Loader processes per rank; 0 reads in the training process.
        seed: Seed of the order of samples.
        window: Chunks of a source whose blocks are shuffled together.
        shards: Parts that sources are cut into so that a rank reads only its own; see docs/data.md. Fixed for the
            life of a run; 1 suits local disks.
        validation_blocks: Blocks per source in a validation, at most; 0 turns validation off.
        remote: Cache and client settings for sources in an object store.
        pass_over: Stretches of the stream that are not trained on, each its first global batch and one past its
            last, counted from the beginning of the run: where something in the data has harmed it.
        timeout: Seconds that a batch may take before the run ends and says so, less than the half hour that other ranks
            wait for this one; 0 waits for ever.
        allow_change: What a resumed run may have changed, such as ``data.seed`` (``--allow-change``).

    Raises:
        ValueError: A phase names a source that is not here, or a source cannot be used.
    """

    def __init__(self, recipe: Recipe, sources: dict[str, str], sequence_length: int = 2048, global_batch: int = 64,
                 micro_batch: int = 1, workers: int = 2, seed: int = 42, window: int = 8,
                 shards: int = 1, validation_blocks: int = 256, remote: Remote = DEFAULTS,
                 pass_over: Sequence[tuple[int, int]] = (), timeout: float = 600.0,
                 allow_change: list[str] | None = None) -> None:
        super().__init__()
        self.recipe, self.sources = recipe, dict(sources)
        self.batch = Batch(sequence_length, global_batch, micro_batch)
        self.workers, self.seed, self.window, self.shards = workers, seed, window, shards
        self.validation_blocks, self.remote, self.allow_change = validation_blocks, remote, list(allow_change or [])
        self.pass_over = [(first, stop) for first, stop in pass_over]
        self.timeout = timeout
        if timeout < 0:
            raise ValueError(f"timeout={timeout} must be at least 0, seconds; 0 waits for ever.")
        check_named(recipe, self.sources)
        for name, given, least in (("workers", workers, 0), ("window", window, 1),
                                   ("validation_blocks", validation_blocks, 0)):
            if given < least:
                raise ValueError(f"{name}={given} must be at least {least}.")
        for first, stop in self.pass_over:
            if not 0 <= first < stop:
                raise ValueError(f"pass_over has {first} to {stop}: give the first global batch and one past the last, "
                                 "such as [[700, 720]].")
        recipe.start_steps(self.batch.tokens_per_step)
        self.batch.check_shards(shards)

    @cached_property
    def folders(self) -> dict[str, str]:
        """A local folder with the metadata of each source, and with its chunks too unless it is remote."""
        return self.remote.staged(self.sources)

    @property
    def used(self) -> dict[str, str]:
        """Local folders of the sources that some phase names."""
        return {name: self.folders[name] for name in self.recipe.sources}

    @property
    def tokenizer(self) -> TokenizerFacts:
        """What all sources were tokenised with."""
        return Manifest.load(next(iter(self.used.values()))).tokenizer

    @property
    def eos_token_id(self) -> int:
        """The token that ends every document; the same in all sources."""
        return self.tokenizer.eos_token_id

    @property
    def validation_names(self) -> list[str]:
        """Sources with at least one block to validate on, sorted, used by a phase or not."""
        return validated(self.folders, self.batch.sequence_length) if self.validation_blocks else []

    def setup(self, stage: str) -> None:
        """Check the sources against the model; fix accumulation and number of steps.

        Raises:
            ValueError: Another tokenizer, a chunk that is not whole, or a batch that does not divide among the ranks.
        """
        check_tokenizers(self.folders, *self.model_fingerprint())
        self.check_chunks()
        if stage != "fit" or self.trainer is None:
            return
        accumulation = self.batch.accumulation(data_rank(self.trainer)[1])
        if self.trainer.accumulate_grad_batches not in (1, accumulation):
            raise ValueError(f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}, but "
                             f"global_batch and micro_batch make it {accumulation}: leave it out.")
        self.trainer.accumulate_grad_batches = accumulation
        loop, steps = self.trainer.fit_loop.epoch_loop, self.recipe.steps(self.batch.tokens_per_step)
        loop.max_steps = steps if loop.max_steps == -1 else min(loop.max_steps, steps)

    def check_chunks(self) -> None:
        """See that the chunks of local sources are there, so that no run ends days later for want of one.

        Raises:
            ValueError: One is missing, or has another size than the index tells.
        """
        for name, folder in self.folders.items():
            if not is_remote(self.sources[name]):
                check_chunks(folder)

    def model_fingerprint(self) -> tuple[str | None, str]:
        """Fingerprint of the tokenizer that lies beside the model, and whose it is; None where there is none."""
        module = getattr(self.trainer, "lightning_module", None)
        folder = getattr(module, "pretrained", None) or getattr(module, "architecture", None)
        if not isinstance(folder, str):
            return None, ""
        if Path(folder).is_dir() and not any((Path(folder) / name).exists() for name in TOKENIZER_FILES):
            return None, ""
        return tokenizer_fingerprint(load_tokenizer(folder)), f"the model ({folder})"

    def train_dataloader(self) -> BlendedDataLoader:
        """The blended stream."""
        assert self.trainer is not None
        rank, ranks = data_rank(self.trainer)
        loader = self.loader(ranks)
        loader.share = rank, ranks
        return loader

    def loader(self, world_size: int, workers: int | None = None) -> BlendedDataLoader:
        """The blended stream as one of ``world_size`` ranks reads it, with other ``workers`` if given."""
        datasets = {name: open_source(folder, self.batch.sequence_length) for name, folder in self.used.items()}
        dataset = BlendedStreamingDataset(datasets, self.recipe.phases[0].blend.weights, self.seed, self.window,
                                          shards=self.shards, staging=self.staging)
        dataset.may_change = frozenset(self.allow_change)
        dataset.pass_over(*((first * self.batch.global_batch, stop * self.batch.global_batch)
                            for first, stop in self.pass_over))
        devices = getattr(self.trainer, "num_devices", 1) // ranks_alike(self.trainer)
        here = min(world_size, max(1, devices))  # ranks of this node
        self.staging.check(self.used, max(1, self.shards // world_size) * here, self.window)
        total = self.recipe.steps(self.batch.tokens_per_step) * self.batch.accumulation(world_size)
        return BlendedDataLoader(dataset, self.batch.micro_batch, total, self.timeout, collate_fn=collate,
                                 num_workers=self.workers if workers is None else workers,
                                 pin_memory=torch.cuda.is_available())

    @cached_property
    def staging(self) -> Staging:
        """What reading the remote sources needs."""
        return Staging(self.sources, self.folders, self.remote)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each name in `validation_names`."""
        sets = [ValidationBlocks(name, self.folders[name], self.batch.sequence_length, self.validation_blocks,
                                 self.staging) for name in self.validation_names]
        for blocks in sets:
            blocks.share = data_rank(self.trainer) if self.trainer is not None else None
            blocks.timeout = self.timeout
        return [DataLoader(blocks, batch_size=self.batch.micro_batch, collate_fn=collate) for blocks in sets]


class ValidationBlocks(IterableDataset[Any]):
    """The first blocks of a source's validation split, dealt out to the ranks; the same ones each time.

    Args:
        name: The source.
        folder: Local folder with its metadata.
        sequence_length: Tokens predicted in a block.
        count: Blocks, at most, all ranks together.
        staging: Brings the blocks here, where the source is remote.
    """

    def __init__(self, name: str, folder: str, sequence_length: int, count: int, staging: Staging) -> None:
        self.name, self.folder, self.sequence_length, self.count = name, folder, sequence_length, count
        self.staging = staging
        self.share: tuple[int, int] | None = None  # as of a `BlendedDataLoader`
        self.timeout = 0.0  # seconds that a block may take; 0 is for ever

    def __iter__(self) -> Iterator[Any]:
        """This rank's blocks."""
        return patient(self.blocks(), self.timeout, lambda: f"a validation waits for blocks of {self.name}")

    def blocks(self) -> Iterator[Any]:
        """This rank's blocks, as they are read. A split shorter than one block has none."""
        split, name = str(Path(self.folder) / VALIDATION), f"{self.name}/{VALIDATION}"
        if not blocks_in(split, self.sequence_length):
            return
        rank, ranks = self.share or detected_share()
        store = self.staging.open() if name in self.staging else None
        try:
            dataset = StreamingDataset(split, item_loader=TokensLoader(block_size=self.sequence_length + 1))
            bounds = chunk_bounds(dataset)
            order = SourceOrder(name, [end - begin for begin, end in bounds], 0, 1, shuffle=False)
            reader = SourceReader(name, dataset, [begin for begin, _ in bounds], order, 4, store)
            for index in range(rank, min(self.count, order.total), ranks):
                yield reader.read(index, 0, 0)
        finally:
            if store is not None:
                store.close()


def check_named(recipe: Recipe, sources: Mapping[str, str]) -> None:
    """Refuse phases that name sources which have no folder."""
    for phase in recipe.phases:
        missing = [name for name in phase.blend.weights if name not in sources]
        if missing:
            known = ", ".join(map(repr, sources)) or "none"
            raise ValueError(f"phase {phase.name!r} draws on {missing[0]!r}, but data.sources has {known}. "
                             f"Add data.sources.{missing[0]}: FOLDER, or take it out of the blend.")
