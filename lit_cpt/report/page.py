"""One page about a few runs: what was planned, what was gained, what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_cpt.report import tables
from lit_cpt.report.canvas import inline_svg
from lit_cpt.report.comparison import Row, chosen_control, chosen_subject, compare, verdict
from lit_cpt.report.markup import escaped, paragraph, section
from lit_cpt.report.palette import run_colours
from lit_cpt.report.plan_chart import plan_figure
from lit_cpt.report.plots import plot_losses, plot_plan
from lit_cpt.report.run_charts import loss_panel, score_panel, scores_figure
from lit_cpt.report.runs import BASE, Run, load_run, sources_of
from lit_cpt.report.stylesheet import stylesheet
from lit_cpt.units import format_count

WIDE, NARROW, PANEL = 8.8, 4.2, 3.3  # inches; drawn twice so that letters keep their size on a phone
RECIPE_LETTERS = 20_000
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser itself refuses whatever is not on the page


def write_report(
    runs: Mapping[str, str | Path], output: str | Path, title: str, control: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page about ``runs``, and its two main pictures as PNG beside it.

    Args:
        runs: Name to run folder. One called "base" is where the others start from: its last losses and scores are
            the reference, and it has no line of its own in the loss charts.
        output: The page; ``report.html`` gets ``report-plan.png`` and ``report-losses.png`` beside it.
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
    loaded = {name: replace(load_run(path), name=name) for name, path in runs.items()}
    control = chosen_control(loaded, control)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    subject = loaded[chosen_subject(loaded, control)]
    if subject.plan:
        plot_plan(subject.plan, output.with_name(f"{output.stem}-plan.png"))
    if has_losses(loaded):
        plot_losses(loaded, output.with_name(f"{output.stem}-losses.png"), control)
    output.write_text(page(loaded, title, control, subject, notes), encoding="utf-8")
    return output


def page(runs: Mapping[str, Run], title: str, control: str, subject: Run, notes: Sequence[str]) -> str:
    """The whole page."""
    rows, colours = compare(runs, control), run_colours(runs, control)
    body = "".join([
        f"<header>\n<h1>{escaped(title)}</h1>\n{paragraph(facts(runs), 'facts')}",
        f"{paragraph(verdict(runs, control, rows), 'verdict')}{missing(runs)}",
        "".join(paragraph(note) for note in notes) + "</header>\n",
        plan_section(subject), score_section(runs, rows, colours, control), loss_section(runs, colours),
        section("As planned?", tables.switch_table(runs), tables.course_table(runs)),
        section("Events", tables.event_table(runs)),
        section("Recipe", recipes(runs)),
    ])
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
    return section("The plan", figure(partial(plan_figure, subject.plan), "plan", label, (WIDE, NARROW)),
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
    chart = figure(partial(scores_figure, rows, colours), "scores", "Scores with 95 % intervals", (WIDE, NARROW))
    limits = ("The intervals come from resampling clusters of items. They cover which items were drawn, not another "
              "training seed or another base model.")
    return section("What was gained", legend(names, colours), chart, tables.score_table(rows),
                   tables.difference_table(rows, control), paragraph(limits, "small"), tables.bits_table(runs),
                   score_panels(runs, rows, colours), tables.failure_table(runs))


def score_panels(runs: Mapping[str, Run], rows: list[Row], colours: Mapping[str, str]) -> str:
    """Each family's score over the runs, where one was evaluated more than once."""
    if all(len(run.scored) < 2 for name, run in runs.items() if name != BASE):
        return ""
    charts = "".join(figure(lambda width, family=family: score_panel(runs, colours, family, width),  # type: ignore[misc]
                            f"over{place}", f"Score in {family} over the run", (PANEL,))
                     for place, family in enumerate(dict.fromkeys(row.family for row in rows)))
    return f'<div class="panels">\n{charts}</div>\n'


def loss_section(runs: Mapping[str, Run], colours: Mapping[str, str]) -> str:
    """Validation loss per source as table and panels; training loss last."""
    if not has_losses(runs):
        return ""
    trained = any(run.scalars.get("train/loss") for name, run in runs.items() if name != BASE)
    panels: list[str | None] = [*sources_of(runs), *([None] if trained else [])]
    charts = "".join(
        figure(lambda width, source=source: loss_panel(runs, colours, source, width), f"loss{place}",  # type: ignore[misc]
               "Training loss" if source is None else f"Validation loss on {source}", (PANEL,))
        for place, source in enumerate(panels))
    return section("What was forgotten", tables.loss_table(runs), legend(list(runs), colours),
                   f'<div class="panels">\n{charts}</div>\n',
                   paragraph("Dashed: where a run switched its blend. Shaded: the range around a mean.", "small"))


def has_losses(runs: Mapping[str, Run]) -> bool:
    """Whether there is a loss to draw."""
    return any(run.validation or run.scalars.get("train/loss") for run in runs.values())


def figure(draw: Callable[[float], Figure], name: str, label: str, widths: tuple[float, ...]) -> str:
    """A chart at each of ``widths``, the first for wide screens, the second for narrow ones."""
    kinds = ("",) if len(widths) == 1 else (' class="wide"', ' class="narrow"')
    return "".join(f"<figure{kind}>{inline_svg(partial(draw, width), f'{name}{place}', escaped(label))}</figure>\n"
                   for place, (kind, width) in enumerate(zip(kinds, widths, strict=True)))


def legend(names: Sequence[str], colours: Mapping[str, str]) -> str:
    """Names of the runs beside their colours."""
    keys = "".join(f'<li><i style="background:var(--{colours[name]})"></i>{escaped(name)}</li>' for name in names)
    return f'<ul class="legend">{keys}</ul>\n'


def recipes(runs: Mapping[str, Run]) -> str:
    """The recipes' texts, equal ones once."""
    texts: dict[str, list[str]] = {}
    for name, run in runs.items():
        if run.recipe.strip():
            texts.setdefault(run.recipe, []).append(name)
    return "".join(f"<details><summary>{escaped(', '.join(names))}</summary>\n<pre>{escaped(text[:RECIPE_LETTERS])}"
                   f"{'…' if len(text) > RECIPE_LETTERS else ''}</pre></details>\n" for text, names in texts.items())
