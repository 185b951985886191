"""Runs of `lit-cpt fit` as real processes: their configuration, their start, their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ledger
import yaml
from faults import ATTEMPT, FAULT, Fault

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import BLOCKS_PER_CHUNK, LENGTH, SIZES, VOCABULARY, chunk_sizes, ideal_stream, write_source
from nursery import Child, born

from lit_cpt.blends import BlendHistory
from lit_cpt.orders import SourceOrder
from lit_cpt.shards import ShardedDraws, shards_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GLOBAL, STEPS, INTERVAL = 6, 48, 5  # sequences in a step; steps of a run; steps from checkpoint to checkpoint
SEED, WINDOW = 42, 8  # defaults of `data`
VALIDATE = 8  # steps from validation to validation
GRACE = 6.0  # seconds that the other ranks have to notice a lost one, before the group is killed
LIMIT = 300.0  # seconds after which a process counts as hung
TINY = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": True}
BLENDS = {"first": {"a": 0.60, "b": 0.35, "c": 0.05}, "middle": {"a": 0.25, "b": 0.5, "c": 0.25},
          "late": {"a": 0.1, "b": 0.2, "c": 0.7}}
PHASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "two": [("first", {}), ("late", {"eta_over_eta_max": 0.2})],
    "three": [("first", {}), ("middle", {"fraction": 0.3}), ("late", {"eta_over_eta_max": 0.2})],
    "metric": [("first", {}), ("middle", {"metric": "val/a/loss < 3.75"}), ("late", {"eta_over_eta_max": 0.2})],
}


@dataclass(frozen=True)
class Shape:
    """How a run is laid out: what an exact resume may change.

    Args:
        ranks: Processes that train.
        accumulation: Micro-batches of a step.
        workers: Loader processes per rank.
    """

    ranks: int = 1
    accumulation: int = 1
    workers: int = 0

    @property
    def micro_batch(self) -> int:
        """Sequences that a rank runs at once."""
        return GLOBAL // (self.ranks * self.accumulation)

    def __str__(self) -> str:
        return f"{self.ranks}r {self.accumulation}a {self.workers}w"


@dataclass(frozen=True)
class Setup:
    """What a run trains: the part that stays the same through all its resumes.

    Args:
        recipe: Name of its phases, a key of `PHASES`.
        shards: Canonical shards of the stream.
        interval: Steps from checkpoint to checkpoint.
        aligned: Whether validations fall on the ends of steps.
    """

    recipe: str = "two"
    shards: int = 1
    interval: int = INTERVAL
    aligned: bool = True


@dataclass
class End:
    """How an attempt ended."""

    status: int
    fired: bool
    hung: bool
    output: str
    seconds: float


@dataclass
class Run:
    """A run's folder and what happened to it so far."""

    folder: Path
    setup: Setup
    sources: Mapping[str, str]
    forked: bool = False  # by a nursery, after the first attempt's imports
    attempts: int = 0
    temporary: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="exact-")))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        found = [path for path in (self.folder / "run" / "checkpoints").glob("*.ckpt") if not path.is_symlink()]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    @property
    def lines(self) -> list[ledger.Line]:
        """The run's ledger."""
        return ledger.read(self.folder)

    @property
    def fired(self) -> list[dict[str, Any]]:
        """The faults that struck."""
        path = self.folder / "fired.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def reached(self) -> int:
        """The last step that was trained."""
        made = [(line.attempt, line.step) for line in self.lines if line.digest]
        return max(made, default=(0, 0))[1]

    def write_config(self, shape: Shape) -> None:
        """Write ``run.yaml``: what differs from base and hardware/cpu."""
        phases = [{"name": name, "blend": {"weights": BLENDS[name]}, **({"when": when} if when else {})}
                  for name, when in PHASES[self.setup.recipe]]
        recipe = {"token_horizon": STEPS * GLOBAL * LENGTH,
                  "curve": {"class_path": "Cosine", "init_args": {"eta_max": 3e-3}}, "phases": phases}
        data = {"sources": dict(self.sources), "sequence_length": LENGTH, "global_batch": GLOBAL,
                "micro_batch": shape.micro_batch, "workers": shape.workers}
        data |= {"shards": self.setup.shards} if self.setup.shards > 1 else {}
        trainer: dict[str, Any] = {"callbacks": [*base_callbacks(self.setup.interval), *(
            {"class_path": f"faults.{name}", "init_args": {"folder": str(self.folder)}}
            for name in ("Recorder", "Striker"))], "logger": False}
        trainer["val_check_interval"] = VALIDATE * shape.accumulation if self.setup.aligned else 0.1
        config = {"recipe": recipe, "model": {"architecture": TINY}, "data": data, "trainer": trainer}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, shape: Shape, *more: str) -> list[str]:
        """The command of this run; resuming it adds ``--ckpt_path last``."""
        return [sys.executable, "-m", "lit_cpt", "fit", "--config", "base", "--config", "hardware/cpu", "--config",
                "run.yaml", "--run", "run", "--trainer.accelerator", "cpu", "--trainer.devices", str(shape.ranks),
                "--trainer.strategy", "ddp" if shape.ranks > 1 else "auto", *more]

    def attempt(self, shape: Shape, fault: Fault | None = None, more: tuple[str, ...] = ()) -> End:
        """Start or resume the run, and see it to its end.

        Before the first checkpoint there is nothing to resume: lit-cpt says so, and to leave ``--ckpt_path`` out.
        """
        self.attempts += 1
        self.write_config(shape)
        resume = ("--ckpt_path", "last") if self.checkpoints else ()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(self.temporary),
                       "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]), ATTEMPT: str(self.attempts),
                       FAULT: fault.dump() if fault else ""}
        log = self.folder / f"attempt{self.attempts}.log"
        began = time.monotonic()
        process = self.start(self.command(shape, *resume, *more), shape.ranks, environment, log)
        try:
            hung = self.watch(process, fault)
        finally:
            kill_group(process.pid, signal.SIGKILL)
            process.wait()
        fired = any(strike["attempt"] == self.attempts for strike in self.fired)
        return End(process.returncode, fired, hung, log.read_text(errors="replace"), time.monotonic() - began)

    def start(self, command: list[str], ranks: int, environment: Mapping[str, str],
              log: Path) -> subprocess.Popen[bytes] | Child:
        """Start a process, the leader of a group."""
        if self.forked:
            return born({"arguments": command[command.index("fit") :], "ranks": ranks, "folder": str(self.folder),
                         "log": str(log)}, environment)
        with log.open("wb") as file:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=file, stderr=subprocess.STDOUT,
                                    stdin=subprocess.DEVNULL, start_new_session=True)

    def watch(self, process: subprocess.Popen[bytes] | Child, fault: Fault | None) -> bool:
        """Wait for the end; strike from outside if asked. Says whether the run hung."""
        began, struck = time.monotonic(), 0.0
        while process.poll() is None:
            time.sleep(0.005)
            now = time.monotonic()
            if not struck:
                struck = self.strike(process, fault, now - began)
            # One rank was killed: the others wait in a collective for it. What started them (SLURM, torchrun)
            # would kill the group after a while, and so do we.
            if struck and fault is not None and fault.action in ("kill", "raise") and now - struck > GRACE:
                return False
            if now - began > LIMIT:
                return True
        waited = time.monotonic()
        while group_lives(process.pid) and time.monotonic() - waited < GRACE:
            time.sleep(0.02)
        return False

    def strike(self, process: subprocess.Popen[bytes] | Child, fault: Fault | None, passed: float) -> float:
        """When the fault struck; a fault from ``outside`` strikes here. 0 if it has not yet.

        From outside it strikes ``delay`` after its step; in step 0, while the run starts, or at its first step.
        """
        if fault is None:
            return 0.0
        if fault.place != "outside":
            return time.monotonic() if any(one["attempt"] == self.attempts for one in self.fired) else 0.0
        made = any(line.attempt == self.attempts and line.step >= fault.step for line in self.lines)
        if not made and (fault.step or passed < fault.delay):
            return 0.0
        time.sleep(fault.delay if fault.step else 0.0)
        if process.poll() is not None:
            return 0.0
        with (self.folder / "fired.jsonl").open("a") as file:
            file.write(json.dumps({"attempt": self.attempts, "detail": "", **asdict(fault)}) + "\n")
        kill_group(process.pid, fault.signal)
        return time.monotonic()

    def judged(self, reference: Run, legs: list[tuple[int, dict[str, float]]], bits: bool = True,
               lost_at_most: Callable[[int], int] | None = None) -> ledger.Verdict:
        """The verdict on the run, against the ideal stream and an uninterrupted run."""
        lines = self.lines
        verdict = ledger.judge(lines, ideal_samples(legs, self.setup.shards), STEPS, lost_at_most)
        ledger.compare(verdict, lines, reference.lines, bits)
        return verdict

    def remove(self) -> None:
        """Delete the run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.clean()

    def clean(self) -> None:
        """Delete what killed processes left in their temporary folder."""
        shutil.rmtree(self.temporary, ignore_errors=True)


def ideal_samples(legs: list[tuple[int, dict[str, float]]], shards: int) -> list[ledger.Name]:
    """(source, row) of every sample of a run, by the pure functions alone: no loader, no litdata, no process."""
    if shards == 1:
        return ideal_stream(legs, STEPS * GLOBAL)
    history = BlendHistory(tuple(SIZES), legs[0][1], SEED)
    history.plan(0, legs)
    cut = [shards_of(rows, shards) for rows in SIZES.values()]
    orders = [SourceOrder(name, chunk_sizes(rows), SEED, WINDOW, sharded=ShardedDraws(history, index, rows, cut[index]))
              for index, (name, rows) in enumerate(SIZES.items())]
    turns: Counter[tuple[int, int]] = Counter()
    samples = []
    drawn = zip(*history.draws(0, STEPS * GLOBAL, history.counts(0)), strict=True)
    for position, (source, draw) in enumerate((int(source), int(draw)) for source, draw in drawn):
        shard = position % cut[source]
        chunk, block = orders[source].locate(draw, shard, turns[source, shard])
        turns[source, shard] += 1
        samples.append((source, chunk * BLOCKS_PER_CHUNK + block))
    return samples


def base_callbacks(interval: int) -> list[dict[str, Any]]:
    """The callbacks of configs/base.yaml, saving every ``interval`` steps."""
    callbacks = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text())["trainer"]["callbacks"]
    for item in callbacks:
        if item["class_path"].endswith(".RunCheckpointCallback"):
            item.setdefault("init_args", {})["every_n_steps"] = interval
    return callbacks


def prepare_sources(folder: Path) -> dict[str, str]:
    """The tests' three sources, whose blocks name themselves."""
    return {name: str(write_source(folder / name, number, rows)) for number, (name, rows) in enumerate(SIZES.items())}


def kill_group(group: int, number: int) -> None:
    """Signal a process group that may be gone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def group_lives(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
