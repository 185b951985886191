"""What the arms of `throughput.py` share: the job, the stopwatch in the data loader, the data, the optimizer."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_cpt import Blend, Cosine, Phase, Recipe
from lit_cpt.data import BlendDataModule
from lit_cpt.stream import BlendedDataLoader

RATE = 1e-4
BETAS, EPSILON, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True)
class Job:
    """What every arm does.

    Args:
        folder: Holds ``source``, ``weights`` (a Hugging Face folder) and, while an arm runs, what it writes.
        device: ``cpu`` or ``cuda``.
        ranks: Processes; all on one machine.
        sharded: Whether by FSDP2; otherwise there is one rank.
        config: Of the Llama.
        sequences: In a batch of one rank.
        length: Tokens trained in a sequence.
        warmup: Steps that are not timed.
        steps: Steps that are.
        validation: Batches of one rank in a validation.
        workers: Loader processes per rank.
        compile: Whether to compile.
        recompute: Whether activations are recomputed in the backward pass, block by block.
    """

    folder: str
    device: str
    ranks: int
    sharded: bool
    config: dict[str, Any]
    sequences: int
    length: int
    warmup: int
    steps: int
    validation: int
    workers: int
    compile: bool
    recompute: bool

    @property
    def total(self) -> int:
        """Steps made: one more than are timed, since the clock stops when its batch is asked for."""
        return self.warmup + self.steps + 1

    @property
    def weights(self) -> str:
        """The initial weights."""
        return str(Path(self.folder) / "weights")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of forward and backward; weights and moments are fp32 in every arm."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def place(self, name: str) -> Path:
        """Where an arm writes ``name``."""
        return Path(self.folder) / "written" / name


@dataclass
class Found:
    """What one rank measured."""

    wall: float = 0.0  # seconds of the timed steps
    cpu: float = 0.0  # seconds of CPU of this process in them
    wait: float = 0.0  # seconds of them in which the loop waited for a batch
    memory: float = 0.0  # peak bytes in them: of the GPU, or above what the process had before there was a model
    stall: float = 0.0  # seconds that training waits for the second checkpoint
    validation: float = 0.0  # seconds
    loss: float = 0.0  # of the validation


class Meter:
    """Watches an arm from inside its data loader, which every arm asks for a batch once a step."""

    def __init__(self, job: Job) -> None:
        self.job, self.found, self.asked, self.running = job, Found(), 0, False
        self.before = status("VmRSS")

    def watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``; the clock runs from the request after the warm-up to that after the timed steps."""
        while True:
            if self.asked in (self.job.warmup, self.job.warmup + self.job.steps):
                self.stop() if self.running else self.start()
            self.asked += 1
            began = time.perf_counter()
            batch = next(batches, None)
            self.found.wait += time.perf_counter() - began if self.running else 0.0
            if batch is None:
                return
            yield batch

    def start(self) -> None:
        """Begin to count."""
        self.settle()
        if self.job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak of resident memory begins anew
        self.running, self.wall, self.cpu = True, time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Note what was counted."""
        self.settle()
        self.found.wall, self.found.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.running = False
        cuda = self.job.device == "cuda"
        self.found.memory = torch.cuda.max_memory_allocated() if cuda else status("VmHWM") - self.before

    def settle(self) -> None:
        """Let the GPU finish."""
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], Any]) -> float:
        """How long ``action`` takes."""
        self.settle()
        began = time.perf_counter()
        action()
        self.settle()
        return time.perf_counter() - began

    def save(self, action: Callable[[str], Any]) -> None:
        """Write two checkpoints; the first allocates what later ones reuse, so the second counts."""
        self.seconds(lambda: action("first"))
        self.found.stall = self.seconds(lambda: action("second"))


def status(name: str) -> float:
    """Bytes of memory that Linux reports of this process under ``name``; elsewhere its peak since it began."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * int(lines[name].split()[0])


class WatchedLoader(BlendedDataLoader):
    """The blended stream under a meter."""

    meter: Meter

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        yield from self.meter.watched(super().__iter__())


class Data(BlendDataModule):
    """One source, read by every arm through the same loader."""

    def __init__(self, job: Job, meter: Meter) -> None:
        batch = job.sequences * job.ranks
        self.job, self.meter = job, meter
        super().__init__(recipe(job), {"source": str(Path(job.folder) / "source")}, job.length, batch, job.sequences,
                         job.workers, validation_blocks=job.validation * batch)

    def loader(self, world_size: int, workers: int | None = None) -> BlendedDataLoader:
        """Of one rank."""
        loader = super().loader(world_size, workers)
        loader.__class__, loader.meter = WatchedLoader, self.meter
        return loader


def recipe(job: Job) -> Recipe:
    """Constant blend, cosine from `RATE` to a hundredth; AdamW as by default, which is as in `adamw`."""
    tokens = job.total * job.ranks * job.sequences * job.length
    return Recipe(tokens, Cosine(RATE), [Phase("only", Blend({"source": 1.0}))])


def adamw(model: Any) -> torch.optim.AdamW:
    """The same AdamW; by name, since Fabric's FSDP flattens what it shards."""
    named = list(model.named_parameters())
    norms = [value for name, value in named if "norm" in name or "ln_f" in name]
    matrices = [value for name, value in named if not ("norm" in name or "ln_f" in name)]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
