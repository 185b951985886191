"""What the guards of a run cost: `fit` with and without them, and the time that is spent within them.

A Llama of 10 million parameters, 2 sequences of 128 tokens in a step, CPU time of one thread. With and without take
turns; within a run the hooks of each guard are timed, which tells a thousandth of a step where whole runs cannot. The
norm of the gradient is no cost of a guard where the run is clipped by it anyway.

    python benchmarks/guards.py [--quick] [--json FILE]
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
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl
import torch
from measure import alternate, parser, ratios, show, write
from step import RATE, SHAPES, Clock, config, write_source

from lit_cpt import Blend, Cosine, Phase, Recipe
from lit_cpt.callbacks import (
    ForgettingCallback,
    PhaseSwitchCallback,
    StabilityCallback,
    ThroughputCallback,
    TokenLedgerCallback,
)
from lit_cpt.data import BlendDataModule
from lit_cpt.module import ContinuedPretraining
from lit_cpt.stream.patience import patient

SIZE = "10M"
GUARDS = (TokenLedgerCallback, StabilityCallback, ForgettingCallback, ThroughputCallback)
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


class Ticker(pl.Callback):
    """Counts steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Measure the norm, outside of the guards: it is clipped by it in both arms."""
        module.measured_norm()

    def on_train_batch_end(self, *_: Any) -> None:
        """A step is made."""
        self.clock.tick()


class Spent:
    """CPU seconds within the hooks of a callback, once ``clock`` is warm."""

    def __init__(self, callback: pl.Callback, clock: Clock) -> None:
        self.clock, self.seconds = clock, 0.0
        for name in HOOKS:
            setattr(callback, name, self.timed(getattr(callback, name)))

    def timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        """``hook``, timed."""
        def wrapped(*arguments: Any) -> None:
            began = time.process_time()
            hook(*arguments)
            self.seconds += (time.process_time() - began) * (self.clock.step >= self.clock.warmup)
        return wrapped

    @property
    def milliseconds(self) -> float:
        """Per step."""
        return 1000 * self.seconds / (self.clock.steps - self.clock.warmup)


def train(root: Path, steps: int, guards: list[pl.Callback], clock: Clock) -> None:
    """`fit` as base.yaml sets it up, without checkpoints and validations; what it prints is swallowed."""
    sequences, length = SHAPES[SIZE]
    recipe = Recipe(steps * sequences * length, Cosine(RATE), [Phase("only", Blend({"random": 1.0}))])
    data = BlendDataModule(recipe, {"random": str(root / SIZE)}, length, sequences, sequences, workers=0,
                           validation_blocks=0)
    run = tempfile.mkdtemp(dir=root)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, log_every_n_steps=10, default_root_dir=run,
                         logger=pl.loggers.TensorBoardLogger(run, name="", version=""), enable_progress_bar=False,
                         use_distributed_sampler=False, enable_model_summary=False, enable_checkpointing=False,
                         callbacks=[PhaseSwitchCallback(), Ticker(clock), *guards])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(ContinuedPretraining(recipe, architecture=config(SIZE)), datamodule=data)


def without(root: Path, steps: int) -> float:
    """CPU milliseconds of a step without guards."""
    clock = Clock(steps // 5, steps)
    train(root, steps, [], clock)
    return clock.milliseconds


def guarded(root: Path, steps: int, within: dict[str, list[float]]) -> float:
    """CPU milliseconds of a step with guards; adds what each of them took to ``within``."""
    clock = Clock(steps // 5, steps)
    guards = [kind() for kind in GUARDS]
    spent = {type(guard).__name__: Spent(guard, clock) for guard in guards}
    train(root, steps, guards, clock)
    for name, one in spent.items():
        within.setdefault(name, []).append(one.milliseconds)
    return clock.milliseconds


def fetched(batches: Iterator[int], count: int = 2000) -> float:
    """CPU milliseconds of a batch."""
    began = time.process_time()
    for _ in islice(batches, count):
        pass
    return 1000 * (time.process_time() - began) / count


def main() -> None:
    settings = parser(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rounds, steps = (3, 30) if settings.quick else (7, 100)
    within: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_source(root / SIZE, SIZE, 2000)
        found = alternate({"without": lambda: without(root, steps), "with": lambda: guarded(root, steps, within)},
                          rounds)
    within["fetching by a thread"] = [fetched(patient(repeat(0), 60, str)) - fetched(repeat(0)) for _ in range(rounds)]
    found["with / without"] = ratios(found, "with", "without")
    show(f"CPU ms per step, model of {SIZE} parameters, {SHAPES[SIZE][0]} x {SHAPES[SIZE][1]} tokens", found)
    shares = {name: [100 * one / step for one, step in zip(values, found["with"], strict=True)]
              for name, values in within.items()}
    shares["all"] = [sum(values) for values in zip(*shares.values(), strict=True)]
    show("CPU ms per step within each guard", within)
    show("the same, % of the step", shares)
    write(settings.json, {"guards.percent": statistics.median(shares["all"]),
                          "guards.ratio": statistics.median(found["with / without"])}, ("torch", "lightning"))


if __name__ == "__main__":
    main()
