"""What the guards saw: steps that were skipped, spikes, rollbacks, alarms, failures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import PurePath

from lit_cpt.report.events_section import Event, span, spoken, step_of
from lit_cpt.report.markup import Cell, paragraph, section, table
from lit_cpt.report.runs import VALIDATION, Run

INCIDENTS = 30  # of a run that are told one by one
TELLING = ("spike", "rollback", "forgetting", "plateau", "repeats", "damaged", "stop")
QUIET = ("No step was skipped, no spike or alarm was told, nothing was rolled back, no evaluation failed. That "
         "holds as far as the runs had guards: a run without a callback is not watched by it.")


def guards_section(runs: Mapping[str, Run]) -> str:
    """How often each thing happened, then one by one."""
    return section("What the guards saw", guard_table(runs) or paragraph(QUIET), incident_table(runs))


def guard_table(runs: Mapping[str, Run]) -> str:
    """Kinds × runs: how often, and from which step to which; kinds that nowhere happened are left out."""
    seen = {name: happened(run) for name, run in runs.items()}
    kinds = dict.fromkeys(kind for found in seen.values() for kind, steps in found.items() if steps)
    lines: list[list[str | Cell]] = [[kind, *(times(found[kind]) for found in seen.values())] for kind in kinds]
    return table("How often, and at which steps", ["", *seen], lines) if lines else ""


def happened(run: Run) -> dict[str, list[int]]:
    """Kind of trouble to the steps at which it was met."""
    spikes = [event for event in run.events if event.get("event") == "spike"]

    def steps(kind: str) -> list[int]:
        return [step_of(event) for event in run.events if event.get("event") == kind]

    return {
        "steps skipped, not finite": [step_of(event) for event in spikes if event.get("what") == "not finite"],
        "spikes skipped": [step_of(event) for event in spikes
                           if event.get("what") != "not finite" and event.get("skipped")],
        "spikes told": [step_of(event) for event in spikes
                        if event.get("what") != "not finite" and not event.get("skipped")],
        "rollbacks": steps("rollback"), "forgetting alarms": steps("forgetting"), "plateaus": steps("plateau"),
        "sources repeated too often": steps("repeats"),
        "families without a score": [step for step, *_ in run.failures],
        "logged losses not finite": not_finite(run), "damaged checkpoints": steps("damaged"),
        "resumed": steps("resume"),
    }


def not_finite(run: Run) -> list[int]:
    """Steps at which a loss was logged that is no number."""
    return sorted({step for tag, points in run.scalars.items() if tag == "train/loss" or VALIDATION.fullmatch(tag)
                   for step, value in points if not math.isfinite(value)})


def times(steps: list[int]) -> Cell:
    """How often, and where."""
    ends = " to ".join(f"{step:,}" for step in dict.fromkeys([min(steps), max(steps)])) if steps else ""
    return Cell(f"{len(steps):,}" if steps else "–", ends and f"step {ends}")


def incident_table(runs: Mapping[str, Run]) -> str:
    """What the guards wrote into the diaries; the same kind in a row stands in one line."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        told = [event for event in run.events if event.get("event") in TELLING]
        groups = [list(group) for _, group in itertools.groupby(told, key=label)]
        for group in groups[:INCIDENTS]:
            several = f"×{len(group):,}" if len(group) > 1 else ""
            said = list(dict.fromkeys(sentence(event) for event in (group[0], group[-1])))
            lines.append([name, span([{"step": step_of(event)} for event in group], "step"),
                          Cell(label(group[0]), several), " … ".join(said)])
        if len(groups) > INCIDENTS:
            lines.append([name, "", f"{len(groups) - INCIDENTS:,} more in events.jsonl", ""])
    return table("One by one", ["run", "step", "what", "details"], lines, "words") if lines else ""


def label(event: Event) -> str:
    """What to call it."""
    return "not finite" if event.get("what") == "not finite" else str(event["event"])


def sentence(event: Event) -> str:
    """What happened, in words where they are known."""
    kind, passed = event["event"], event.get("pass_over")
    if kind == "spike" and isinstance(event.get("scores"), list):
        scores = zip(("loss", "gradient norm"), event["scores"], strict=False)
        told = ", ".join(f"{name} {'not finite' if score is None else f'{spoken(score)} deviations'}"
                         for name, score in scores)
        return told + ("; skipped" if event.get("skipped") else "")
    if kind == "rollback" and isinstance(passed, list) and len(passed) == 2:
        last = f" to {passed[1] - 1:,}" if passed[1] - passed[0] > 1 else ""
        checkpoint, which = PurePath(str(event.get("checkpoint"))).name, f"batch{'es' * bool(last)} {passed[0]:,}{last}"
        return f"went back to {checkpoint}, passed over global {which} of the stream"
    if kind == "repeats":
        return f"{event.get('source')} was seen {spoken(event.get('epochs'))} times"
    if kind in ("forgetting", "plateau"):
        then = {"stop": "; the run was ended", "switch": "; the next phase was begun"}.get(str(event.get("then")), "")
        return f"{event.get('why')}{then}"
    return "; ".join(f"{key} {spoken(value)}" for key, value in event.items()
                     if key not in ("event", "step", "tokens_seen", "time"))
