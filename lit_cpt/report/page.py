"""One page about a few runs: what was planned, what happened, what was gained, what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_cpt.report import tables
from lit_cpt.report.canvas import save
from lit_cpt.report.comparison import Row, chosen_control, chosen_subject, compare, verdict
from lit_cpt.report.course import course_table
from lit_cpt.report.events_section import diaries
from lit_cpt.report.figures import WIDE, figure, legend, panels
from lit_cpt.report.guards_section import guards_section
from lit_cpt.report.ledger_chart import ledger_figure
from lit_cpt.report.ledger_section import kept, ledger_colours, ledger_section
from lit_cpt.report.markup import escaped, folding, paragraph, section
from lit_cpt.report.palette import run_colours
from lit_cpt.report.plan_chart import plan_figure
from lit_cpt.report.plots import plot_losses, plot_plan
from lit_cpt.report.run_charts import loss_panel, score_panel, scores_figure
from lit_cpt.report.runs import BASE, Run, load_run, sources_of
from lit_cpt.report.speed_section import speed_figure, speed_section, timed
from lit_cpt.report.stylesheet import stylesheet
from lit_cpt.report.tradeoff import Balance, Weights, balances, old_blend
from lit_cpt.report.tradeoff_chart import tradeoff_figure
from lit_cpt.report.tradeoff_section import tradeoff_section
from lit_cpt.units import format_count

RECIPE_LETTERS = 20_000
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser itself refuses whatever is not on the page


@dataclass(frozen=True)
class Story:
    """What a page tells.

    Attributes:
        runs: Name to run.
        control: The run that the others are compared with.
        subject: The run that the plan and the ledger are told of in full.
        rows: Of the score table.
        colours: Run to the name of its colour.
        weights: Of the old blend.
        found: Run to its balance of forgetting and gain.
    """

    runs: dict[str, Run]
    control: str
    subject: Run
    rows: list[Row]
    colours: dict[str, str]
    weights: Weights
    found: dict[str, Balance]

    @classmethod
    def of(cls, runs: dict[str, Run], control: str) -> Story:
        """All that follows from the runs."""
        weights = old_blend(runs, control)
        return cls(runs, control, runs[chosen_subject(runs, control)], compare(runs, control),
                   run_colours(runs, control if len(runs) > 1 else None), weights, balances(runs, weights))

    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """What is drawn beside the page too, but for plan and losses, by name."""
        told, sources = kept(self.runs), ledger_colours({self.subject.name: self.subject, **self.runs})
        offered = {"scores": (self.rows, partial(scores_figure, self.rows, self.colours, WIDE, named=True)),
                   "tradeoff": (self.found, partial(tradeoff_figure, self.found, self.colours, WIDE, named=True)),
                   "ledger": (told, partial(ledger_figure, told, sources)),
                   "speed": (timed(self.runs), partial(speed_figure, self.runs, self.colours))}
        return {name: draw for name, (something, draw) in offered.items() if something}


def write_report(
    runs: Mapping[str, str | Path], output: str | Path, title: str, control: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page about ``runs``, and its main pictures as PNG beside it.

    Args:
        runs: Name to run folder. One called "base" among several is where the others start from: its last losses and
            scores are the reference, and it has no line of its own in the loss charts.
        output: The page; ``report.html`` gets ``report-plan.png`` beside it, and the same for ``losses``, ``scores``,
            ``tradeoff``, ``ledger`` and ``speed``, as far as there is something to draw.
        title: Heading of the page.
        control: The run that the others are compared with; left out, the one called "baseline", else the first.
        notes: Sentences to print under the verdict.

    Returns:
        ``output``.

    Raises:
        ValueError: No runs, a folder that is no run folder, or a control that is none of the runs.
    """
    if not runs:
        raise ValueError("runs={} leaves nothing to report: give at least one run folder.")
    if set(runs) == {BASE}:
        runs = {"the run": runs[BASE]}  # alone it is no reference
    loaded = {name: replace(load_run(path), name=name) for name, path in runs.items()}
    story = Story.of(loaded, chosen_control(loaded, control))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if story.subject.plan:
        plot_plan(story.subject.plan, output.with_name(f"{output.stem}-plan.png"))
    if has_losses(loaded):
        plot_losses(loaded, output.with_name(f"{output.stem}-losses.png"), story.control)
    for name, draw in story.pictures().items():
        save(draw, output.with_name(f"{output.stem}-{name}.png"))
    output.write_text(page(story, title, notes), encoding="utf-8")
    return output


def page(story: Story, title: str, notes: Sequence[str]) -> str:
    """The whole page."""
    runs, rows, colours, control = story.runs, story.rows, story.colours, story.control
    body = "".join([
        f"<header>\n<h1>{escaped(title)}</h1>\n{paragraph(facts(runs), 'facts')}",
        f"{paragraph(verdict(runs, control, rows), 'verdict')}{missing(runs)}",
        "".join(paragraph(note) for note in notes) + "</header>\n",
        plan_section(story.subject),
        section("As planned?", course_table(runs), tables.switch_table(runs)),
        score_section(runs, rows, colours, control), loss_section(runs, colours),
        tradeoff_section(story.found, story.weights, colours), ledger_section(runs, story.subject),
        guards_section(runs), speed_section(runs, colours),
        section("Events", diaries(runs)),
        section("Recipe", recipes(runs)),
    ])
    return document(title, body)


def document(title: str, body: str) -> str:
    """A whole HTML file around ``body``, which is HTML."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escaped(title)}</title>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>{stylesheet()}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n")


def facts(runs: Mapping[str, Run]) -> str:
    """What was read, in a line."""
    told: dict[str, list[str]] = {}
    for name, run in runs.items():
        seen = run.steps * (run.tokens_per_step or 0)
        told.setdefault(f"{run.steps:,} steps" + (f" ({format_count(seen)} tokens)" if seen else ""), []).append(name)
    return " · ".join(f"{', '.join(names)}: {length}" for length, names in told.items())


def missing(runs: Mapping[str, Run]) -> str:
    """What is not there, run by run."""
    lacking = [f"<li>{escaped(name)}: {escaped(', '.join(run.missing))}</li>"
               for name, run in runs.items() if run.missing]
    return f'<div class="small">Not found, and so not shown:<ul>{"".join(lacking)}</ul></div>\n' if lacking else ""


def plan_section(subject: Run) -> str:
    """The picture that explains the idea, and what it takes from each source."""
    if not subject.plan:
        return ""
    label = f"Learning rate and blend of {subject.name} against tokens"
    return section("The plan", figure(partial(plan_figure, subject.plan), "plan", label),
                   tables.plan_table(subject.plan), plan_remarks(subject.plan))


def plan_remarks(plan: dict[str, Any]) -> str:
    """What was to be thought about before the start, and what differs from the paper."""
    remarks = [*plan.get("warnings", []), *(f"Not as in the paper: {line}" for line in plan.get("departures", []))]
    return f'<ul class="small">{"".join(f"<li>{escaped(line)}</li>" for line in remarks)}</ul>\n' if remarks else ""


def score_section(runs: Mapping[str, Run], rows: list[Row], colours: Mapping[str, str], control: str) -> str:
    """Scores, then differences to the control, then how they came about and what failed."""
    if not rows:
        return section("What was gained", tables.failure_table(runs))
    names = list(dict.fromkeys(row.run for row in rows))
    chart = figure(partial(scores_figure, rows, colours), "scores", "Scores with 95 % intervals")
    limits = ("The intervals come from resampling clusters of items. They cover which items were drawn, not another "
              "training seed or another base model.")
    return section("What was gained", legend(names, colours), chart, tables.score_table(rows),
                   tables.difference_table(rows, control), paragraph(limits, "small"), tables.bits_table(runs),
                   score_panels(runs, rows, colours), tables.failure_table(runs))


def score_panels(runs: Mapping[str, Run], rows: list[Row], colours: Mapping[str, str]) -> str:
    """Each family's score over the runs, where one was evaluated more than once."""
    if all(len(run.scored) < 2 for name, run in runs.items() if name != BASE):
        return ""
    return panels([(partial(score_panel, runs, colours, family), f"Score in {family} over the run")
                   for family in dict.fromkeys(row.family for row in rows)], "over")


def loss_section(runs: Mapping[str, Run], colours: Mapping[str, str]) -> str:
    """Validation loss per source as table and panels; training loss last."""
    if not has_losses(runs):
        return ""
    trained = any(run.scalars.get("train/loss") for name, run in runs.items() if name != BASE)
    shown: list[str | None] = [*sources_of(runs), *([None] if trained else [])]
    charts = panels([(partial(loss_panel, runs, colours, source), "Training loss" if source is None else
                      f"Validation loss on {source}") for source in shown], "loss")
    return section("What was forgotten", tables.loss_table(runs), legend(list(runs), colours), charts,
                   paragraph("Dashed: where a run switched its blend. Shaded: the range around a mean.", "small"))


def has_losses(runs: Mapping[str, Run]) -> bool:
    """Whether there is a loss to draw."""
    return any(run.validation or run.scalars.get("train/loss") for run in runs.values())


def recipes(runs: Mapping[str, Run]) -> str:
    """The recipes' texts, equal ones once."""
    texts: dict[str, list[str]] = {}
    for name, run in runs.items():
        if run.recipe.strip():
            texts.setdefault(run.recipe, []).append(name)
    return "".join(folding(", ".join(names), f"<pre>{escaped(text[:RECIPE_LETTERS])}"
                           f"{'…' if len(text) > RECIPE_LETTERS else ''}</pre>") for text, names in texts.items())
