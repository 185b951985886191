"""Keeps the account of what a run trains on: tokens, epochs and share of each source, in each phase."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves

from lit_cpt.json_lines import append_line
from lit_cpt.ledger import LEDGER, Counts, added, by_phase, cut_ledger, drawn, repeated, shares
from lit_cpt.parallel import data_rank
from lit_cpt.phases import phase_of, phases_begun
from lit_cpt.stream import BlendedDataLoader
from lit_cpt.stream.switching import only_loader
from lit_cpt.telling import log_due, publish, rate, record

log = logging.getLogger(__name__)

ONLY = "all"  # the source of a loader that does not tell its sources


class TokenLedgerCallback(Callback):
    """Writes ``ledger.jsonl``: a line at each step at which the Trainer logs, and one at the end.

    A line holds ``step``, ``phase``, ``eta`` and ``loss``, by source ``tokens`` and ``epochs`` of the whole run and
    ``share`` of what was trained since the line before, ``phases``: tokens by phase and source, and ``passed_over``:
    first sample and one past the last of each stretch of the stream that is left out, if any is. The loggers get
    ``tokens/<source>``, ``epochs/<source>`` and ``share/<source>``. A resumed run takes back the lines after its
    checkpoint and goes on counting.

    Of a `BlendedDataLoader` the counts are exact, with any number of ranks and workers: they follow from its seed. Of
    any other loader the sequences of all ranks are counted under one name.

    Args:
        max_epochs: Passes over a source beyond which repeats are worth little (arXiv 2305.16264 finds four): said
            once for each source, in the log and in the run's diary.

    Raises:
        ValueError: ``max_epochs`` is not positive.
    """

    def __init__(self, max_epochs: float = 4.0) -> None:
        if not max_epochs > 0:
            raise ValueError(f"max_epochs={max_epochs} must be above 0; beyond 4 repeats are worth little.")
        self.max_epochs = max_epochs
        self.told: list[str] = []  # sources that are known to repeat too often
        self.counted: dict[str, int] = {}  # phase -> samples, where the loader does not tell its sources
        self.before: Counts = {}  # totals of the line before
        self.line: dict[str, Any] = {}  # the last one
        self.length = 0  # tokens trained in a sequence

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what is trained anew."""
        if trainer.is_global_zero:
            cut_ledger(trainer.default_root_dir, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        """Count, and write where the Trainer logs; all of it on the host."""
        sequences = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
        ours = isinstance(only_loader(trainer), BlendedDataLoader)
        self.length = sequences[0].numel() - ours  # a block of ours holds one token more, the last target
        if not ours:
            phase = phase_of(phases_begun(trainer), trainer.global_step + trainer.fit_loop._should_accumulate())
            self.counted[phase] = self.counted.get(phase, 0) + len(sequences) * data_rank(trainer)[1]
        if log_due(trainer):
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end."""
        if self.length and self.line.get("step") != trainer.global_step:
            self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line of the ledger, the same for the loggers, and a word about repeats."""
        phases = self.account(trainer)
        totals = {name: sum(one.get(name, 0) for one in phases.values())
                  for name in sorted({name for one in phases.values() for name in one})}
        blocks = getattr(only_loader(trainer).dataset, "blocks", {})
        epochs = {name: count / blocks[name] for name, count in totals.items() if name in blocks}
        by_source = {"tokens": self.tokens(totals), "epochs": epochs, "share": shares(added(self.before, totals))}
        logged = {key: float(trainer.callback_metrics[name]) for key, name in (("loss", "train/loss"),)
                  if name in trainer.callback_metrics}
        self.line = {"step": trainer.global_step, "phase": phase_of(phases_begun(trainer), trainer.global_step),
                     "eta": rate(trainer), **logged, **by_source,
                     "phases": {phase: self.tokens(one) for phase, one in phases.items()}}
        if passed := getattr(only_loader(trainer).dataset, "passed", ()):
            self.line["passed_over"] = [list(stretch) for stretch in passed]
        self.before = totals
        values = {f"{kind}/{name}": value for kind, found in by_source.items() for name, value in found.items()}
        publish(trainer, values)
        if trainer.is_global_zero:
            append_line(Path(trainer.default_root_dir) / LEDGER, self.line)
        self.warn(pl_module, epochs)

    def account(self, trainer: Trainer) -> dict[str, Counts]:
        """Samples trained, by phase and source."""
        loader = only_loader(trainer)
        if not isinstance(loader, BlendedDataLoader):
            return {phase: {ONLY: count} for phase, count in self.counted.items()}
        begun, dataset = phases_begun(trainer), loader.dataset
        batch = loader.stride * trainer.accumulate_grad_batches
        steps = [*(first for _, first in begun), trainer.global_step]
        return by_phase(begun, [drawn(dataset.history, loader.place_of(step * batch), dataset.passed)
                                for step in steps])

    def tokens(self, samples: Mapping[str, int]) -> Counts:
        """Tokens of ``samples``."""
        return {name: count * self.length for name, count in samples.items()}

    def warn(self, pl_module: LightningModule, epochs: Mapping[str, float]) -> None:
        """Tell of sources that have come to repeat too often."""
        for name in repeated(epochs, self.max_epochs, self.told):
            self.told.append(name)
            log.warning("%s has been seen %.1f times; repeats beyond %g are worth little: give it less weight, or more "
                        "data", name, epochs[name], self.max_epochs)
            record(pl_module, "repeats", source=name, epochs=epochs[name])

    def state_dict(self) -> dict[str, Any]:
        """The account as of the last line, and what a resumed run goes on from."""
        return {"told": list(self.told), "counted": dict(self.counted), "before": dict(self.before), "line": self.line}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.told, self.counted = list(state_dict["told"]), dict(state_dict["counted"])
        self.before, self.line = dict(state_dict["before"]), dict(state_dict["line"])

