"""Shows on one's own data that the stream keeps its promises: shares, epochs, switch, resume, speed. No model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from lit_cpt.data import BlendDataModule
from lit_cpt.plan import Plan, plan, source_blocks
from lit_cpt.stream import BlendedDataLoader
from lit_cpt.units import format_count


@dataclass(frozen=True)
class Share:
    """What a source gave to the steps that were read.

    Args:
        name: The source.
        weight: Its share of the first blend.
        samples: Sequences read from it.
        share: Their part of all.
        epochs: Passes over its blocks in these steps.
        planned_epochs: Passes in the whole run.
    """

    name: str
    weight: float
    samples: int
    share: float
    epochs: float
    planned_epochs: float | None


@dataclass(frozen=True)
class Switch:
    """Where a phase begins, and what was read on either side of it.

    Args:
        phase: Its name.
        step: Its first optimizer step.
        sample: Its first sample.
        before: Sources of the last samples before it, by number of samples.
        after: Sources of the first samples from it on.
        exact: Whether every block on both sides is the one foretold.
    """

    phase: str
    step: int
    sample: int
    before: dict[str, int]
    after: dict[str, int]
    exact: bool


@dataclass(frozen=True)
class DataCheck:
    """What was read and found.

    Args:
        steps: Optimizer steps read from the beginning of the run.
        shares: One for each source of the first phase.
        exact: Whether every block that the loader gave is the one foretold.
        resumed: Whether a loader with other workers, set to the middle, went on with the same blocks.
        switches: One for each phase whose beginning is foretold.
        tokens_per_second: Of one rank, from the first batch on.
        first_batch_seconds: Until the first batch was there.
    """

    steps: int
    shares: list[Share]
    exact: bool
    resumed: bool
    switches: list[Switch]
    tokens_per_second: float
    first_batch_seconds: float

    @property
    def passed(self) -> bool:
        """Whether all that was checked holds."""
        return self.exact and self.resumed and all(switch.exact for switch in self.switches)


def check_data(data: BlendDataModule, steps: int = 100) -> DataCheck:
    """Read ``steps`` optimizer steps as one rank would, and some around each switch, and compare block by block.

    Raises:
        ValueError: ``steps`` is no positive number.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    data.setup("check")
    blocks = source_blocks(data.used, data.batch.sequence_length)
    foretold = plan(data.recipe, data.batch, blocks, data.seed)
    steps = min(steps, foretold.steps)
    count = steps * data.batch.accumulation(1)
    read, first, seconds = timed(planned_loader(data, foretold), count)
    chosen = sources_of(data, foretold, 0, steps * data.batch.global_batch)
    return DataCheck(steps, shares(foretold, chosen, blocks), read == expected(data, foretold, 0, len(read)),
                     resumes(data, foretold, read), [switch(data, foretold, phase) for phase in begun(foretold)],
                     (count - 1) * data.batch.micro_batch * data.batch.sequence_length / max(seconds, 1e-9), first)


def begun(foretold: Plan) -> list[Any]:
    """Phases after the first whose beginning is foretold."""
    return [phase for phase in foretold.phases[1:] if phase.start is not None]


def planned_loader(data: BlendDataModule, foretold: Plan, position: int = 0,
                   workers: int | None = None) -> BlendedDataLoader:
    """The loader of a run on one rank, with every switch that is foretold, at ``position``."""
    loader = data.loader(1, workers)
    loader.plan([(phase.start.step * data.batch.global_batch, data.recipe.phases[number].blend.weights)
                 for number, phase in enumerate(foretold.phases) if number and phase.start is not None])
    loader.dataset.position = position
    return loader


def timed(loader: BlendedDataLoader, count: int) -> tuple[list[bytes], float, float]:
    """Digests of ``count`` batches' blocks, the seconds to the first, and the seconds from there to the last."""
    began = time.perf_counter()
    iterator = iter(loader)
    digests = digests_of(islice(iterator, 1))
    first = time.perf_counter()
    digests += digests_of(islice(iterator, count - 1))
    return digests, first - began, time.perf_counter() - first


def digests_of(batches: Iterable[torch.Tensor]) -> list[bytes]:
    """A digest of each block: a run's worth of blocks would not fit in memory."""
    return [blake2b(block.numpy().tobytes(), digest_size=16).digest() for batch in batches for block in batch]


def expected(data: BlendDataModule, foretold: Plan, position: int, count: int) -> list[bytes]:
    """Digests of the stream's blocks from ``position`` on, each found by itself and read in this process."""
    dataset = planned_loader(data, foretold, position).dataset
    dataset.batch_size = data.batch.micro_batch
    return digests_of(torch.as_tensor(block).long()[None] for block in islice(dataset, count))


def resumes(data: BlendDataModule, foretold: Plan, read: list[bytes]) -> bool:
    """Whether a fresh loader with other workers, given the state of the middle, goes on as the first one did."""
    loader = planned_loader(data, foretold, workers=0 if data.workers else 1)
    size = data.batch.global_batch
    middle = len(read) // size // 2 * size
    loader.load_state_dict(loader.dataset.state(middle))
    rest = digests_of(islice(loader, 8 * data.batch.accumulation(1)))
    return bool(rest) and all(mine == theirs for mine, theirs in zip(read[middle:], rest, strict=False))


def sources_of(data: BlendDataModule, foretold: Plan, start: int, stop: int) -> list[str]:
    """Source of each of these samples."""
    history = planned_loader(data, foretold).dataset.history
    return [history.sources[source] for source in history.choose(start, stop)]


def shares(foretold: Plan, chosen: list[str], blocks: dict[str, int]) -> list[Share]:
    """What each source gave, against its weight."""
    weights = {source.name: source.weight for source in foretold.phases[0].sources}
    whole = {source.name: source.epochs for source in foretold.sources}
    names, counts = np.unique(chosen, return_counts=True)
    drawn = dict(zip(names.tolist(), counts.tolist(), strict=True))
    return [Share(name, weights.get(name, 0.0), drawn.get(name, 0), drawn.get(name, 0) / len(chosen),
                  drawn.get(name, 0) / blocks[name], whole.get(name)) for name in sorted({*weights, *drawn})]


def switch(data: BlendDataModule, foretold: Plan, phase: Any) -> Switch:
    """Read two steps around the beginning of ``phase``: a loader is set there, as by a resume."""
    size, step = data.batch.global_batch, phase.start.step
    start, stop = max(0, step - 2) * size, min(step + 2, foretold.steps) * size
    loader = planned_loader(data, foretold, start)
    read = digests_of(islice(loader, (stop - start) // data.batch.micro_batch))
    before, after = sources_of(data, foretold, start, step * size), sources_of(data, foretold, step * size, stop)
    return Switch(phase.name, step, step * size, tally(before), tally(after),
                  read == expected(data, foretold, start, len(read)))


def tally(names: list[str]) -> dict[str, int]:
    """How often each name comes."""
    return {name: names.count(name) for name in sorted(set(names))}


def render_check(check: DataCheck, data: BlendDataModule) -> str:
    """The check as text for a terminal."""
    rows = [[share.name, f"{share.weight:.4g}", f"{share.share:.4f}", f"{share.samples:,}", f"{share.epochs:.3f}",
             "?" if share.planned_epochs is None else f"{share.planned_epochs:.2f}"] for share in check.shares]
    table = tabulate(rows, ["source", "weight", "share read", "sequences", "epochs", "epochs in the run"],
                     disable_numparse=True, colalign=("left", *["right"] * 5))
    switches = [f"phase {at.phase} begins at step {at.step:,}, sequence {at.sample:,}: before it "
                f"{listed(at.before)}; from it on {listed(at.after)}: {verdict(at.exact)}" for at in check.switches]
    workers = f"{data.workers} worker{'s' * (data.workers != 1)}"
    read = check.steps * data.batch.global_batch
    return "\n".join([
        table, "", f"{read:,} sequences of {check.steps:,} steps, each compared with the block that the seed and its "
        f"number foretell: {verdict(check.exact)}",
        f"the same after a resume in the middle, with {0 if data.workers else 1} instead of {workers}: "
        f"{verdict(check.resumed)}", *switches,
        f"{format_count(check.tokens_per_second)} tokens a second on one rank with {workers}; first batch after "
        f"{check.first_batch_seconds:.2f} s"])


def listed(counts: dict[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def verdict(held: bool) -> str:
    """A claim's outcome in a word."""
    return "exact" if held else "DIFFERENT"
