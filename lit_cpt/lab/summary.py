"""A grid in one Markdown table: a row an arm, the average with what it allows to say, and the losses."""

from __future__ import annotations

from tabulate import tabulate

from lit_cpt.lab.arms_table import LOSS, Comparison, Line, between, probability
from lit_cpt.report.comparison import AVERAGE


def render_summary(name: str, found: Comparison) -> str:
    """The table under the grid's name."""
    lines = {(line.measure, line.treatment): line for line in found.lines}
    losses = [measure for measure in found.noise if measure.startswith(LOSS)]
    scores = [measure for measure in found.noise if not measure.startswith(LOSS) and measure != AVERAGE]
    rows = []
    for arm in dict.fromkeys(line.treatment for line in found.lines):
        average = lines.get((AVERAGE, arm))
        rows.append([arm, *(told(average) if average else ["-"] * 6), *(short(lines.get((measure, arm)), 1)
                    for measure in scores), *(short(lines.get((measure, arm)), 3) for measure in losses)])
    floor = found.noise.get(AVERAGE)
    head = ["arm", "n", "average", f"minus {found.control}", "over items", "over replicates", "p (Holm)", *scores,
            *(measure.removeprefix(LOSS) for measure in losses)]
    noise = "no arm was repeated" if floor is None else f"{floor:.2f} points for the average"
    noises = [f"{found.noise[measure]:.3f} for {measure.removeprefix(LOSS)}" for measure in losses
              if found.noise[measure]]
    return (f"**{name}**\n\n{tabulate(rows, head, tablefmt='pipe', disable_numparse=True)}\n\n"
            f"Noise floor (s.d. of one arm over seeds): {', '.join([noise, *noises])}.")


def told(line: Line) -> list[str]:
    """Replicates, mean, and the difference with its intervals and p."""
    mean = f"{line.mean:.1f}" + ("" if line.error is None else f" ± {line.error:.1f}")
    gap = "control" if line.is_control else "-" if line.difference is None else f"{line.difference:+.1f}"
    return [str(line.count), mean, gap, between(line.over_items, 1), between(line.over_replicates, 1),
            probability(line.p_holm)]


def short(line: Line | None, digits: int) -> str:
    """A mean alone."""
    return "-" if line is None else f"{line.mean:.{digits}f}"
