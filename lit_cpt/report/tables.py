"""The report's tables, each from runs alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from lit_cpt.report.canvas import scientific
from lit_cpt.report.comparison import Row, signed, starting_losses
from lit_cpt.report.events_section import spoken
from lit_cpt.report.markup import Cell, difference_cell, score_cell, table
from lit_cpt.report.runs import BASE, Run, sources_of
from lit_cpt.units import format_count


def score_table(rows: list[Row]) -> str:
    """Families × runs, in percent."""
    names = list(dict.fromkeys(row.run for row in rows))
    lines: list[list[str | Cell]] = []
    for family, group in groupby(rows, key=lambda row: row.family):
        found = {row.run: row for row in group}
        aside = "" if all(row.averaged for row in found.values()) else ", not averaged"
        items = " or ".join(f"{count:,}" for count in dict.fromkeys(row.items for row in found.values()))
        scores = [score_cell(found[name].score) if name in found else Cell("–") for name in names]
        lines.append([Cell(family, f"{items} items{aside}"), *scores])
    return table("Last evaluation, per cent, with 95 % intervals", ["family", *names], lines,
                 "summed") if rows else ""


def difference_table(rows: list[Row], control: str) -> str:
    """Families × runs but the control, in points."""
    names = [name for name in dict.fromkeys(row.run for row in rows) if name != control]
    if not names or all(row.difference is None and not row.unpaired for row in rows):
        return ""
    lines: list[list[str | Cell]] = []
    for family, group in groupby(rows, key=lambda row: row.family):
        found = {row.run: row for row in group}
        cells = [change(found[name]) if name in found else Cell("–") for name in names]
        lines.append([family, *cells])
    return table(f"Points above {control}, item by item, with 95 % intervals; bold where zero lies outside",
                 ["family", *names], lines, "summed")


def change(row: Row) -> Cell:
    """A row's difference, or why there is none."""
    return Cell("–", row.unpaired or "no control") if row.difference is None else difference_cell(row.difference)


def bits_table(runs: Mapping[str, Run]) -> str:
    """Families × runs: bits per byte of the right answer in the last evaluation."""
    last = {name: run.scored[-1]["families"] for name, run in runs.items() if run.scored}
    families = dict.fromkeys(family for found in last.values() for family, one in found.items()
                             if one.get("bits_per_byte") is not None)
    lines: list[list[str | Cell]] = [
        [family, *(Cell("–" if (value := found.get(family, {}).get("bits_per_byte")) is None else f"{value:.3f}")
                   for found in last.values())] for family in families]
    return table("Bits per byte of the right answer, last evaluation; less is better", ["family", *last],
                 lines) if lines else ""


def failure_table(runs: Mapping[str, Run]) -> str:
    """What could not be evaluated, and why; a family that stays out is told once."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        told: dict[tuple[str, str], list[int]] = {}
        for step, family, failure in run.failures:
            told.setdefault((family, f"{failure['status']}: {failure['reason']}"), []).append(step)
        lines += [[name, family, spoken(reason), ", ".join(f"{step:,}" for step in steps[:6]) + " …" * (len(steps) > 6)]
                  for (family, reason), steps in told.items()]
    return table("Families without a score", ["run", "family", "why", "at step"], lines, "words") if lines else ""


def loss_table(runs: Mapping[str, Run]) -> str:
    """Sources × (start, runs): the last validation loss and how far it is from the start."""
    start = starting_losses(runs)
    names = [name for name, run in runs.items() if run.validation and name != BASE]
    lines: list[list[str | Cell]] = []
    for source in sources_of(runs):
        known = start.get(source)
        ends = [loss_cell(runs[name].validation.get(source, [])[-1:], known) for name in names]
        lines.append([source, *([Cell("–" if known is None else f"{known:.3f}")] if start else []), *ends])
    caption = "Last validation loss, nats per token" + ("; bold where it rose above the start" if start else "")
    return table(caption, ["source", *(["start"] if start else []), *names], lines) if lines else ""


def loss_cell(last: list[tuple[int, float]], start: float | None) -> Cell:
    """The last loss and its change since the start, bold if it rose."""
    if not last or start is None:
        return Cell(f"{last[0][1]:.3f}" if last else "–")
    rise = last[0][1] - start
    return Cell(f"{last[0][1]:.3f}", signed(rise, 3), rise > 0)


def plan_table(plan: dict[str, Any]) -> str:
    """Sources × phases: the share, and how often the source's tokens are gone through."""
    phases = {phase["name"]: {source["name"]: source for source in phase["sources"]} for phase in plan["phases"]}
    known = {phase["name"] for phase in plan["phases"] if phase["start"]}
    sources = dict.fromkeys(source for drawn in phases.values() for source in drawn)
    lines: list[list[str | Cell]] = [
        [source, *(drawn_cell(drawn.get(source), name in known) for name, drawn in phases.items())]
        for source in sources]
    caption = "Share of each source in the phase, its tokens and how often it is gone through"
    return table(caption, ["source", *phases], lines)


def drawn_cell(source: dict[str, Any] | None, known: bool) -> Cell:
    """A source's share of a phase, its tokens and epochs if the phase is ``known`` to begin."""
    if source is None:
        return Cell("–")
    if not known:
        return Cell(f"{100 * source['weight']:.4g} %", "not foretold")
    epochs = "" if source.get("epochs") is None else f", {source['epochs']:.3g} epochs"
    return Cell(f"{100 * source['weight']:.4g} %", f"{format_count(source['tokens'])}{epochs}")


def switch_table(runs: Mapping[str, Run]) -> str:
    """Every planned switch against the one that happened."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        for phase in run.plan.get("phases", [])[1:]:
            # After a resume the same switch may be told twice; the last telling is the one trained on.
            told = [event for event in run.events
                    if event.get("event") == "phase" and event.get("phase") == phase["name"]]
            lines.append([name, phase["name"], str(phase["when"]), *switch_cells(phase["start"], told[-1:])])
    head = ["run", "phase", "trigger", "planned step", "actual step", "steps late", "planned η", "actual η"]
    return table("Planned and actual", head, lines, "words") if lines else ""


def switch_cells(start: dict[str, Any] | None, told: list[dict[str, Any]]) -> list[str]:
    """Planned step, actual step, steps late, planned and actual eta; ``start`` None where no plan foretells it."""
    actual = f"{told[0]['step']:,}" if told else "not seen"
    eta = scientific(told[0]["eta"]) if told and "eta" in told[0] else "–"
    if start is None:
        return ["not foretold", actual, "–", "–", eta]
    late = told[0]["step"] - start["step"] if told else 0
    off = signed(late, 0) if late else "0" if told else "–"
    return [f"{start['step']:,}", actual, off, scientific(start["eta"]), eta]
