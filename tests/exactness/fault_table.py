"""The table of faults: what befell a run of `lit-cpt fit`, what it did, what it cost, and whether its ranks agreed.

    python tests/exactness/fault_table.py [--ranks 1 2] [--only "NaN|disk"] [--forked]

Each fault strikes the last rank alone. Exits with 1 if a run did anything else than is expected of it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from chaos import Bench
from runs import GLOBAL, HERE, LENGTH, STEPS, End, Run, Setup, Shape
from tabulate import tabulate

sys.path.insert(0, str(HERE.parent))
from conftest import small_disk
from harness_world import build_tokenizer

from lit_cpt.evaluations import evaluations_in
from lit_cpt.events import read_events
from lit_cpt.ledger import read_ledger

STEP = 24  # the step that is struck
TOKENS = GLOBAL * LENGTH  # of a step


@dataclass(frozen=True)
class Case:
    """A fault, and what is expected of a run.

    Args:
        name: Of the fault.
        kind: Of the `mishaps.Mishap`; empty if the fault is none of those.
        did: What the run did, in words.
        says: Pattern of what it said.
        status: It ended with; if that is not 0, the run is resumed and has to end well.
        guard: Settings of its StabilityCallback.
        data: Settings of its data module.
        step: That is struck.
        exact: Whether it has to end as an undisturbed run does, to the last bit.
    """

    name: str
    kind: str
    did: str
    says: str
    status: int = 0
    guard: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    step: int = STEP
    exact: bool = True


RESUME = r"(?s:.*)resume with: lit-cpt fit .*--ckpt_path last"
CASES = [
    Case("NaN batch", "nan", "skipped the step", rf"step {STEP}: loss and gradient norm not finite; skipped",
         exact=False),
    Case("spike batch", "spike", "skipped the step", rf"step {STEP}: loss .* deviations above its median.*; skipped",
         guard={"spike": "skip"}, exact=False),
    Case("poisoned source", "poison", "went back, passed over its batches",
         r"rolled back: go on from .*step-00000020.ckpt, and pass over global batches 23 to 24",
         guard={"spike": "rollback"}, exact=False),
    Case("exploding learning rate", "explode", "went back once, then ended; resumed",
         r"training is unstable at step 28: the run was rolled back 1 times already. The newest whole checkpoint from "
         r"before is .*step-00000025.ckpt(?s:.*)resume with: lit-cpt fit .*--ckpt_path .*step-00000025.ckpt", 1,
         {"spike": "rollback", "patience": 1}, step=27),
    Case("stalled loader", "stall", "ended after data.timeout; resumed",
         rf"no batch came within 2 s: rank \d waits for samples of .*, at sample {22 * GLOBAL} of the stream"
         rf".*{RESUME}", 1, data={"timeout": 2.0}, step=22),
    Case("evaluation failure", "", "recorded it, trained on", "hellaswag cannot be evaluated"),
    Case("disk full", "", "kept the older checkpoint, ended; resumed",
         rf"the disk is full .* go on from .*step-\d+.ckpt.*{RESUME}", 1),
    Case("out of memory in a step", "memory", "ended; resumed",
         rf"the memory is full .*micro_batch.*activation_checkpointing.*step-000000\d\d.ckpt.*{RESUME}", 1),
]


class Troubled(Run):
    """A run that something befalls."""

    case: Case

    def write_config(self, shape: Shape) -> None:
        """The config of any run, with a case's changes."""
        super().write_config(shape)
        path = self.folder / "run.yaml"
        config = yaml.safe_load(path.read_text())
        callbacks = config["trainer"]["callbacks"]
        for item in callbacks:
            if item["class_path"].endswith(".StabilityCallback"):
                item["init_args"] = self.case.guard
        if self.case.kind:
            callbacks.append({"class_path": "mishaps.Mishap",
                              "init_args": {"kind": self.case.kind, "step": self.case.step}})
        if self.case.name == "evaluation failure":
            build_tokenizer(self.folder / "tokenizer")
            callbacks.append({"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": {
                "suite": {"tasks": ["hellaswag"], "data": str(self.folder / "nothing")},
                "tokenizer": str(self.folder / "tokenizer")}})
        config["data"] |= self.case.data
        path.write_text(yaml.safe_dump(config, sort_keys=False))


@dataclass
class Outcome:
    """A line of the table."""

    case: Case
    ranks: int
    statuses: list[int]
    dropped: int
    again: int
    agreed: str
    weights: str
    faults: list[str]

    @property
    def row(self) -> list[Any]:
        """Its cells."""
        return [self.case.name, self.ranks, self.case.did, ", ".join(map(str, self.statuses)), self.dropped,
                self.again, self.agreed, self.weights, "; ".join(self.faults) or "-"]


HEAD = ["fault", "ranks", "the run", "exit", "tokens left out", "tokens again", "rank 1 as rank 0", "weights", "wrong"]


def play(bench: Bench, case: Case, ranks: int) -> Outcome:
    """One run, resumed where it ended."""
    run = Troubled(bench.folder / f"{case.name}-{ranks}".replace(" ", "-"), Setup(), bench.sources, bench.forked)
    run.case = case
    reference = bench.reference(Setup(), Shape(ranks))
    ends = list(attempts(run, Shape(ranks), reference))
    run.clean()
    alike, apart = agreement(run)
    same = [digest for *_, digest in digests(run, 0)[-1:]] == [digests(reference, 0)[-1][-1]]
    events, ledger = read_events(run.folder / "run"), read_ledger(run.folder / "run")
    skipped = sum(event["event"] == "spike" and event["skipped"] for event in events)
    passed = sum(stop - first for first, stop in (ledger or [{}])[-1].get("passed_over", ()))
    again = len(digests(run, 0)) - STEPS
    faults = [*expected(case, ends, same, run), *([f"{apart} steps differ on rank 1"] if apart else [])]
    return Outcome(case, ranks, [end.status for end in ends], skipped * TOKENS + passed * LENGTH, again * TOKENS,
                   "-" if ranks == 1 else f"{alike} of {alike + apart} steps",
                   "as undisturbed" if same else "of other batches", faults)


def attempts(run: Troubled, shape: Shape, reference: Run) -> Iterator[End]:
    """The run, and its resume if it did not end well."""
    if run.case.name != "disk full":
        yield (end := run.attempt(shape))
    else:
        size = reference.checkpoints[-1].stat().st_size
        folder = run.folder / "run" / "checkpoints"
        with small_disk(folder, int(2.5 * size / 4096) * 4096):
            yield (end := run.attempt(shape))
            subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
            yield run.attempt(shape)
        return
    if end.status:
        yield run.attempt(shape, more=named(end))


def named(end: End) -> tuple[str, ...]:
    """What the run said to resume with: the checkpoint, after the ``last`` that every resume here is given."""
    found = re.findall(r"(--ckpt_path) (\S+)$", end.output, re.M)
    return tuple(found[-1]) if found else ()


def expected(case: Case, ends: Sequence[End], same: bool, run: Run) -> list[str]:
    """What was not as it should be."""
    wrong = [] if [end.status for end in ends] == ([1, 0] if case.status else [0]) else [
        f"ended with {[end.status for end in ends]}"]
    if not re.search(case.says, ends[0].output):
        wrong.append(f"did not say {case.says!r}; its output ends {ends[0].output[-3000:]!r}")
    if case.status and "Traceback" in ends[0].output:
        wrong.append("showed a traceback")
    if any(end.hung for end in ends):
        wrong.append("hung")
    if case.exact and not same:
        wrong.append("other weights than those of an undisturbed run")
    if case.name == "evaluation failure" and not any(one.failures for one in evaluations_in(run.folder / "run")[0]):
        wrong.append("recorded no failure")
    return wrong


def digests(run: Run, rank: int) -> list[tuple[int, int, str]]:
    """Attempt, step and hash of weights and moments, of each update that a rank made, in order."""
    return [(line.attempt, line.step, line.digest) for line in run.lines if line.rank == rank and line.digest]


def agreement(run: Run) -> tuple[int, int]:
    """Updates after which rank 1 was as rank 0 to the last bit, and others; an end cuts one short on one of them."""
    pairs = [(one, other) for number in {line.attempt for line in run.lines}
             for one, other in zip(*([step for step in digests(run, rank) if step[0] == number] for rank in (0, 1)),
                                   strict=False)]
    alike = sum(one == other for one, other in pairs)
    return alike, len(pairs) - alike


def faults(folder: Path, ranks: Iterable[int], only: str = "", forked: bool = False) -> list[Outcome]:
    """Play the cases; prints a line for each, and what went wrong."""
    bench, outcomes = Bench(folder, forked), []
    for case in [case for case in CASES if re.search(only, case.name)]:
        for number in ranks:
            outcomes.append(outcome := play(bench, case, number))
            print(" | ".join(map(str, outcome.row[:-1])), flush=True)
            for fault in outcome.faults:
                print(f"{case.name}, {number} ranks: {fault}", flush=True)
    return outcomes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--forked", action="store_true", help="fork a process that has done the imports: faster")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        outcomes = faults(folder, given.ranks, given.only, given.forked)
    print(tabulate([outcome.row for outcome in outcomes], HEAD, tablefmt="github"))
    sound = sum(not outcome.faults for outcome in outcomes)
    print(f"faults: {sound}/{len(outcomes)}")
    return int(sound < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
