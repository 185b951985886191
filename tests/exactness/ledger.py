"""The ledger of a run: which samples every optimizer step was trained on, and the judgement of it.

A run writes down each step of each rank (`faults.Recorder`): the samples, and the weights after them. It is killed
and resumed as often as a scenario likes; each process (or group of ranks) is an *attempt*. What a killed attempt
trained after the last whole checkpoint is lost with it and trained again, so the *effective* run is, for each step,
what the last attempt that made it trained.

Everything here is pure: no torch, no Lightning, no process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

Name = tuple[int, int]  # (source, row) of a block


@dataclass(frozen=True)
class Line:
    """One optimizer step as one rank made it.

    Args:
        attempt: Number of the process (group) that made it, from 1.
        rank: Which rank.
        world: Of how many.
        step: Number of the step, from 1.
        names: Samples of each of its micro-batches.
        eta: Learning rate it was made with.
        digest: Hash of weights and AdamW moments after it; empty if the rank did not come to the end of its update.
    """

    attempt: int
    rank: int
    world: int
    step: int
    names: tuple[tuple[Name, ...], ...]
    eta: float
    digest: str = ""

    @property
    def samples(self) -> list[Name]:
        """Its samples in the order they were trained."""
        return [name for micro_batch in self.names for name in micro_batch]


@dataclass
class Verdict:
    """What a ledger proves.

    Args:
        steps: Optimizer steps of the effective run.
        duplicated: Samples that it trained more often than the ideal stream has them.
        missed: Samples of the ideal stream that it did not train.
        retrained: Most steps that one attempt had to make again.
        identical: Steps (of all attempts and ranks) whose weights and moments equal the reference's to the last bit.
        compared: Steps that were compared so.
        faults: What is wrong, in sentences; empty if the run was exact.
    """

    steps: int = 0
    duplicated: int = 0
    missed: int = 0
    retrained: int = 0
    identical: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)


def parse(text: str, vocabulary: int = 64) -> list[Line]:
    """Lines of one rank; blocks name themselves (`conftest.named_block`)."""
    lines: list[Line] = []
    for raw in text.splitlines():
        values = json.loads(raw)
        if "digest" in values:  # of the step that the line before began
            assert (values["attempt"], values["step"]) == (lines[-1].attempt, lines[-1].step), raw
            lines[-1] = replace(lines[-1], digest=values["digest"])
            continue
        names = tuple(tuple((head[0], (head[1] * vocabulary + head[2]) * vocabulary + head[3]) for head in micro_batch)
                      for micro_batch in values.pop("heads"))
        lines.append(Line(names=names, **values))
    return lines


def read(folder: Path) -> list[Line]:
    """All lines of a run, of every rank."""
    return [line for path in sorted(folder.glob("rank*.jsonl")) for line in parse(path.read_text())]


def together(lines: Iterable[Line]) -> dict[tuple[int, int], list[Line]]:
    """(attempt, step) -> its lines, rank by rank; without steps that no rank has made."""
    groups: dict[tuple[int, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.attempt, line.step), []).append(line)
    return {key: sorted(group, key=lambda line: line.rank) for key, group in sorted(groups.items())
            if any(line.digest for line in group)}


def is_whole(group: Sequence[Line]) -> bool:
    """Whether every rank has written its line; a kill may fall between them."""
    return [line.rank for line in group] == list(range(group[0].world))


def effective(lines: Iterable[Line]) -> dict[int, list[Line]]:
    """Step -> lines of the last attempt that made it."""
    return {step: group for (_, step), group in together(lines).items()}


def wrong_samples(group: Sequence[Line], wanted: Sequence[Name]) -> str | None:
    """What is wrong with the samples of a step, or None; of one rank in order, of several as a set."""
    got = [name for line in group for name in line.samples]
    if len(group) == 1 and group[0].world == 1:
        wrong = got != list(wanted)
    elif is_whole(group):
        wrong = Counter(got) != Counter(wanted)
    else:
        wrong = bool(Counter(got) - Counter(wanted))
    if not wrong:
        return None
    more, less = Counter(got) - Counter(wanted), Counter(wanted) - Counter(got)
    kind = f"{sorted(more.elements())} instead of {sorted(less.elements())}" if more or less else "another order"
    return f"attempt {group[0].attempt}, step {group[0].step}: {kind}"


def judge(lines: Sequence[Line], ideal: Sequence[Name], steps: int,
          lost_at_most: Callable[[int], int] | None = None) -> Verdict:
    """Compare a run with the ideal stream.

    Args:
        lines: Its ledger.
        ideal: Every sample of the stream, in order, shape (steps x global batch,).
        steps: Optimizer steps of the whole run.
        lost_at_most: Attempt -> steps that it may have to make again; None if any number is right.
    """
    verdict = Verdict()
    batch = len(ideal) // steps
    groups, last = together(lines), effective(lines)
    verdict.steps = len(last)
    for (_attempt, step), group in groups.items():
        problem = wrong_samples(group, ideal[(step - 1) * batch : step * batch])
        verdict.faults += [problem] if problem else []
        if len({line.digest for line in group if line.digest}) > 1:
            verdict.faults.append(f"attempt {group[0].attempt}, step {step}: the ranks' weights differ")
    verdict.faults += [f"step {step} lacks a rank" for step, group in last.items() if not is_whole(group)]
    trained = Counter(name for group in last.values() for line in group for name in line.samples)
    verdict.duplicated = sum((trained - Counter(ideal)).values())
    verdict.missed = sum((Counter(ideal) - trained).values())
    if verdict.duplicated or verdict.missed:
        verdict.faults.append(f"{verdict.duplicated} samples duplicated, {verdict.missed} missed")
    if sorted(last) != list(range(1, steps + 1)):
        verdict.faults.append(f"steps made: {sorted(last)}; they should be 1 to {steps}")
    check_attempts(verdict, list(groups), lost_at_most)
    return verdict


def check_attempts(verdict: Verdict, made: Sequence[tuple[int, int]],
                   lost_at_most: Callable[[int], int] | None) -> None:
    """Each attempt's steps follow each other, and it begins where the last one left off, or a little before."""
    by_attempt: dict[int, list[int]] = {}
    for attempt, step in made:
        by_attempt.setdefault(attempt, []).append(step)
    reached = 0
    for attempt, steps in by_attempt.items():
        if steps != list(range(steps[0], steps[-1] + 1)):
            verdict.faults.append(f"attempt {attempt} made the steps {steps}, not one after another")
        lost = reached + 1 - steps[0]
        verdict.retrained = max(verdict.retrained, lost)
        if lost_at_most is not None and lost > lost_at_most(attempt):
            verdict.faults.append(f"attempt {attempt} began with step {steps[0]} although step {reached} was made: "
                                  f"{lost} steps lost, at most {lost_at_most(attempt)} may be")
        if steps[0] > reached + 1:
            verdict.faults.append(f"attempt {attempt} began with step {steps[0]}, the last one ended at {reached}")
        reached = steps[-1]


def compare(verdict: Verdict, lines: Sequence[Line], reference: Sequence[Line], bits: bool = True) -> None:
    """Compare every step with an uninterrupted run: the rate, and with ``bits`` weights and moments to the last bit."""
    wanted = {line.step: line for line in reference if line.rank == 0}
    lines = sorted((line for line in lines if line.digest), key=lambda line: (line.attempt, line.step))
    extra = sorted({line.step for line in lines} - set(wanted))
    verdict.faults += [f"the uninterrupted run has no steps {extra}"] if extra else []
    lines = [line for line in lines if line.step in wanted]
    rates = [line for line in lines if line.eta != wanted[line.step].eta]
    if rates:
        first = rates[0]
        verdict.faults.append(f"{len(rates)} steps made at another rate, the first in attempt {first.attempt}, step "
                              f"{first.step}: eta {first.eta!r}, uninterrupted {wanted[first.step].eta!r}")
    if not bits:
        return
    unlike = [line for line in lines if line.digest != wanted[line.step].digest]
    verdict.compared, verdict.identical = len(lines), len(lines) - len(unlike)
    if unlike:
        verdict.faults.append(f"weights or moments differ from the uninterrupted run's first at attempt "
                              f"{unlike[0].attempt}, step {unlike[0].step}")
