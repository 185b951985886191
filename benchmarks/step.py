"""Training speed of `fit` against a plain PyTorch loop and HF Trainer: same model, same batches, same optimizer.

Two models: a Llama of 10 million parameters (tokens per second), and one of 4,700 parameters, where a step is nearly
all overhead (milliseconds per step, progress bar and logging on). CPU time, one thread, arms in turn.

    python benchmarks/step.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from litdata import TokensLoader
from litdata.streaming import Cache
from measure import alternate, parser, ratios, show, write

from lit_cpt import Blend, Cosine, Phase, Recipe
from lit_cpt.manifest import Manifest, Split, TokenizerFacts
from lit_cpt.weights import parameter_groups

MODELS: dict[str, dict[str, Any]] = {
    "10M": {"hidden_size": 320, "intermediate_size": 1088, "num_hidden_layers": 6, "num_attention_heads": 5,
            "vocab_size": 4096},
    "4.7k": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "vocab_size": 128},
}
SHAPES = {"10M": (2, 128), "4.7k": (1, 16)}  # sequences in a batch, tokens in a sequence
RATE = 1e-4


def config(size: str) -> dict[str, Any]:
    return {"model_type": "llama", "max_position_embeddings": 256, "tie_word_embeddings": True, **MODELS[size]}


def write_source(folder: Path, size: str, blocks: int) -> None:
    """Blocks of random tokens as a prepared source."""
    length, vocabulary = SHAPES[size][1] + 1, MODELS[size]["vocab_size"]
    cache = Cache(str(folder), chunk_size=256 * length, item_loader=TokensLoader())
    for index in range(blocks):
        generator = torch.Generator().manual_seed(index)
        cache._add_item(index, torch.randint(0, vocabulary, (length,), generator=generator, dtype=torch.int32))
    cache.done()
    cache.merge()
    facts = TokenizerFacts("random", "0" * 64, vocabulary, "<eos>", 0)
    Manifest(facts, "int32", Split(blocks * length, blocks, 1), Split(0, 0, 0), 0, 0, (), (), {}, {}).save(folder)


class Clock:
    """CPU time of the steps after the first ``warmup``."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps, self.step, self.begun, self.seconds = warmup, steps, 0, 0.0, 0.0

    def tick(self) -> None:
        """Call after every step."""
        self.step += 1
        if self.step == self.warmup:
            self.begun = time.process_time()
        if self.step == self.steps:
            self.seconds = time.process_time() - self.begun

    @property
    def milliseconds(self) -> float:
        """Per step."""
        return 1000 * self.seconds / (self.steps - self.warmup)


def batches(root: Path, size: str) -> Any:
    """The blended stream's batches, without Lightning."""
    from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset, collate, open_source

    sequences, length = SHAPES[size]
    stream = BlendedStreamingDataset({"random": open_source(root / size, length)}, {"random": 1.0})
    return BlendedDataLoader(stream, sequences, 10**6, collate_fn=collate)


def plain(root: Path, size: str, clock: Clock) -> None:
    """The loop that anybody would write, with a log line's cost every ten steps."""
    from lit_cpt.weights import build_model

    model = build_model(None, config(size)).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=RATE, betas=(0.9, 0.95), fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, clock.steps, RATE / 100)
    for batch in batches(root, size):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        clock.tick()
        if clock.step % 10 == 0:
            loss.item()
        if clock.step == clock.steps:
            return


def ours(root: Path, size: str, clock: Clock) -> None:
    """`fit` as base.yaml sets it up: callbacks, progress bar, TensorBoard every ten steps."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    from lit_cpt.callbacks import GracefulStopCallback, PhaseSwitchCallback, RunProgressBar
    from lit_cpt.data import BlendDataModule
    from lit_cpt.module import ContinuedPretraining

    class Ticker(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    sequences, length = SHAPES[size]
    recipe = Recipe(clock.steps * sequences * length, Cosine(RATE), [Phase("only", Blend({"random": 1.0}))])
    data = BlendDataModule(recipe, {"random": str(root / size)}, length, sequences, sequences, workers=0)
    run = tempfile.mkdtemp(dir=root)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, log_every_n_steps=10, default_root_dir=run,
                         logger=TensorBoardLogger(run, name="", version=""), use_distributed_sampler=False,
                         enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=True,
                         callbacks=[PhaseSwitchCallback(), GracefulStopCallback(), RunProgressBar(), Ticker()])
    trainer.fit(ContinuedPretraining(recipe, architecture=config(size)), datamodule=data)


def huggingface(root: Path, size: str, clock: Clock) -> None:
    """HF Trainer over the same batches, logging every ten steps."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lit_cpt.weights import build_model

    class Ticker(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model(None, config(size))

        def forward(self, blocks: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            logits = self.model(input_ids=blocks[:, :-1], use_cache=False).logits
            return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())}

    class Looped(Trainer):
        def get_train_dataloader(self) -> Any:
            return ({"blocks": batch} for batch in batches(root, size))

    arguments = TrainingArguments(output_dir=tempfile.mkdtemp(dir=root), max_steps=clock.steps, learning_rate=RATE,
                                  per_device_train_batch_size=SHAPES[size][0], logging_steps=10, save_strategy="no",
                                  lr_scheduler_type="cosine", max_grad_norm=1.0, adam_beta2=0.95, weight_decay=0.1,
                                  report_to=[], use_cpu=True, disable_tqdm=False, dataloader_num_workers=0)
    Looped(Model(), arguments, callbacks=[Ticker()]).train()


def timed(arm: Callable[[Path, str, Clock], None], root: Path, size: str, steps: int) -> float:
    """CPU milliseconds per step of one run of an arm; what it prints is swallowed."""
    clock = Clock(warmup=steps // 5, steps=steps)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arm(root, size, clock)
    return clock.milliseconds


def main() -> None:
    settings = parser(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rounds = 3 if settings.quick else 7
    steps = {"10M": 40 if settings.quick else 80, "4.7k": 600 if settings.quick else 1500}
    figures, arms = {}, {"plain PyTorch": plain, "lit_cpt fit": ours, "HF Trainer": huggingface}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for size in MODELS:
            write_source(root / size, size, 2000)
            found = alternate({label: lambda a=arm, s=size: timed(a, root, s, steps[s]) for label, arm in arms.items()},
                              rounds)
            for label in ("lit_cpt fit", "HF Trainer"):
                found[f"plain / {label}"] = ratios(found, "plain PyTorch", label)
            show(f"CPU ms per step, model of {size} parameters, {SHAPES[size][0]} x {SHAPES[size][1]} tokens", found)
            if size == "10M":
                figures["step.tokens_ratio"] = statistics.median(found["plain / lit_cpt fit"])
            else:
                over = [a - b for a, b in zip(found["lit_cpt fit"], found["plain PyTorch"], strict=True)]
                figures["step.overhead_ms"] = statistics.median(over)
                print(f"\noverhead per step: {figures['step.overhead_ms']:.2f} ms")
    write(settings.json, figures, ("torch", "lightning", "transformers", "litdata"))


if __name__ == "__main__":
    main()
