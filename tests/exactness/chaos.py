"""Kills runs of `lit-cpt fit` again and again, resumes them as documented, and compares what they trained.

    python tests/exactness/chaos.py --kills 200 --seed 1

Every scenario is one run with a layout, a recipe and several faults, all drawn from the seed. Its ledger is compared
with the ideal stream, and its weights and AdamW moments after every step with an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from faults import IN_SAVE, IN_STEP, IN_SWITCH, Fault
from ledger import Verdict
from runs import BLENDS, GLOBAL, LENGTH, PHASES, STEPS, End, Run, Setup, Shape, prepare_sources
from tabulate import tabulate

from lit_cpt.blends import Blend
from lit_cpt.events import read_events
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

KILLS_PER_RUN = 7
CLOSE = 1e-6  # largest difference of weights after a change of topology: sums in another order
PLACES = (*IN_STEP, *IN_SWITCH, *IN_SAVE, *["save:event"] * 3, "validate", "worker", "start", "outside", "outside")


@dataclass(frozen=True)
class Scenario:
    """One run and what is to happen to it.

    Args:
        number: Its number; with the seed it decides everything.
        setup: What is trained.
        shapes: Layout of each attempt in turn, the last one for all that follow.
        places: Where the faults are to strike, in turn.
        seed: Of the steps, the actions and the rest.
    """

    number: int
    setup: Setup
    shapes: tuple[Shape, ...]
    places: tuple[str, ...]
    seed: int

    def shape(self, attempt: int) -> Shape:
        """Layout of an attempt, counted from 0."""
        return self.shapes[min(attempt, len(self.shapes) - 1)]

    @property
    def steady(self) -> bool:
        """Whether rank count and accumulation stay the same, so that results are equal to the last bit."""
        return len({(shape.ranks, shape.accumulation) for shape in self.shapes}) == 1

    @property
    def layout(self) -> str:
        """The layouts in words."""
        return " > ".join(dict.fromkeys(map(str, self.shapes)))


@dataclass
class Result:
    """What came of a scenario."""

    scenario: Scenario
    fired: list[dict[str, Any]]
    attempts: int
    verdict: Verdict
    weights: str
    faults: list[str]
    seconds: float
    folder: str = ""

    @property
    def kills(self) -> int:
        """The faults that were kills; the others are SIGTERM, errors, and killed loader processes."""
        return sum(fault["action"].startswith("kill") for fault in self.fired)

    @property
    def passed(self) -> bool:
        """Whether the run was exact."""
        return not self.faults


@dataclass
class Bench:
    """A work folder: sources, and one uninterrupted run for each layout and setup."""

    folder: Path
    forked: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    references: dict[Any, Run] = field(default_factory=dict)
    locks: dict[Any, threading.Lock] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.sources = prepare_sources(self.folder / "sources")

    def reference(self, setup: Setup, shape: Shape) -> Run:
        """The uninterrupted run; made when it is first asked for.

        Raises:
            RuntimeError: It did not end well.
        """
        key = (setup, shape.ranks, shape.accumulation)
        with self.guard:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self.references:
                name = "-".join(map(str, ("reference", *asdict(setup).values(), shape.ranks, shape.accumulation)))
                run = Run(self.folder / name, setup, self.sources)
                end = run.attempt(replace(shape, workers=0))
                run.clean()
                if end.status:
                    raise RuntimeError(f"the uninterrupted run failed with {end.status}:\n{end.output}")
                self.references[key] = run
        return self.references[key]


def switch_steps(setup: Setup, reference: Run) -> list[int]:
    """First step of each phase: of the recipe alone, or of the uninterrupted run where a metric decides."""
    if setup.recipe == "metric":
        return [0, *(event["step"] for event in read_events(reference.folder / "run") if event["event"] == "phase")]
    phases = [Phase(name, Blend(BLENDS[name]), Trigger(**when) if when else None)
              for name, when in PHASES[setup.recipe]]
    return Recipe(STEPS * GLOBAL * LENGTH, Cosine(3e-3), phases).start_steps(GLOBAL * LENGTH)


def legs_of(setup: Setup, reference: Run) -> list[tuple[int, dict[str, float]]]:
    """Start (sample) and weights of each phase."""
    names = [name for name, _ in PHASES[setup.recipe]]
    return [(step * GLOBAL, BLENDS[name]) for name, step in zip(names, switch_steps(setup, reference), strict=True)]


def drawn_fault(random_: random.Random, place: str, shape: Shape, reached: int, switches: Sequence[int]) -> Fault:
    """A fault at ``place``, some steps past ``reached``; at the next switch if it belongs there."""
    step = min(max(1, reached + random_.randint(-1, 6)), STEPS - 1)
    turn = random_.randrange(6 if place == "save:event" else 3)
    if place in IN_SWITCH:
        coming = [switch for switch in switches[1:] if switch > reached]
        if not coming:
            return drawn_fault(random_, random_.choice(IN_STEP), shape, reached, switches)
        step = coming[0]
    if place == "worker" and shape.workers == 0:
        place = "backward"
    if place == "outside":
        early = random_.random() < 0.25
        return Fault(place, 0 if early else step, random_.choice(("kill-all", "kill-all", "kill-all", "term-all")),
                     delay=random_.uniform(0, 9) if early else random_.uniform(0, 0.03))
    rank = random_.randrange(shape.ranks) if place not in IN_SAVE else 0
    actions = ["kill-all"] * 3 + ["kill"] * (2 * (shape.ranks > 1))
    if place in (*IN_STEP, *IN_SWITCH, "validate"):
        actions += ["raise", "term-all" if shape.ranks == 1 else "term"]
    action = {"save:bytes": "kill", "worker": "raise"}.get(place) or random_.choice(actions)
    return Fault(place, step, action, rank, turn, round(random_.uniform(0.02, 0.98), 3))


def taken(places: list[str], reached: int, switches: Sequence[int]) -> str:
    """The next of ``places``, taken out; one in a switch waits until a switch is near, or nothing else is left."""
    near = any(reached < switch <= reached + 8 for switch in switches[1:])
    fits = [index for index, place in enumerate(places) if (place in IN_SWITCH) == near]
    return places.pop(fits[0] if fits else 0)


def scenarios(kills: int, seed: int, per_run: int = KILLS_PER_RUN) -> Iterator[Scenario]:
    """As many scenarios as the kills need; layouts take turns, so that each is there."""
    kinds: list[tuple[str, int, tuple[Shape, ...]]] = [
        ("two", 1, (Shape(1, 1, 2),)),
        ("three", 2, (Shape(2, 1, 0),)),
        ("metric", 1, (Shape(1, 3, 3),)),
        ("three", 1, (Shape(1, 1, 0), Shape(2, 1, 2), Shape(1, 3, 3), Shape(2, 3, 0), Shape(1, 1, 2))),
        ("metric", 1, (Shape(1, 1, 0), Shape(1, 1, 3), Shape(1, 1, 2))),
        ("two", 1, (Shape(2, 3, 2),)),
        ("two", 2, (Shape(2, 1, 0), Shape(1, 1, 3), Shape(2, 3, 2))),
        ("three", 1, (Shape(1, 1, 0),)),
        ("metric", 1, (Shape(2, 1, 2),)),
        ("three", 2, (Shape(1, 3, 2),)),
        ("two", 1, (Shape(2, 1, 0), Shape(1, 1, 3), Shape(2, 1, 2))),
    ]
    master = random.Random(seed)
    deck: list[str] = []
    runs = -(-kills // per_run)
    for number in range(runs):
        recipe, shards, shapes = kinds[number % len(kinds)]
        count = kills * (number + 1) // runs - kills * number // runs
        while len(deck) < count:
            fresh = list(PLACES)
            master.shuffle(fresh)
            deck += fresh
        places, deck = tuple(deck[:count]), deck[count:]
        aligned = recipe == "metric" or number % 2 == 0 or len(shapes) > 1
        setup = Setup(recipe, shards, aligned=aligned)
        yield Scenario(number, setup, shapes, places, master.randrange(1 << 30))


def wrong_end(fault: Fault | None, end: End) -> str | None:
    """What is wrong with the way an attempt ended, or None."""
    if end.hung:
        return "hung"
    if not end.fired:
        return None if end.status == 0 else f"ended with {end.status} though nothing struck"
    assert fault is not None
    may_end_well = fault.place in ("outside", "worker") or fault.action.startswith("term")  # it may come too late
    if end.status == 0 and not may_end_well:
        return f"ended well though {fault.place} struck"
    if fault.action == "raise" and fault.place != "worker" and "injected" not in end.output:
        return "does not tell the error"
    return None


def play(bench: Bench, scenario: Scenario) -> Result:
    """Run a scenario to its end and judge it."""
    began = time.monotonic()
    random_ = random.Random(scenario.seed)
    first = scenario.shapes[0] if scenario.steady else Shape()
    reference = bench.reference(scenario.setup, first)
    switches = switch_steps(scenario.setup, reference)
    run = Run(bench.folder / f"run-{scenario.number}", scenario.setup, bench.sources, bench.forked)
    places, wrong, end = list(scenario.places), [], None
    while end is None or end.status != 0:
        shape = scenario.shape(run.attempts)
        place = taken(places, run.reached, switches) if places else None
        fault = drawn_fault(random_, place, shape, run.reached, switches) if place else None
        end = run.attempt(shape, fault)
        if (problem := wrong_end(fault, end)) is not None:
            wrong.append(f"attempt {run.attempts} ({shape}, {fault}): {problem}; its output ends "
                         f"{end.output[-1500:]!r}")
            if end.hung or not end.fired:
                break
    run.clean()
    verdict = run.judged(reference, legs_of(scenario.setup, reference), scenario.steady,
                         lambda attempt: may_lose(run, attempt))
    weights, unlike = compared_weights(run, reference, scenario.steady)
    faults = [*wrong, *verdict.faults, *unlike]
    return Result(scenario, run.fired, run.attempts, verdict, weights, faults, time.monotonic() - began,
                  str(run.folder))


def may_lose(run: Run, attempt: int) -> int:
    """Steps that an attempt may have to make again: none after a SIGTERM during training, else an interval."""
    saved = [fault for fault in run.fired if fault["attempt"] == attempt - 1 and fault["action"].startswith("term")
             and fault["place"] in (*IN_STEP, *IN_SWITCH, "validate")]
    return 0 if saved else run.setup.interval


def compared_weights(run: Run, reference: Run, bits: bool) -> tuple[str, list[str]]:
    """How the final weights and moments compare with the uninterrupted run's, and what is wrong with them."""
    if not (run.folder / "final.pt").exists():
        return "none", ["the run has no final weights"]
    mine, theirs = (torch.load(one.folder / "final.pt") for one in (run, reference))
    furthest = max(float((one - other).abs().max()) for name in theirs
                   for one, other in zip(mine[name], theirs[name], strict=True))
    if bits:
        equal = all(torch.equal(one, other) for name in theirs
                    for one, other in zip(mine[name], theirs[name], strict=True))
        return ("identical", []) if equal else ("differ", [f"final weights or moments differ by {furthest:g}"])
    unlike = [] if furthest <= CLOSE else [f"final weights or moments differ by {furthest:g}, more than {CLOSE:g}"]
    return f"within {furthest:.0e}", unlike


def played(bench: Bench, scenario: Scenario) -> Result:
    """`play`, whose own failure is a result too."""
    try:
        return play(bench, scenario)
    except Exception as error:
        return Result(scenario, [], 0, Verdict(), "none", [f"{type(error).__name__}: {error}"], 0.0)


def row(result: Result) -> dict[str, Any]:
    """A line of the table."""
    short = {"kill-all": "", "kill": " one", "raise": " error", "term": " term", "term-all": " term all"}
    struck = ", ".join(" ".join(filter(None, [fault["place"], fault["detail"]])) + f"@{fault['step']}"
                       + short[fault["action"]] for fault in result.fired)
    return {"run": result.scenario.number, "layout": result.scenario.layout, "phases": result.scenario.setup.recipe,
            "shards": result.scenario.setup.shards, "faults": len(result.fired), "kills": result.kills,
            "attempts": result.attempts, "again": result.verdict.retrained,
            "twice": result.verdict.duplicated, "missed": result.verdict.missed, "weights": result.weights,
            "exact": "yes" if result.passed else "NO", "s": round(result.seconds), "where": struck}


def chaos(kills: int, seed: int, folder: Path, jobs: int = 2, only: int | None = None,
          forked: bool = False) -> list[Result]:
    """Play the scenarios of a seed; prints a line for each."""
    bench = Bench(folder, forked)
    chosen = [one for one in scenarios(kills, seed) if only is None or one.number == only]
    results = []
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda scenario: played(bench, scenario), chosen):
            results.append(result)
            print(" | ".join(f"{key} {value}" for key, value in row(result).items()), flush=True)
            for fault in result.faults:
                print(f"    {fault}", flush=True)
            if result.faults:
                print(f"    kept in {result.folder}; again: python tests/exactness/chaos.py --kills {kills} "
                      f"--seed {seed} --only {result.scenario.number}", flush=True)
            else:
                shutil.rmtree(result.folder)
    return results


def summary(results: Sequence[Result]) -> str:
    """The totals, by layout."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        kind = "changed layout" if len(result.scenario.shapes) > 1 else f"{result.scenario.shapes[0].ranks} rank(s)"
        groups.setdefault(kind, []).append(result)
    table = []
    for kind, group in [*groups.items(), ("all", list(results))]:
        tried = sum(len(result.fired) for result in group)
        survived = sum(len(result.fired) for result in group if result.passed)
        table.append([kind, len(group), tried, sum(result.kills for result in group), survived,
                      sum(result.verdict.duplicated for result in group),
                      sum(result.verdict.missed for result in group),
                      f"{sum(r.verdict.identical for r in group):,} of {sum(r.verdict.compared for r in group):,}"])
    return tabulate(table, ["runs of", "runs", "faults", "of them kills", "survived", "duplicated", "missed",
                            "steps identical to the last bit"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=21)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", type=int, help="play this scenario alone")
    parser.add_argument("--forked", action="store_true",
                        help="kill forks of a process that has done the imports: ten times faster")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="work here; otherwise in a temporary folder")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    results = chaos(given.kills, given.seed, folder, given.jobs, given.only, given.forked)
    print(f"\n{summary(results)}\n")
    if given.json:
        given.json.write_text(json.dumps([{**row(one), "fired": one.fired, "wrong": one.faults,
                                           "verdict": asdict(one.verdict)} for one in results], indent=1))
    tried = sum(len(result.fired) for result in results)
    survived = sum(len(result.fired) for result in results if result.passed)
    exact = all(result.passed for result in results)
    if exact and not given.folder:
        shutil.rmtree(folder)
    print(f"chaos: {survived}/{tried}")
    return int(not exact)


if __name__ == "__main__":
    sys.exit(main())
