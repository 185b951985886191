"""Real objects that the tests share: sources whose blocks name themselves, and tiny models."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning.pytorch as pl
import pytest
import torch
from litdata import TokensLoader
from litdata.streaming import Cache

from lit_cpt.blends import BlendHistory
from lit_cpt.manifest import Manifest, Split, TokenizerFacts
from lit_cpt.orders import SourceOrder

LENGTH = 8  # tokens trained in a block of the test sources
VOCABULARY = 64
BLOCKS_PER_CHUNK = 16
SIZES = {"a": 400, "b": 150, "c": 37}


def named_block(source: int, row: int, length: int = LENGTH) -> torch.Tensor:
    """A block that says which one it is: source, then the row in base 64, then filler."""
    head = [source, row // VOCABULARY**2, row // VOCABULARY % VOCABULARY, row % VOCABULARY]
    filler = [(row * 7 + place * 3) % VOCABULARY for place in range(length + 1 - len(head))]
    return torch.tensor(head + filler, dtype=torch.int32)


def name_of(block: torch.Tensor) -> tuple[int, int]:
    """(source, row) of a `named_block`."""
    source, high, middle, low = (int(token) for token in block[:4])
    return source, (high * VOCABULARY + middle) * VOCABULARY + low


def write_blocks(folder: Path, blocks: list[torch.Tensor], blocks_per_chunk: int = BLOCKS_PER_CHUNK) -> None:
    """A litdata dataset of these blocks."""
    size = blocks_per_chunk * blocks[0].numel() if blocks else 1
    cache = Cache(str(folder), chunk_size=size, item_loader=TokensLoader())
    for index, block in enumerate(blocks):
        cache._add_item(index, block)
    cache.done()
    cache.merge()


def write_source(folder: Path, source: int, rows: int, fingerprint: str = "f" * 64,
                 validation: int = 6) -> Path:
    """A prepared source of ``rows`` named blocks."""
    write_blocks(folder, [named_block(source, row) for row in range(rows)])
    if validation:
        write_blocks(folder / "validation", [named_block(source, row) for row in range(validation)])
    tokens = rows * (LENGTH + 1)
    tokenizer = TokenizerFacts("test", fingerprint, VOCABULARY, "<eos>", 0)
    held_out = Split(validation * (LENGTH + 1), validation, min(validation, 1))
    Manifest(tokenizer, "int32", Split(tokens, rows, 1), held_out, 0, 0, (), (), {}, {}).save(folder)
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three sources, a (400 blocks), b (150) and c (37)."""
    root = tmp_path_factory.mktemp("sources")
    return {name: str(write_source(root / name, number, rows))
            for number, (name, rows) in enumerate(SIZES.items())}


@pytest.fixture(scope="session")
def tiny() -> dict[str, object]:
    """Config values of a Llama of a few thousand parameters."""
    return {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
            "tie_word_embeddings": True}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heeded, even where the tests were started in the background by a shell that has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ideal_stream(legs: list[tuple[int, dict[str, float]]], count: int, names: tuple[str, ...] = ("a", "b", "c"),
                 seed: int = 42, window: int = 8) -> list[tuple[int, int]]:
    """(source, row) of the first ``count`` samples, by the pure functions alone: no loader, no litdata."""
    history = BlendHistory(names, legs[0][1], seed)
    history.plan(0, legs)
    orders = [SourceOrder(name, chunk_sizes(SIZES[name]), seed, window) for name in history.sources]
    stream = []
    for source, draw in zip(*history.draws(0, count, history.counts(0)), strict=True):
        chunk, block = orders[source].locate(int(draw))
        stream.append((list(SIZES).index(history.sources[source]), chunk * BLOCKS_PER_CHUNK + block))
    return stream


def chunk_sizes(rows: int) -> list[int]:
    """Blocks in each chunk of a source of ``rows`` blocks."""
    full, rest = divmod(rows, BLOCKS_PER_CHUNK)
    return [BLOCKS_PER_CHUNK] * full + [rest] * bool(rest)


class Diary(pl.Callback):
    """What a run trained on and at which rate: (source, row) of every trained sample, eta of every step."""

    def __init__(self) -> None:
        self.names: list[tuple[int, int]] = []
        self.etas: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object,
                           batch: torch.Tensor, batch_idx: int) -> None:
        """Note a batch once it is trained."""
        self.names += [name_of(block) for block in batch]

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        """Note the rate a step is made with."""
        self.etas.append(optimizer.param_groups[0]["lr"])


class SaveAt(pl.Callback):
    """Saves ``step-N.ckpt`` after each of the given optimizer steps; before or after the callbacks behind it."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save once per step."""
        path = self.folder / f"step-{trainer.global_step}.ckpt"
        if trainer.global_step in self.steps and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(path)


def make_trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """A quiet Trainer on one CPU core."""
    torch.set_num_threads(1)
    saves = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks)
    return pl.Trainer(**{"default_root_dir": str(folder), "accelerator": "cpu", "devices": 1, "max_epochs": -1,
                         "logger": False, "enable_checkpointing": saves, "enable_progress_bar": False,
                         "enable_model_summary": False, "callbacks": list(callbacks), "num_sanity_val_steps": 0,
                         **settings})


def fit(module: pl.LightningModule, data: Any, folder: Path, *callbacks: pl.Callback, resume: str | Path | None = None,
        **settings: Any) -> Diary:
    """Train, and return what was trained on."""
    torch.manual_seed(1)
    diary = Diary()
    trainer = make_trainer(folder, diary, *callbacks, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=resume and str(resume), weights_only=False)
    return diary


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes at ``folder``, which is made; the test is skipped where nothing may be mounted."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True,
                             check=False)
    if mounted.returncode:
        pytest.skip(f"this test needs leave to mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def ran_with_mounts(test: str) -> bool:
    """Whether ``test`` (file and name) was run as root of a namespace of its own, because it may not mount as it is."""
    if os.geteuid() == 0 or not shutil.which("unshare") or subprocess.run(
            ["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        return False
    subprocess.run(["unshare", "-rm", sys.executable, "-m", "pytest", test], check=True)
    return True


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models are equal to the last bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
