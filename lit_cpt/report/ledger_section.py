"""What the ledger says of the page's runs: tokens, epochs and shares, and how far they are from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lit_cpt.blends import MANY_EPOCHS
from lit_cpt.report.comparison import signed
from lit_cpt.report.figures import figure, legend, panels
from lit_cpt.report.ledger_chart import sample_length, shares_figure
from lit_cpt.report.markup import Cell, paragraph, section, table
from lit_cpt.report.palette import source_colours
from lit_cpt.report.runs import Run
from lit_cpt.units import format_count

STRETCHES = 20  # that are told one by one


def kept(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The runs whose ledger tells of tokens."""
    return {name: run for name, run in runs.items() if run.ledger and sum(run.ledger[-1].get("tokens", {}).values())}


def ledger_colours(runs: Mapping[str, Run]) -> dict[str, str]:
    """Source to the name of its colour: the plan's order, as in its picture, then what only a ledger knows."""
    planned = [source["name"] for run in runs.values() for phase in run.plan.get("phases", [])
               for source in phase["sources"]]
    trained = {source: None for run in kept(runs).values() for source in run.ledger[-1]["tokens"]}
    return {name: colour for name, colour in source_colours([*planned, *trained]).items() if name in trained}


def ledger_section(runs: Mapping[str, Run], subject: Run) -> str:
    """The subject in full, the others in brief."""
    told, colours = kept(runs), ledger_colours({subject.name: subject, **runs})
    if not told:
        return ""
    marks = "Dashed: where the phase changes." + (
        " Triangles: stretches passed over." if any(run.ledger[-1].get("passed_over") for run in told.values()) else "")
    if len(told) == 1:
        name, run = next(iter(told.items()))
        charts = figure(partial(shares_figure, run, colours), "ledger", f"Share of each source in {name} over tokens")
    else:
        charts = panels([(partial(shares_figure, run, colours, named=True),
                          f"Share of each source in {name} over tokens") for name, run in told.items()], "ledger")
    return section("What was trained on", legend(list(colours), colours), charts, paragraph(marks, "small"),
                   phase_table(told[subject.name]) if subject.name in told else "",
                   brief_table(told) if len(told) > 1 else "", passed_table(told))


def phase_table(run: Run) -> str:
    """Sources × phases: tokens and share, planned against trained; then epochs."""
    last = run.ledger[-1]
    planned = {phase["name"]: phase for phase in run.plan.get("phases", [])}
    names = list(dict.fromkeys([*planned, *last.get("phases", {})]))
    sources = dict.fromkeys([*(each["name"] for phase in planned.values() for each in phase["sources"]),
                             *last["tokens"]])
    lines: list[list[str | Cell]] = []
    for source in sources:
        cells = [phase_cell(run, planned.get(name), name, source) for name in names]
        whole = Cell(format_count(last["tokens"].get(source, 0)), share_of(last["tokens"], source))
        lines.append([source, *cells, whole, epochs_cell(last, source)])
    return table(f"{run.name} up to step {last['step']:,}: tokens, share, and how many samples they are off the plan",
                 ["source", *names, "all", "epochs"], lines)


def phase_cell(run: Run, phase: dict[str, Any] | None, name: str, source: str) -> Cell:
    """Tokens of a source in a phase, and how far they are from what was planned."""
    tokens = run.ledger[-1].get("phases", {}).get(name, {})
    planned = next((each for each in (phase or {}).get("sources", []) if each["name"] == source), None)
    if not tokens:
        return Cell("–", "not begun" if planned else "")
    trained = tokens.get(source, 0)
    if planned is None:
        return Cell(format_count(trained) if trained else "–", "not planned" if trained else "")
    return Cell(format_count(trained), f"{share_of(tokens, source)}, {off_plan(run, phase or {}, planned, trained)}")


def off_plan(run: Run, phase: dict[str, Any], planned: dict[str, Any], trained: int) -> str:
    """How a source of a phase stands to its plan, in words."""
    length = sample_length(run)
    if not phase["start"] or length is None:
        return "not foretold"
    if run.ledger[-1]["step"] < phase["stop"]["step"]:
        return f"of {format_count(planned['tokens'])}"
    off = round(trained / length) - planned["samples"]
    return "as planned" if not off else f"{signed(off, 0)} sample{'s' * (abs(off) > 1)}"


def share_of(tokens: Mapping[str, int], source: str) -> str:
    """The part of a source in per cent."""
    return f"{100 * tokens.get(source, 0) / max(1, sum(tokens.values())):.1f} %"


def epochs_cell(line: Mapping[str, Any], source: str) -> Cell:
    """How often a source was gone through, bold where repeats are worth little."""
    seen = line.get("epochs", {}).get(source)
    return Cell("–") if seen is None else Cell(f"{seen:.3g}", strong=seen > MANY_EPOCHS)


def brief_table(runs: Mapping[str, Run]) -> str:
    """Runs × sources: share and epochs, and the largest distance from the plan."""
    sources = dict.fromkeys(source for run in runs.values() for source in run.ledger[-1]["tokens"])
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        last = run.ledger[-1]
        cells = [Cell(share_of(last["tokens"], source), "" if (epochs := last.get("epochs", {}).get(source)) is None
                      else f"{epochs:.3g} epochs") if source in last["tokens"] else Cell("–") for source in sources]
        lines.append([name, format_count(sum(last["tokens"].values())), farthest(run), *cells])
    return table("All runs: tokens, the most that a source is off the plan, and share and epochs of each source",
                 ["run", "tokens", "off the plan", *sources], lines)


def farthest(run: Run) -> str:
    """Most samples by which a source of a phase that ended is off its plan."""
    length, last = sample_length(run), run.ledger[-1]
    off = [abs(round(last["phases"].get(phase["name"], {}).get(source["name"], 0) / length) - source["samples"])
           for phase in run.plan.get("phases", []) if phase["start"] and phase["stop"]["step"] <= last["step"]
           for source in phase["sources"]] if length and "phases" in last else []
    return f"{max(off)} sample{'s' * (max(off) != 1)}" if off else "–"


def passed_table(runs: Mapping[str, Run]) -> str:
    """Stretches of the stream that were left out."""
    lines: list[list[str | Cell]] = []
    for name, run in runs.items():
        stretches, length = run.ledger[-1].get("passed_over", []), sample_length(run)
        for first, stop in stretches[:STRETCHES]:
            tokens = "–" if length is None else format_count((stop - first) * length)
            lines.append([name, f"{first:,} to {stop - 1:,}", f"{stop - first:,}", tokens])
        if len(stretches) > STRETCHES:
            lines.append([name, f"{len(stretches) - STRETCHES:,} more in ledger.jsonl", "", ""])
    return table("Passed over: samples of the stream that were not trained on", ["run", "samples", "count", "tokens"],
                 lines) if lines else ""
