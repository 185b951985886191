"""The page of a grid: its table, its charts over all replicates, and why a chart is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import LOSS, READING, Comparison, cells, head, measures_of
from lit_cpt.lab.grid import Grid
from lit_cpt.lab.grid_charts import draw_losses, draw_rates, draw_switch_points, draw_tradeoff, draw_trends
from lit_cpt.lab.scaling import Trend, ladders
from lit_cpt.lab.switch_points import switch_lines
from lit_cpt.lab.treatments import Treatments, first_trials, mean_of, treatments_of, values_of
from lit_cpt.publishing import publish_text
from lit_cpt.report.canvas import save
from lit_cpt.report.comparison import AVERAGE, signed
from lit_cpt.report.figures import WIDE, figure, legend, panels
from lit_cpt.report.markup import Cell, escaped, paragraph, section, table
from lit_cpt.report.page import document
from lit_cpt.report.palette import run_colours
from lit_cpt.report.run_charts import draw_key, keys, panel, sheet
from lit_cpt.report.runs import Run
from lit_cpt.report.tradeoff import Balance, balances, old_blend
from lit_cpt.units import format_count

Colours = Mapping[str, str]


@dataclass(frozen=True)
class Chart:
    """A section of the page and a PNG beside it.

    Args:
        name: Of the PNG and, on the page, of its parts.
        title: Of the section.
        panels: What a screen reader says of each panel, to what draws it.
        colours: What its key names, each to the name of its colour.
        reading: How to read it.
        table: HTML of its figures.
    """

    name: str
    title: str
    panels: Mapping[str, Callable[[Axes], None]]
    colours: Colours
    reading: str
    table: str = ""

    def html(self) -> str:
        """The section; a single panel is as wide as the page."""
        drawn = [(partial(panel, draw), label) for label, draw in self.panels.items()]
        name = self.name.replace("_", "")
        charts = figure(drawn[0][0], name, drawn[0][1]) if len(drawn) == 1 else panels(drawn, name)
        return section(self.title, legend(list(self.colours), self.colours), charts, self.table,
                       paragraph(self.reading, "small"))

    def sheet(self) -> Figure:
        """All panels, for a picture that stands alone."""
        handles = keys(self.colours, self.colours)
        if len(self.panels) > 1:
            return sheet(list(self.panels.values()), handles)
        alone = panel(next(iter(self.panels.values())), WIDE)
        draw_key(alone, handles)
        return alone


def write_grid_page(folder: Path, grid: Grid, runs: Mapping[str, Run], found: Comparison) -> Path:
    """Write ``folder/grid.html``, and each of its charts as PNG beside it.

    Args:
        folder: For the files.
        grid: Whose arms have been trained.
        runs: Arm to its run.
        found: The comparison of the arms.

    Returns:
        The page.
    """
    treatments = treatments_of(grid, runs)
    controls = [name for name, control in grid.controls.items() if name == control]
    colours = run_colours(treatments, controls[0] if len(controls) == 1 else None)
    made = [chart(treatments, colours) for chart in (switch_chart, partial(tradeoff_chart, controls=grid.controls),
                                                     loss_chart, trend_chart, rate_chart)]
    charts = [one for one in made if isinstance(one, Chart)]
    for chart in charts:
        save(chart.sheet, folder / f"{chart.name}.png")
    lacking = "".join(f"<li>{escaped(one)}</li>" for one in [*found.notes, *(one for one in made
                                                                           if isinstance(one, str))])
    body = (f"<header>\n<h1>The grid</h1>\n{paragraph(facts(treatments), 'facts')}"
            f"{f'<ul class={chr(34)}small{chr(34)}>{lacking}</ul>' if lacking else ''}</header>\n"
            f"{table_section(found)}{''.join(chart.html() for chart in charts)}")
    publish_text(folder / "grid.html", document("The grid", body))
    return folder / "grid.html"


def facts(treatments: Treatments) -> str:
    """What was compared, in a line."""
    pairs = {pair for trials in treatments.values() for pair in trials}
    return f"{len(treatments)} arms · {len(pairs)} replicate{'s' * (len(pairs) != 1)}"


def table_section(found: Comparison) -> str:
    """The comparison of the arms and how to read it."""
    rows: list[list[str | Cell]] = [[*cells(line, found)] for line in found.lines]
    return section("What the arms came to", table("Means, and differences paired within a replicate", head(found),
                                                  rows) if rows else "", paragraph(" ".join(READING), "small"))


def switch_chart(treatments: Treatments, colours: Colours) -> Chart | str:
    """Measures against switch points."""
    lines = switch_lines(treatments)
    measures = measures_of([trial.outcome for trials in treatments.values() for trial in trials.values()])
    if not lines or not measures:
        return ("no chart of switch points: " + ("no arm has a score or a loss" if lines else
                                                 "no two arms differ only in where the last phase begins"))
    measures.sort(key=lambda measure: measure != AVERAGE)
    drawn = {f"{measure} against the switch point": partial(
        draw_switch_points, treatments=treatments, lines=lines, measure=measure, colours=colours)
        for measure in measures}
    return Chart("switch_points", "Where to switch", drawn, colours,
                 "Scores in per cent, val/ losses in nats. A later switch stands further right. Dots: means over "
                 "replicates, with 95 % intervals (t) of the mean itself; pale lines: the replicates, whose common ups "
                 "and downs are in those intervals but not in the paired differences of the table. Joined: arms that "
                 "differ only in the switch; an arm on the last blend from its first step is the switch at the start. "
                 "Dotted: arms that stand on no such line.")


def tradeoff_chart(treatments: Treatments, colours: Colours, controls: Mapping[str, str]) -> Chart | str:
    """Forgetting against gain, as `lit-cpt report` counts them in each run from its own first evaluation."""
    values: dict[str, list[tuple[str, Balance]]] = {}
    for pair in dict.fromkeys(pair for trials in treatments.values() for pair in trials):
        trials = {name: trials[pair] for name, trials in treatments.items() if pair in trials}
        runs = {name: trial.run for name, trial in trials.items()}
        control = next((name for name in runs if controls[name] == name), next(iter(runs)))
        for name, one in balances(runs, old_blend(runs, control)).items():
            values.setdefault(name, []).append((trials[name].outcome.block, one))
    if not values:
        return "no chart of forgetting against gain: no arm has losses and scores from its beginning on"
    found = {name: balance_of(each) for name, each in values.items()}
    rows: list[list[str | Cell]] = [[name, str(len(values[name])), spoken(forgotten, 3), spoken(gained, 1)]
                                    for name, (forgotten, gained) in found.items()]
    return Chart("tradeoff", "Forgetting against gain",
                 {"Forgetting against gain": partial(draw_tradeoff, found=found, colours=colours)},
                 {name: colours[name] for name in found},
                 "A good arm goes up, and not to the right. Forgetting is the change of the validation loss on the "
                 "sources of the control's first phase, by their weights there; gain is the change of the average "
                 "score; both since the run's own first evaluation. Bars: 95 % intervals (t) over replicates.",
                 table("Changes since the beginning, means over replicates", ["arm", "n", "loss, nats",
                                                                             "score, points"], rows))


def balance_of(values: list[tuple[str, Balance]]) -> tuple[Interval, Interval]:
    """What a treatment forgot, in nats, and gained, in points, over its replicates."""
    return (mean_of((block, one.forgotten[-1]) for block, one in values),
            mean_of((block, 100 * one.gained[-1]) for block, one in values))


def spoken(mean: Interval, digits: int) -> Cell:
    """A mean with its interval, if it has one."""
    known = mean.low == mean.low
    return Cell(signed(mean.value, digits),
                f"{signed(mean.low, digits)} to {signed(mean.high, digits)}" if known else "")


def loss_chart(treatments: Treatments, colours: Colours) -> Chart | str:
    """Validation losses against tokens."""
    drawn = {f"Validation loss on {source}": partial(draw_losses, treatments=treatments, source=source, colours=colours)
             for source in sources_of(treatments)}
    return Chart("losses", "Validation losses", drawn, colours, "Nats a token: means over replicates, in bands from "
                 "the least to the greatest replicate.") if drawn else "no losses: no arm was validated"


def rate_chart(treatments: Treatments, colours: Colours) -> Chart | str:
    """Planned learning rates against tokens."""
    if not any(trial.run.plan for trial in first_trials(treatments).values()):
        return "no learning rates: no arm's folder has a plan.json"
    return Chart("rates", "Learning rates", {"Learning rate against tokens": partial(
        draw_rates, treatments=treatments, colours=colours)}, colours,
        "As planned. A dot: there the last phase begins. Of equal curves only the last in the key is seen.")


def trend_chart(treatments: Treatments, _: Colours) -> Chart | str:
    """End losses against trained tokens, for treatments of several horizons."""
    firsts = first_trials(treatments)
    tokens = {name: trial.run.plan["token_horizon"] for name, trial in firsts.items() if trial.run.plan}
    found = ladders({name: trial.arm.labels for name, trial in firsts.items()}, tokens)
    colours = run_colours(found, None)
    trends = {source: {name: trend_of(rungs, treatments, source) for name, rungs in found.items()}
              for source in sources_of(treatments)}
    if not found or not trends:
        return "no trend over lengths: " + ("no arm was validated" if found else "no arms differ only in their horizon")
    rows = [trend_row(name, source, trend) for source, group in trends.items() for name, trend in group.items()]
    drawn = {f"End loss on {source} against trained tokens": partial(draw_trends, trends=group, source=source,
                                                                   colours=colours) for source, group in trends.items()}
    return Chart("scaling", "From short to long", drawn, colours,
                 "Lines: log(loss) = a + b log(tokens), fitted in each replicate, mean and 95 % interval (t) over "
                 "replicates; dashed: extrapolated. The interval covers replicates, not whether the law holds beyond "
                 "the last horizon. Misfit: the largest distance of a fitted loss from its line.",
                 table("End losses over horizons", ["loss", "arm", "horizons", "b", "extrapolated to", "loss there",
                                                    "misfit", ""], rows))


def trend_of(rungs: Mapping[int, str], treatments: Treatments, source: str) -> Trend:
    """The end losses of the treatments of one ladder, of the replicates that have all of them."""
    values = [values_of(treatments[name], f"{LOSS}{source}") for name in rungs.values()]
    shared = [pair for pair in values[0] if all(pair in each for each in values)]
    return Trend(tuple(rungs), tuple((values[0][pair][0], tuple(each[pair][1] for each in values)) for pair in shared))


def trend_row(name: str, source: str, trend: Trend) -> list[str | Cell]:
    """A row of the table of trends; without a fit it says why."""
    start: list[str | Cell] = [source, name, ", ".join(format_count(tokens) for tokens in trend.tokens)]
    if not trend.laws:
        return [*start, "–", "–", "–", "–", trend.remark]
    there = trend.at(trend.further)
    told = Cell(f"{there.value:.3f}", f"{there.low:.3f} to {there.high:.3f}" if there.low == there.low else "")
    return [*start, spoken(trend.slope, 4), format_count(trend.further), told, f"{100 * trend.misfit:.2g} %",
            trend.remark]


def sources_of(treatments: Treatments) -> list[str]:
    """Every source with a validation loss, in order of first sight."""
    return list(dict.fromkeys(source for trials in treatments.values() for trial in trials.values()
                              for source in trial.run.validation))
